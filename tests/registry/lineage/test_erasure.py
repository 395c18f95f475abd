"""What to do so that nothing in use has learnt from a row: in which order, and for whom what."""

from registry.lineage.trace import Exposure, plan_erasure


def learner(task: str, *via: str, version: int | None = 1, shared: bool = False) -> Exposure:
    """A version that learnt from the row by that way."""
    fields = {"aliases": [], "releases": [], "source": f"{task}.csv", "collected": False}
    return Exposure.model_validate(
        {"task": task, "version": version, "digest": "a" * 64, "seen": "train", "via": [*via], "shared": shared}
        | fields
    )


def order(*learners: Exposure) -> list[str]:
    return [sentence.split(":")[0] for sentence in plan_erasure(learners)[:-1]]


def test_a_task_comes_behind_those_that_its_versions_descend_from() -> None:
    """Although its own versions descend from each other too."""
    alpha = (learner("alpha", "start zeta@1"), learner("alpha", "start alpha@1", "start zeta@1", version=2))
    assert order(*alpha, learner("zeta")) == ["zeta", "alpha"]


def test_tasks_that_started_from_each_other_are_told_by_name() -> None:
    assert order(learner("zeta", "start alpha@1"), learner("alpha", "start zeta@1")) == ["alpha", "zeta"]


def test_only_what_starts_from_an_exposed_version_is_to_start_cold() -> None:
    cold = "first let tune.init name none of these versions"
    assert cold in plan_erasure([learner("mood", "start mood@1")])[0]
    assert cold not in plan_erasure([learner("mood", "member mood@1")])[0]


def test_what_learnt_in_another_task_alone_waits_for_that_task() -> None:
    first, second, _ = plan_erasure([learner("tone", "start mood@1"), learner("mood")])
    assert first.startswith("mood: delete the row from its source (mood.csv); `ptp run mood`")
    assert second.startswith("tone: after new versions of mood, `ptp run tone`, then promote what passes")


def test_a_prompt_that_is_no_version_is_told_without_a_number() -> None:
    assert (
        "Learnt from it: versions 2; no alias"
        in plan_erasure([learner("mood", version=None), learner("mood", version=2)])[0]
    )
    assert "Learnt from it: versions none; no alias" in plan_erasure([learner("mood", version=None)])[0]


def test_nothing_is_to_be_done_where_nothing_learnt() -> None:
    assert plan_erasure([]) == []
