"""Golden numbers: when they move, ENGINE_VERSION has to, so that every prompt is trained anew."""

import pytest
import torch

import ptpipeline.tuning.member as member_module
from ptpipeline.tuning.key import ENGINE_VERSION
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import family
from tests.tuning.jobs import job

GOLDEN = {1: (5.876815, 4.054316, 1.649338)}


def test_numbers_move_with_the_engine_version_only(monkeypatch: pytest.MonkeyPatch) -> None:
    base = family("llama")
    start = torch.sin(torch.arange(96, dtype=torch.float64)).reshape(3, 32) * 0.2
    monkeypatch.setattr(member_module, "initial_prompt", lambda *_: start.clone())
    member = run_gang(base, [job("golden", learning_rate=0.05)], NoTracker(), lambda line: None).members[0]
    found = (member.curve[0].loss, member.curve[-1].loss, float(member.prompt.norm()))
    assert found == pytest.approx(GOLDEN[ENGINE_VERSION], rel=1e-4), "raise ENGINE_VERSION and add the new numbers"
