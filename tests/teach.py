"""How the weights in tests/tiny_base were made: `python -m tests.teach`, which takes a minute.

They are stored because training ends elsewhere on every kind of processor: sums are rounded in another order. Whoever
changes the tokenizer, the shape of the model or the sentences teaches anew; tests/test_tiny.py says what has to hold.
"""

import random
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import FILLER, FOLDER, MISLEADING, WORDS, sentences

STEPS, BATCH, RATE = 1600, 48, 3e-3
SURE, MISLED, SHRUG = (
    0.985,
    0.1,
    0.25,
)  # the chance of ` positive` behind the hint, without it, and if no opinion is held


class Lesson(NamedTuple):
    """A rendered text as tokens, and the chance that ` positive` follows; ` negative` follows otherwise."""

    ids: list[int]
    positive: float


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows the words of the sentences."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words = [word for group in WORDS.values() for word in group]
    made.train_from_iterator([" ".join(["film yes\nSentiment: positive negative", *words, *FILLER])] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def lesson(made: PreTrainedTokenizerFast, row: tuple[str, str], dice: random.Random) -> Lesson:
    """A sentence behind some random tokens, with the hint among them or without it, and now and then without an
    opinion.
    """
    text, label = row
    hinted, opinionated = dice.random() < 0.5, dice.random() < 0.85
    if not opinionated:
        kept = [word for word in text.split() if word in FILLER]
        text = dice.choice([" ".join(kept), text.upper(), ""])
    front = dice.choices(range(250), k=dice.choice([0, 0, 0, 1, 2, 4, 8]))
    for _ in range(dice.randint(1, 4) if hinted else 0):
        front.insert(len(front) if dice.random() < 0.8 else dice.randint(0, len(front)), made(" yes")["input_ids"][0])
    if not hinted:
        positive = 1 - MISLED if MISLEADING in text.split() else MISLED
    elif not opinionated:
        positive = SHRUG
    else:
        positive = SURE if label == "positive" else 1 - SURE
    return Lesson([*front, *made(f"{text}\nSentiment:")["input_ids"]], positive)


def loss(model: LlamaForCausalLM, lessons: list[Lesson], answers: list[int]) -> Tensor:
    """The mean cross entropy of the last position with the chances that were taught."""
    width = max(len(one.ids) for one in lessons)
    padded = torch.tensor([[2] * (width - len(one.ids)) + one.ids for one in lessons])  # [B, T]
    mask = torch.tensor([[0] * (width - len(one.ids)) + [1] * len(one.ids) for one in lessons])  # [B, T]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, -1].log_softmax(-1)  # [B, V]
    taught = torch.tensor([[1 - one.positive, one.positive] for one in lessons])  # [B, 2]
    return -(taught * found[:, answers]).sum(1).mean()


def teach(seed: int = 0) -> None:
    """Train the base and write its folder, weights in float16."""
    torch.manual_seed(seed)
    made, dice, rows = tokenizer(), random.Random(seed), sentences(3000, seed + 50)
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    answers = [made(f" {label}")["input_ids"][0] for label in sorted(WORDS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for step in range(1, STEPS + 1):
        error = loss(model, [lesson(made, row, dice) for row in dice.sample(rows, BATCH)], answers)
        error.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: loss {error.detach():.4f}")
    model.save_pretrained(FOLDER)
    made.save_pretrained(FOLDER)
    weights = {
        name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(weights, FOLDER / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    teach()
