"""Why a trial did not train to its end, and in words what a prompt answers."""

from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks.fixtures.prompts import a_task, an_artifact
from ptpipeline.records.prompts import Dropped, Generation, Trial

DROPPED = Dropped(step=8, dev=0.5, least=0.75)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, None),
        ({"error": "NaN loss"}, "NaN loss"),
        ({"dropped": DROPPED}, "dropped at step 8: dev 0.5000 is below 0.7500"),
        ({"error": "NaN loss", "dropped": DROPPED}, "NaN loss"),
    ],
)
def test_a_trial_that_ended_early_says_why(fields: dict[str, Any], why: str | None) -> None:
    assert Trial(name="seed 1", best_dev=0.5, best_step=8, **fields).ended == why


def test_what_a_prompt_answers_is_said_in_words() -> None:
    manifest = an_artifact(a_task()).manifest
    assert manifest.answers == "labels bad, good"
    assert manifest.model_copy(update={"labels": {}}).answers == "nothing by itself"
    writing = manifest.model_copy(update={"labels": {}, "generate": Generation(max_new_tokens=4)})
    assert writing.answers == "free text of at most 4 tokens"


@pytest.mark.parametrize("tokens", [0, 1025])
def test_a_text_has_a_bound_that_a_server_can_keep(tokens: int) -> None:
    with pytest.raises(ValidationError, match="max_new_tokens"):
        Generation(max_new_tokens=tokens)
    assert [Generation(max_new_tokens=bound).max_new_tokens for bound in (1, 1024)] == [1, 1024]
