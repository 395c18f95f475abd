"""Small jobs over random tiny models, for tests of the gang."""

import torch

from ptpipeline.data.tokens import EncodedRow, LabelTokens, TaskText
from ptpipeline.records import Snapshot, SplitInfo
from ptpipeline.task import Data, Gate, Source, Task, Tune
from ptpipeline.tuning.member import Job

LABELS = LabelTokens(("no", "yes"), ((41,), (42, 43)))


def job(name: str, seed: int = 0, **tune: object) -> Job:
    """A job whose label depends on whether a token of the text is in the upper half of the vocabulary."""
    task = Task(
        name=name,
        base_model="tiny",
        data=Data(source=Source(path="unused.csv", format="csv"), text="text", label="label"),
        template="{text}",
        labels={"no": "no", "yes": "yes"},
        tune=Tune(**({"num_virtual_tokens": 3, "steps": 6, "batch_size": 4, "warmup_steps": 2, "eval_every": 2, "seed": seed, "store_dtype": "float32"} | tune)),  # type: ignore[arg-type]
        gate=Gate(minimum=0.5),
    )
    generator = torch.Generator().manual_seed(seed + 100)
    rows = []
    for index in range(40):
        ids = torch.randint(0, 40, (int(torch.randint(2, 9, (1,), generator=generator)),), generator=generator).tolist()
        rows.append(EncodedRow(str(index), ids, int(max(ids) > 30)))
    info = SplitInfo(rows=20, labels={}, digest="0" * 64)
    snapshot = Snapshot(task=name, digest="0" * 64, source="-", source_key="-", train=info, dev=info, test=info, checks=[])
    return Job(task, snapshot, TaskText(name, "{text}", LABELS, 100, lambda text, special: []), rows[:28], rows[28:])
