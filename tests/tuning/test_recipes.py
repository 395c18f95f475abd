"""What a recipe unfolds into, which of its trials is kept, and what it is told."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save

from ptpipeline.errors import TaskFileError, TrainingError
from ptpipeline.models.inputs import KeyValues, SoftPrompt
from ptpipeline.prompts.tensors import name_tensors, round_to_stored
from ptpipeline.task.policy import Bytes, Checks, Gate
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Task
from ptpipeline.tuning.advice import advise
from ptpipeline.tuning.member import Member
from ptpipeline.tuning.tune import check_bytes, choose_member
from tests.models.families import family
from tests.tuning.jobs import declared, job


def test_a_search_unfolds_into_every_combination() -> None:
    variants = Tune(search={"length": [4, 8], "seed": [1, 2, 3]}, learning_rate=0.5).variants()
    assert [(v.num_virtual_tokens, v.seed, v.learning_rate, v.search) for v in variants] == [
        (p, s, 0.5, None) for p in (4, 8) for s in (1, 2, 3)
    ]


def test_an_ensemble_unfolds_into_consecutive_seeds() -> None:
    variants = Tune(method="ensemble", ensemble={"members": 3}, seed=7).variants()
    assert [(v.method, v.seed, v.ensemble) for v in variants] == [
        ("prompt", 7, None),
        ("prompt", 8, None),
        ("prompt", 9, None),
    ]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"method": "ensemble"}, "go together"),
        ({"ensemble": {"members": 3}}, "go together"),
        ({"method": "multitask"}, "`shared`, a name in shared_prompts.yaml"),
        ({"method": "multitask", "shared": "s", "init": "xavier"}, "remove `init`"),
        ({"encoder": "mlp"}, "prompt encoder of p_tuning; prompt has none"),
        ({"encoder_width": 4}, "prompt has no network"),
        ({"method": "prefix", "placement": "after_bos"}, "is for embeddings"),
        ({"method": "ensemble", "ensemble": {}, "search": {"seed": [1, 2]}}, "an ensemble keeps all"),
        ({"search": {"seed": [1]}}, "1 combinations"),
        ({"search": {"seed": [1, 1]}}, "`seed` lists a value twice"),
        ({"search": {"seed": list(range(9)), "learning_rate": [0.1 * i for i in range(1, 9)]}}, "72 combinations"),
        ({"search": {"length": "shrink"}}, "grow"),
        ({"search": {"length": [4, 8]}, "init": {"version": "a@1"}}, "remove `search.length`"),
        ({"method": "multitask", "shared": "s", "search": {"length": [4, 8]}}, "remove `search.length`"),
        ({"schedule": "constant", "final_fraction": 0.1}, "a constant rate does not decay: remove it"),
        (
            {"steps": 20, "final_fraction": 0.5},
            r"warms up through all 20 steps \(`warmup_steps` is 20\) and never decays",
        ),
        (
            {"search": {"length": "grow"}, "num_virtual_tokens": 16},
            "`search.length` lists the values to try instead of `num_virtual_tokens`",
        ),
        (
            {"search": {"learning_rate": [0.1, 0.2]}, "learning_rate": 0.1},
            "`search.learning_rate` lists the values to try instead of `learning_rate`",
        ),
        ({"search": {"seed": [1, 2]}, "seed": 1}, "`search.seed` lists the values to try instead of `seed`"),
        ({"search": {"length": "grow", "halving": 2}}, "`length: grow` compares lengths that all trained to the end"),
        (
            {"search": {"seed": [1, 2], "halving": 2}, "steps": 50},
            r"no part of the 50 steps ends at a dev evaluation \(`eval_every` is 50\) behind the 20 steps of warm-up",
        ),
        ({"search": {"seed": [1, 2], "halving": 2}, "warmup_steps": 250}, "no trial would end early"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(recipe: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Tune(**recipe)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "recipe",
    [
        {"schedule": "constant", "warmup_steps": 5},
        {"steps": 21, "final_fraction": 0.5},
        {"steps": 5},
        {"search": {"length": [4, 8]}, "learning_rate": 0.1, "seed": 3},
        {"search": {"seed": [1, 2]}, "num_virtual_tokens": 4},
    ],
)
def test_a_setting_that_takes_part_is_accepted(recipe: dict[str, object]) -> None:
    Tune(**recipe)  # type: ignore[arg-type]


def test_halving_is_part_of_a_recipe_and_its_absence_is_not() -> None:
    """So what was searched before it existed is not searched again."""
    plain, halved = (declared("movies", search={"learning_rate": [0.1, 0.2]} | more) for more in ({}, {"halving": 2}))
    assert "halving" not in plain.tune.model_dump(mode="json", exclude_defaults=True)["search"]
    assert plain.recipe_digest() != halved.recipe_digest()


@pytest.mark.parametrize(
    ("recipe", "trials", "rungs"),
    [
        ({"steps": 300, "eval_every": 50}, 2, [(100, 1), (200, 1)]),
        ({"steps": 300, "eval_every": 50}, 24, [(100, 8), (200, 3)]),
        ({"steps": 310, "eval_every": 20}, 24, [(120, 8), (220, 3)]),
        ({"steps": 120, "eval_every": 70}, 25, [(70, 9)]),
        ({"steps": 300, "eval_every": 50, "warmup_steps": 100}, 24, [(200, 8)]),
    ],
)
def test_rungs_are_dev_evaluations_behind_the_warm_up(
    recipe: dict[str, int], trials: int, rungs: list[tuple[int, int]]
) -> None:
    tune = Tune(search={"seed": list(range(trials)), "halving": 3}, **recipe)  # type: ignore[arg-type]
    assert [tuple(rung) for rung in tune.rungs()] == rungs
    assert [variant.rungs() for variant in tune.variants()] == [()] * trials


def bounded(max_bytes: int | None, **tune: object) -> Task:
    task = declared("movies", **tune)
    return task.model_copy(update={"gate": Gate(minimum=0.5, checks=Checks(bytes=Bytes(max_bytes=max_bytes)))})


@pytest.mark.parametrize(
    ("recipe", "prompts"),
    [
        ({"num_virtual_tokens": 4}, [torch.zeros(4, 8)]),
        ({"num_virtual_tokens": 4, "store_dtype": "float16"}, [torch.zeros(4, 8)]),
        (
            {"method": "prefix", "num_virtual_tokens": 4},
            [KeyValues(torch.zeros(2, 2, 4, 16), torch.zeros(2, 2, 4, 16))],
        ),
        (
            {"method": "ensemble", "ensemble": {"members": 2}, "num_virtual_tokens": 4},
            [torch.zeros(4, 8), torch.ones(4, 8)],
        ),
    ],
)
def test_a_recipe_is_refused_from_the_first_byte_that_its_limit_lacks(
    recipe: dict[str, object], prompts: list[SoftPrompt]
) -> None:
    dtype = recipe.get("store_dtype", "float32")
    needed = sum(len(save(name_tensors(round_to_stored(prompt, str(dtype))))) for prompt in prompts)
    check_bytes(bounded(needed, **recipe), prompts)
    with pytest.raises(
        TaskFileError,
        match=rf"^task movies: tune\.num_virtual_tokens: .* of 4 virtual tokens in {dtype} needs {needed} bytes, "
        rf"gate\.checks\.bytes\.max_bytes allows {needed - 1}; take fewer",
    ):
        check_bytes(bounded(needed - 1, **recipe), prompts)


def test_a_search_is_refused_for_its_longest_trial() -> None:
    task = bounded(None)
    check_bytes(task, [torch.zeros(3, 8), torch.zeros(100, 64)])
    with pytest.raises(
        TaskFileError,
        match=r"400 virtual tokens in float32 needs \d+ bytes, gate\.checks\.bytes\.max_bytes allows 65536; take "
        r"fewer, or store_dtype: float16, or raise gate\.checks\.bytes\.max_bytes",
    ):
        check_bytes(task, [torch.zeros(3, 8), torch.zeros(400, 64)])


@pytest.mark.parametrize(
    ("bytes_of_limit", "dtype", "halved"), [(5000, "float32", True), (4000, "float32", False), (5000, "float16", False)]
)
def test_half_the_bytes_are_advised_where_they_are_enough(bytes_of_limit: int, dtype: str, halved: bool) -> None:
    prompt = torch.zeros(36 if dtype == "float32" else 72, 64)  # some 9,300 bytes
    with pytest.raises(TaskFileError) as refused:
        check_bytes(bounded(bytes_of_limit, store_dtype=dtype), [prompt])
    assert ("store_dtype: float16" in str(refused.value)) == halved


def test_no_gate_allows_more_than_an_artifact_holds() -> None:
    large = torch.zeros(1, 1).expand(1000, 17_000)
    with pytest.raises(
        TaskFileError,
        match=r"needs 68000\d+ bytes, an artifact holds at most 67108864; take fewer, or store_dtype: float16$",
    ):
        check_bytes(bounded(2**40), [large])


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
    assert choose_member(Tune(search={"length": "grow"}), members).job.tune.num_virtual_tokens == kept


def test_the_best_on_dev_is_kept_and_failures_are_not() -> None:
    members = [trial(2, 0.5), trial(3, 0.8, "diverged"), trial(4, 0.7)]
    assert choose_member(Tune(search={"length": [2, 3, 4]}), members) is members[2]


def test_a_search_that_failed_altogether_is_an_error() -> None:
    with pytest.raises(TrainingError, match="diverged"):
        choose_member(Tune(search={"seed": [1, 2]}), [trial(2, 0.5, "diverged"), trial(2, 0.5, "diverged too")])


def test_advice_names_lengths_contexts_and_small_bases() -> None:
    base = family("llama")  # a context of 128
    assert [line.split(":")[0] for line in advise(Tune(num_virtual_tokens=101), base, 16)] == [
        "tune.num_virtual_tokens",
        "tune.num_virtual_tokens",
        "base_model",
    ]
    assert [line.split(":")[0] for line in advise(Tune(num_virtual_tokens=8), base, 16)] == ["base_model"]
    assert advise(Tune(num_virtual_tokens=8), base, 15)[0].startswith(
        "tune.batch_size: 16 rows a step, and there are 15"
    )


def test_advice_on_lengths_is_for_embeddings_and_for_more_than_a_quarter_of_the_context() -> None:
    base = family("llama")  # a context of 128
    assert not any("gained nothing" in line for line in advise(Tune(method="prefix", num_virtual_tokens=101), base, 16))
    assert [
        any("of the context" in line for line in advise(Tune(num_virtual_tokens=count), base, 16)) for count in (32, 33)
    ] == [False, True]
