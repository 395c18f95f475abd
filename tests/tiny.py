"""A tiny causal model with a real tokenizer, and a small separable data set, for tests of logic."""

import atexit
import csv
import functools
import random
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = {"positive": ["good", "fine", "great", "lovely"], "negative": ["bad", "poor", "awful", "dull"]}
FILLER = ["film", "plot", "the", "a", "was", "and", "story", "scene", "very"]

STEPS = 400

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
tune: {{num_virtual_tokens: 4, init: {{text: " yes"}}, steps: 40, batch_size: 8, learning_rate: 0.05, warmup_steps: 5, eval_every: 10}}
gate: {{metric: accuracy, minimum: 0.7, champion: {{rule: non_inferiority, margin: 0.2}}}}
promote: auto
schedule: {{cron: "0 2 * * *", timezone: Asia/Seoul}}
"""


def tiny_base(folder: Path, seed: int = 0) -> Path:
    """A transformers folder with a two-layer Llama and a byte-level BPE tokenizer; returns `folder`.

    It was trained for a moment to tell the label of a sentence: the right one behind the word `yes` and a random one
    without it, so that zero-shot guesses and a soft prompt has something to find.
    """
    return Path(shutil.copytree(_trained_base(seed), folder))


@functools.cache
def _trained_base(seed: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tiny-base-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    _teach(model, tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    words = [word for group in WORDS.values() for word in group]
    tokenizer.train_from_iterator([" ".join(["film yes\nSentiment: positive negative", *words, *FILLER])] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _teach(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """A few hundred steps on `[yes ]sentence Sentiment:` -> right or random label, behind any first tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = sentences(1500, seed + 50)
    dice = random.Random(seed)
    for _ in range(STEPS):
        batch = dice.sample(rows, 32)
        asked = [f"{' yes' * (i % 2)}{text}\nSentiment:" for i, (text, _) in enumerate(batch)]
        told = [label if i % 2 else dice.choice(sorted(WORDS)) for i, (_, label) in enumerate(batch)]
        ids = [dice.choices(range(3, 250), k=dice.randint(0, 8)) + tokenizer(text)["input_ids"] for text in asked]
        target = torch.tensor([tokenizer(f" {label}")["input_ids"][0] for label in told])
        width = max(map(len, ids))
        padded = torch.tensor([[2] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
        optimizer.zero_grad()


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
