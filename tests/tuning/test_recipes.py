"""What a recipe unfolds into, which of its trials is kept, and what it is told."""

import pytest
import torch
from pydantic import ValidationError

from ptpipeline.errors import TrainingError
from ptpipeline.task import Tune
from ptpipeline.tuning.advice import advice
from ptpipeline.tuning.member import Member
from ptpipeline.tuning.tune import chosen
from tests.models.families import family
from tests.tuning.jobs import job


def test_a_search_unfolds_into_every_combination() -> None:
    variants = Tune(search={"length": [4, 8], "seed": [1, 2, 3]}, learning_rate=0.5).variants()
    assert [(v.num_virtual_tokens, v.seed, v.learning_rate, v.search) for v in variants] == [(p, s, 0.5, None) for p in (4, 8) for s in (1, 2, 3)]


def test_an_ensemble_unfolds_into_consecutive_seeds() -> None:
    variants = Tune(method="ensemble", ensemble={"members": 3}, seed=7).variants()
    assert [(v.method, v.seed, v.ensemble) for v in variants] == [("prompt", 7, None), ("prompt", 8, None), ("prompt", 9, None)]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"method": "ensemble"}, "go together"),
        ({"ensemble": {"members": 3}}, "go together"),
        ({"method": "multitask"}, "`shared`, a name in shared_prompts.yaml"),
        ({"method": "multitask", "shared": "s", "init": "xavier"}, "leave `init` out"),
        ({"encoder": "mlp"}, "prompt encoder of p_tuning; prompt has none"),
        ({"encoder_width": 4}, "prompt has no network"),
        ({"method": "prefix", "placement": "after_bos"}, "is for embeddings"),
        ({"method": "ensemble", "ensemble": {}, "search": {"seed": [1, 2]}}, "an ensemble keeps all"),
        ({"search": {"seed": [1]}}, "1 combinations"),
        ({"search": {"seed": [1, 1]}}, "`seed` lists a value twice"),
        ({"search": {"seed": list(range(9)), "learning_rate": [0.1 * i for i in range(1, 9)]}}, "72 combinations"),
        ({"search": {"length": "shrink"}}, "grow"),
        ({"search": {"length": [4, 8]}, "init": {"version": "a@1"}}, "leave `search.length` out"),
        ({"method": "multitask", "shared": "s", "search": {"length": [4, 8]}}, "leave `search.length` out"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(recipe: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Tune(**recipe)  # type: ignore[arg-type]


def trial(length: int, dev: float, error: str | None = None) -> Member:
    member = Member.of(job(family("llama"), f"t-{length}", num_virtual_tokens=length))
    member.best, member.best_dev = torch.zeros(length, 32), dev
    member.error = TrainingError(error) if error else None
    return member


@pytest.mark.parametrize(
    ("devs", "kept"),
    [((0.5, 0.6, 0.7), 32), ((0.5, 0.5, 0.9), 8), ((0.5, 0.6, 0.6), 16), ((0.7, 0.6, 0.9), 8)],
)
def test_growing_keeps_the_shortest_that_the_next_does_not_better(devs: tuple[float, ...], kept: int) -> None:
    members = [trial(length, dev) for length, dev in zip((8, 16, 32), devs, strict=True)]
    assert chosen(Tune(search={"length": "grow"}), members).job.tune.num_virtual_tokens == kept


def test_the_best_on_dev_is_kept_and_failures_are_not() -> None:
    members = [trial(2, 0.5), trial(3, 0.8, "diverged"), trial(4, 0.7)]
    assert chosen(Tune(search={"length": [2, 3, 4]}), members) is members[2]


def test_a_search_that_failed_altogether_is_an_error() -> None:
    with pytest.raises(TrainingError, match="diverged"):
        chosen(Tune(search={"seed": [1, 2]}), [trial(2, 0.5, "diverged"), trial(2, 0.5, "diverged too")])


def test_advice_names_lengths_contexts_and_small_bases() -> None:
    base = family("llama")  # a context of 128
    assert [line.split(":")[0] for line in advice(Tune(num_virtual_tokens=101), base)] == ["tune.num_virtual_tokens", "tune.num_virtual_tokens", "base_model"]
    assert [line.split(":")[0] for line in advice(Tune(num_virtual_tokens=8), base)] == ["base_model"]
