"""Golden numbers: when they move, ENGINE_VERSION has to, so that every prompt is trained anew."""

import pytest
import torch

from ptpipeline.task.recipe import Tune
from ptpipeline.tuning.key import ENGINE_VERSION
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import family
from tests.tuning.jobs import job

GOLDEN = {3: (5.876815, 4.054316, 1.649338)}


DEFAULTS = {
    3: {
        "method": "prompt",
        "num_virtual_tokens": 16,
        "init": "sampled_vocab",
        "steps": 300,
        "batch_size": 16,
        "learning_rate": 0.01,
        "warmup_steps": 20,
        "final_fraction": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "eval_every": 50,
        "patience": 4,
        "seed": 0,
        "store_dtype": "float16",
        "placement": "before_bos",
        "encoder": "lstm",
        "optimizer": "adamw",
        "schedule": "linear",
    }
}


def test_numbers_move_with_the_engine_version_only() -> None:
    base = family("llama")
    start = torch.sin(torch.arange(96, dtype=torch.float64)).reshape(3, 32) * 0.2
    member = run_gang(
        base, [job(base, "golden", learning_rate=0.05)._replace(initial=start)], NoTracker(), lambda line: None
    ).members[0]
    found = (member.curve[0].loss, member.curve[-1].loss, float(member.parameterisation.build_prompt().detach().norm()))
    assert found == pytest.approx(GOLDEN[ENGINE_VERSION], rel=1e-4), "raise ENGINE_VERSION and add the new numbers"


def test_defaults_move_with_the_engine_version_only() -> None:
    """A recipe's digest leaves defaults out, so a changed default has to show here."""
    assert DEFAULTS[ENGINE_VERSION].items() <= Tune().model_dump(mode="json").items(), (
        "raise ENGINE_VERSION and add the new defaults"
    )
