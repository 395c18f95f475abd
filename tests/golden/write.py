"""Wrote the folder `project/` on 26 November 2026, once. Never run it over that folder again.

The bytes of `project/` are the point: they were written by the code of that day, and later code has to read them.
Training rounds differently on another processor, and times and nonces are new each time, so another run makes another
project. For another fixture, name a new folder: `python -m tests.golden.write FOLDER`. It holds what projects have had
so far:

- `base/` a two-layer Llama of width 32 that was taught for a moment, `data/` the rows and a prompt to import, `tasks/`;
- `home/store` and `home/ledger.db` of two tasks. mood: 1 and 2 trained and promoted by the machine, rolled back to 1;
  3 imported and promoted. topic: 1 an ensemble, with an alias of its own, and 2 a prefix, neither of which passed.
  Release `spring` takes mood to 2 and topic to 1, by an override. All prompts are signed by the key whose public half
  is `trusted.pem`.
"""

import csv
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM

from tests.golden.product import ptp
from tests.tiny import _teach, _tokenizer, sentences

MOOD = """\
name: mood
base_model: small
data:
  source: {path: data/mood.csv, format: csv}
  text: text
  label: label
  split: {dev: 0.15, test: 0.25}
template: "{text}\\nSentiment:"
labels: {negative: " negative", positive: " positive"}
tune: {num_virtual_tokens: 2, init: {text: " yes"}, steps: 40, batch_size: 8, learning_rate: 0.03, warmup_steps: 5,
  eval_every: 10}
gate: {metric: accuracy, minimum: 0.7, champion: {rule: non_inferiority, margin: 0.4}}
promote: auto
schedule: {cron: "0 2 * * *", timezone: Asia/Seoul}
"""
SECOND_RECIPE = (
    'tune: {num_virtual_tokens: 3, init: {text: " yes"}, steps: 40, batch_size: 8, learning_rate: 0.02, '
    "warmup_steps: 5, eval_every: 10}"
)
TOPIC = """\
name: topic
base_model: small
data:
  source: {path: data/topic.csv, format: csv}
  text: text
  label: label
  slices: [kind]
  split: {dev: 0.15, test: 0.25, reserve: 0.1}
template: "{text}\\nSentiment:"
labels: {bad: " negative", good: " positive"}
scoring: {length_normalised: true}
hard_prompt: {instruction: "Is it good?", examples: 2}
tune: {method: ensemble, ensemble: {members: 2}, num_virtual_tokens: 2, steps: 2, batch_size: 4, warmup_steps: 1,
  eval_every: 2}
gate: {metric: macro_f1, minimum: 0.5}
texts_in_reports: true
schedule: {cron: "30 1 * * 1-5"}
"""
PREFIX_RECIPE = (
    "tune: {method: prefix, encoder_width: 4, num_virtual_tokens: 2, steps: 2, batch_size: 4, "
    "warmup_steps: 1, eval_every: 2}"
)


def write(folder: Path) -> None:
    """The whole project in a new folder, whose path ends up in its HTML pages and nowhere else."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    key = _key(folder.parent / f"{folder.name}-key.pem")
    os.environ.update(
        PTP_HOME="home",
        PTP_TASKS="tasks",
        PTP_DTYPE="float32",
        PTP_SIGNING_KEY=str(key),
        LOGNAME="ada",
        OMP_NUM_THREADS="1",
    )
    _draw_small()
    _base(folder / "base")
    _data(folder / "data")
    _tasks(folder / "tasks")
    _history()
    key.unlink()
    _tidy(folder / "home")


def _draw_small() -> None:
    """Plots of a few kilobytes: their bytes are nobody's identity, only the names that follow from them."""
    drawn = Figure.savefig
    Figure.savefig = lambda self, *arguments, **options: drawn(self, *arguments, **{**options, "dpi": 20})  # type: ignore[method-assign]


def _base(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
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
    _teach(model, tokenizer, 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _data(folder: Path) -> None:
    folder.mkdir()
    dice = random.Random(5)
    _rows(folder / "mood.csv", [("text", "label"), *sentences(240, 1)])
    topic = [
        (text, "good" if label == "positive" else "bad", dice.choice(("mail", "web")))
        for text, label in sentences(160, 2)
    ]
    _rows(folder / "topic.csv", [("text", "label", "kind"), *topic])
    np.save(folder / "prompt.npy", (np.arange(96).reshape(3, 32) % 7 - 3).astype(np.float32) / 8)


def _rows(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _tasks(folder: Path) -> None:
    folder.mkdir()
    (folder / "base_models.yaml").write_text("small: {path: base}\n")
    (folder / "mood.yaml").write_text(MOOD)
    (folder / "topic.yaml").write_text(TOPIC)


def _history() -> None:
    _say("run", "mood")
    _recipe("mood", SECOND_RECIPE)
    _say("run", "mood")
    _say("rollback", "mood", "--reason", "complaints about version 2")
    _say("import", "data/prompt.npy", "--task", "mood")
    _say("run", "topic")
    _recipe("topic", PREFIX_RECIPE)
    _say("run", "topic")
    _say("promote", "topic@1", "--alias", "staging", "--reason", "try it with friends")
    _say("release", "promote", "spring", "mood@2", "topic@1", "--override", "--reason", "both together")
    _say("run", "mood")
    _say("run", "topic")


def _recipe(task: str, recipe: str) -> None:
    path = Path("tasks") / f"{task}.yaml"
    lines = [recipe if line.startswith("tune:") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")


def _say(*arguments: str) -> None:
    print("ptp", *arguments, "->", *ptp(*arguments))


def _key(path: Path) -> Path:
    """A private key for this run alone; its public half stays."""
    key = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    Path("trusted.pem").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def _tidy(home: Path) -> None:
    """Leave the store and the ledger alone: no lock, no cache, no address of the machine, and of the pages, which
    nothing reads, none.
    """
    old, new = sqlite3.connect(home / "ledger.db"), home.parent / "ledger.db"
    old.execute("VACUUM INTO ?", [str(new)])
    old.close()
    with sqlite3.connect(new) as connection:
        connection.execute("DELETE FROM probe")
        connection.execute("DELETE FROM lease")
    connection.close()
    store = home.parent / "store"
    (home / "store").rename(store)
    shutil.rmtree(home)
    home.mkdir()
    store.rename(home / "store")
    new.rename(home / "ledger.db")
    shutil.rmtree(home / "store" / ".put", ignore_errors=True)
    (home / "store" / ".lock").unlink(missing_ok=True)
    for page in (home / "store").rglob("report-*.html"):
        page.unlink()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
