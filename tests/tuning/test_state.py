"""The bytes of a gang between two steps: what those of before lack counts as nothing."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load, save

from ptpipeline.records.prompts import Cost
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.state import COST, pack, unpack
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import family
from tests.tuning.jobs import job


def test_a_checkpoint_of_before_costs_and_searches_counts_on_from_nothing(tmp_path: Path) -> None:
    base = family("llama", torch.float32)
    wanted = [job(base, "a", steps=2)]
    gang = run_gang(base, wanted, NoTracker(), lambda line: None)
    assert gang.members[0].cost.tokens > 0
    body, path = pack(gang.members, gang.clock), tmp_path / "checkpoint.safetensors"
    path.write_bytes(body)
    with safe_open(path, "pt") as opened:
        stated = json.loads(opened.metadata()["state"])
    for name in (*COST, "dropped"):
        del stated["members"][0][name]
    (member,) = unpack(save(load(body), {"state": json.dumps(stated)}), wanted).members
    assert (member.cost, member.dropped) == (Cost(tokens=0, seconds=0, processor_seconds=0), None)
    assert (member.step, member.best_dev) == (2, gang.members[0].best_dev)
