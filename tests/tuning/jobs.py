"""Small jobs over random tiny models, for tests of the gang."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from ptpipeline.data.tokens import EncodedRow, FreeText, LabelTokens, TaskText
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import SoftPrompt
from ptpipeline.prompts.initialise import compute_activations
from ptpipeline.records.prompts import Generation
from ptpipeline.task.data import Data, Source
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Gate, Task
from ptpipeline.task.template import parse_template
from ptpipeline.tuning.member import Job

SECRET = b"s" * 32  # seals the checkpoints of these tests
LABELS = LabelTokens(("no", "yes"), ((41,), (42, 43)))


def declared(name: str, seed: int = 0, **tune: object) -> Task:
    """A task of two labels with a short recipe."""
    return Task(
        name=name,
        base_model="tiny",
        data=Data(source=Source(path="unused.csv", format="csv"), text="text", label="label"),
        template="{text}",
        labels={"no": "no", "yes": "yes"},
        tune=Tune(
            **(
                {
                    "num_virtual_tokens": 3,
                    "steps": 6,
                    "batch_size": 4,
                    "warmup_steps": 2,
                    "eval_every": 2,
                    "seed": seed,
                    "store_dtype": "float32",
                }
                | tune
            )
        ),  # type: ignore[arg-type]
        gate=Gate(minimum=0.5),
    )


def job(base: FrozenBase, name: str, seed: int = 0, **tune: object) -> Job:
    """A job whose label depends on whether a token of the text is in the upper half of the vocabulary.

    Its prompt starts from the base's embeddings by a seeded draw, in the base's type.
    """
    task = declared(name, seed, **tune)
    generator = torch.Generator().manual_seed(seed + 100)
    rows = []
    for index in range(40):
        ids = torch.randint(0, 40, (int(torch.randint(2, 9, (1,), generator=generator)),), generator=generator).tolist()
        label = int(max(ids) > 30)
        rows.append(EncodedRow(str(index), ids, LABELS.ids[label], LABELS.names[label]))
    text = TaskText(name, parse_template("{text}"), LABELS, 100, lambda text, special: [])
    return Job(name, task, task.tune, first_prompt(base, task.tune), text, rows[:28], rows[28:])


def first_prompt(base: FrozenBase, tune: Tune) -> SoftPrompt:
    """Embeddings of random tokens by the recipe's seed, or their activations for a prefix."""
    ids = torch.randint(0, 97, (tune.num_virtual_tokens,), generator=torch.Generator().manual_seed(tune.seed))
    embeddings = base.embed(ids).detach()
    return compute_activations(base, embeddings) if tune.method == "prefix" else embeddings


END = 2  # the token that the random models stop at


def words(base: FrozenBase) -> FrozenBase:
    """The base with a tokenizer that writes token ids as numbers: `7 8`."""
    tokenizer = SimpleNamespace(eos_token_id=END, decode=lambda ids, **options: " ".join(map(str, ids)))
    return replace(base, tokenizer=tokenizer)


def text_job(base: FrozenBase, name: str, seed: int = 0, **tune: object) -> Job:
    """A generation job on the rows of `job`: a text is to be followed by `7 8` and the end, or by `9` and the end."""
    plain = job(base, name, seed, **tune)
    data = plain.task.data.model_copy(update={"label": None, "target": "target"})
    given = {
        "labels": {},
        "data": data,
        "generate": Generation(max_new_tokens=4),
        "gate": Gate(metric="token_f1", minimum=0.5),
    }
    targets = {"yes": (7, 8, END), "no": (9, END)}
    train, dev = (
        [row._replace(target=targets[row.label], label=" ".join(map(str, targets[row.label][:-1]))) for row in rows]
        for rows in (plain.train, plain.dev)
    )
    text = plain.text._replace(labels=LabelTokens((), ()), free=FreeText(4, END))
    return plain._replace(task=plain.task.model_copy(update=given), text=text, train=train, dev=dev)
