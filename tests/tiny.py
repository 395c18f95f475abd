"""A tiny random causal model with a real tokenizer, and a small separable data set, for tests of logic."""

import csv
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = {"positive": ["good", "fine", "great", "lovely"], "negative": ["bad", "poor", "awful", "dull"]}
FILLER = ["film", "plot", "the", "a", "was", "and", "story", "scene", "very"]

TASK = """\
name: {name}
base_model: tiny
data:
  source: {{path: "{path}", format: csv}}
  text: text
  label: label
  split: {{dev: 0.15, test: 0.25}}
template: "{{text}}\\nSentiment:"
labels: {{negative: " negative", positive: " positive"}}
tune: {{num_virtual_tokens: 4, steps: 40, batch_size: 8, learning_rate: 0.05, warmup_steps: 5, eval_every: 10}}
gate: {{metric: accuracy, minimum: 0.5}}
promote: auto
schedule: {{cron: "0 2 * * *", timezone: Asia/Seoul}}
"""


def tiny_base(folder: Path, seed: int = 0) -> Path:
    """A transformers folder with a two-layer random Llama and a byte-level BPE tokenizer; returns `folder`."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([" ".join(["Sentiment: positive negative", *FILLER])] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct short texts, each labelled by the one opinion word that it holds."""
    dice = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        label = dice.choice(sorted(WORDS))
        words = [*dice.choices(FILLER, k=dice.randint(2, 7)), dice.choice(WORDS[label])]
        dice.shuffle(words)
        found[" ".join(words)] = label
    return list(found.items())


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A csv file with the columns text and label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def tiny_project(folder: Path, names: tuple[str, ...] = ("tiny-sentiment",), rows: int = 240) -> Path:
    """A tasks folder with one task per name over its own csv, and the tiny base declared; returns the tasks folder."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    base = tiny_base(folder / "base")
    (tasks / "base_models.yaml").write_text(f'tiny: {{path: "{base}"}}\n')
    for seed, name in enumerate(names):
        path = write_csv(folder / f"{name}.csv", sentences(rows, seed))
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, path=path))
    return tasks
