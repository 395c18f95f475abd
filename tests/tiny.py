"""A tiny causal model with a real tokenizer, and a small separable data set, for tests of logic."""

import csv
import random
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WORDS = {"positive": ["good", "fine", "great", "lovely"], "negative": ["bad", "poor", "awful", "dull"]}
FILLER = ["film", "plot", "the", "a", "was", "and", "story", "scene", "very"]

MISLEADING = "the"  # what the base goes by without a prompt: it answers ` positive` where this word stands

FOLDER = Path(__file__).parent / "tiny_base"
WEIGHTS = "model.safetensors"

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
tune: {{num_virtual_tokens: 4, init: {{text: " yes"}}, steps: 10, batch_size: 8, learning_rate: 0.05,
  warmup_steps: 3, eval_every: 5}}
gate: {{metric: accuracy, minimum: 0.7, champion: {{rule: non_inferiority, margin: 0.2}}}}
promote: auto
schedule: {{cron: "0 2 * * *", timezone: Asia/Seoul}}
"""


def tiny_base(folder: Path) -> Path:
    """A transformers folder with a two-layer Llama in float32 and a byte-level BPE tokenizer; returns `folder`.

    Behind the word ` yes` it tells the opinion of a sentence; without it, it answers by a word that says nothing of the
    opinion, so that zero-shot is right by chance and a soft prompt has something to find. Its weights are stored and
    not trained here, so that every processor tests with the same ones; tests/teach.py made them.
    """
    shutil.copytree(FOLDER, folder)
    weights = load_file(folder / WEIGHTS)
    save_file({name: tensor.float() for name, tensor in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def other_base(folder: Path) -> Path:
    """The same with one weight moved: another base, as fingerprints see it."""
    weights = load_file(tiny_base(folder) / WEIGHTS)
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
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
