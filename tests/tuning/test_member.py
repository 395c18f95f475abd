"""One member of a gang, decision by decision: what is kept, when it stops, what ends it, what its tracker is told."""

from typing import Any

import pytest
import torch

from ptpipeline.errors import TrainingError
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import list_tensors
from ptpipeline.records.prompts import CurvePoint
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Member, Pull, build_optimizer, compute_learning_rate, compute_token_norms
from ptpipeline.tuning.tracker import NoTracker
from tests.models.families import family
from tests.tuning.jobs import declared, job

ROWS = 12  # dev rows of a job


@pytest.fixture(scope="module")
def base() -> CausalBase:
    return family("llama", torch.float32)


def a_member(base: CausalBase, **tune: Any) -> Member:
    return Member.of(job(base, "a", **tune))


def judged(member: Member, step: int, right: int) -> float:
    """Dev rows of which so many are answered right, at that step, behind a prompt of that number."""
    labels = [row.label for row in member.job.dev]
    other = {"yes": "no", "no": "yes"}
    answers = [label if place < right else other[label] for place, label in enumerate(labels)]
    member.step = step
    return member.judge(torch.full((3, 32), float(step)), answers)


def kept(member: Member) -> tuple[int, float, int]:
    assert member.best is not None
    return member.best_step, float(list_tensors(member.best)[0][0, 0]), member.stale


def test_the_best_prompt_so_far_is_kept(base: CausalBase) -> None:
    member = a_member(base, patience=9)
    for step, right, expected in ((2, 5, (2, 2.0, 0)), (4, 8, (4, 4.0, 0)), (6, 7, (4, 4.0, 1))):
        judged(member, step, right)
        assert kept(member) == expected
    assert member.best_dev == 8 / ROWS


def test_of_equal_prompts_the_first_is_kept(base: CausalBase) -> None:
    member = a_member(base, patience=9)
    judged(member, 2, 8), judged(member, 4, 8)
    assert kept(member) == (2, 2.0, 1)


def test_the_first_prompt_is_kept_however_bad_it_is(base: CausalBase) -> None:
    member = a_member(base)
    assert judged(member, 2, 0) == 0.0
    assert kept(member) == (2, 2.0, 0)


def test_a_gain_lets_patience_begin_anew(base: CausalBase) -> None:
    member = a_member(base, patience=2, steps=40)
    for step, right in ((2, 5), (4, 5), (6, 6), (8, 6)):
        judged(member, step, right)
    assert (member.stale, member.active) == (1, True)
    judged(member, 10, 6)
    assert (member.stale, member.stopped_early, member.active) == (2, True, False)


def test_a_member_at_its_last_step_did_not_stop_early(base: CausalBase) -> None:
    member = a_member(base, patience=1, steps=4)
    judged(member, 2, 5)
    judged(member, 4, 5)
    assert (member.stale, member.stopped_early, member.active) == (1, False, False)


@pytest.mark.parametrize(("step", "due"), [(1, False), (2, True), (3, False), (4, True), (5, True)])
def test_dev_is_asked_every_so_many_steps_and_at_the_last(base: CausalBase, step: int, due: bool) -> None:
    member = a_member(base, eval_every=2, steps=5)
    member.step = step
    assert member.due == due
    member.error = TrainingError("it ended")
    assert not member.due


# ---------------------------------------------------------------- what ends it


def gradient_of(member: Member, value: float = 1.0) -> list[torch.Tensor]:
    return [torch.full_like(tensor, value) for tensor in list_tensors(member.parameterisation.build_prompt())]


def accumulated(member: Member, loss: float, gradients: list[torch.Tensor | None]) -> None:
    member.accumulate(loss, member.parameterisation.build_prompt(), gradients)


@pytest.mark.parametrize("fault", ["loss", "gradient", "no gradient"])
def test_what_is_not_finite_ends_a_member_and_moves_nothing(base: CausalBase, fault: str) -> None:
    member = a_member(base)
    before = member.parameterisation.build_prompt().detach().clone()  # type: ignore[union-attr]
    gradients: list[torch.Tensor | None] = [*gradient_of(member)]
    if fault == "gradient":
        assert gradients[0] is not None
        gradients[0][1, 1] = float("inf")
    if fault == "no gradient":
        gradients = [None]
    accumulated(member, float("nan") if fault == "loss" else 1.0, gradients)
    assert "not finite at step 1" in str(member.error)
    assert "check the weights of the base" in str(member.error)  # no learning rate moved anything yet
    assert all(parameter.grad is None for parameter in member.parameterisation.parameters())
    torch.testing.assert_close(member.parameterisation.build_prompt(), before)


def test_a_sound_step_moves_the_prompt_and_clears_its_gradient(base: CausalBase) -> None:
    member = a_member(base)
    before = member.parameterisation.build_prompt().detach().clone()  # type: ignore[union-attr]
    accumulated(member, 1.0, [*gradient_of(member)])
    member.apply()
    assert (member.error, member.step, member.losses) == (None, 1, [1.0])
    assert not torch.equal(torch.as_tensor(member.parameterisation.build_prompt()), before)
    assert all(parameter.grad is None for parameter in member.parameterisation.parameters())


def test_gradients_that_are_finite_and_whose_norm_is_not_end_a_member(base: CausalBase) -> None:
    member = a_member(base)
    before = member.parameterisation.build_prompt().detach().clone()  # type: ignore[union-attr]
    accumulated(member, 1.0, [*gradient_of(member, 3e38)])
    member.apply()
    assert member.error is not None
    torch.testing.assert_close(member.parameterisation.build_prompt(), before)


def test_a_gradient_is_clipped_to_the_recipes_norm(base: CausalBase) -> None:
    norms: list[float] = []
    for value in (1.0, 1000.0):
        member = a_member(base, max_grad_norm=0.5)
        accumulated(member, 1.0, [*gradient_of(member, value)])
        real = member.optimizer.step

        def stepped(member: Member = member, real: Any = real) -> None:
            norms.append(float(torch.cat([p.grad.flatten() for p in member.parameterisation.parameters()]).norm()))
            real()

        member.optimizer.step = stepped  # type: ignore[method-assign, assignment]
        member.apply()
    assert norms == pytest.approx([0.5, 0.5], rel=1e-3)


def test_a_pull_adds_its_penalty_to_the_loss_and_to_the_gradient(base: CausalBase) -> None:
    plain = job(base, "a")
    pulled = Member.of(plain._replace(pull=Pull(torch.zeros(3, 32), 0.5)))
    accumulated(pulled, 1.0, [torch.zeros(3, 32)])
    prompt = torch.as_tensor(plain.initial)
    assert pulled.losses[0] == pytest.approx(1.0 + 0.5 * float(prompt.square().sum(-1).mean()), rel=1e-5)
    (parameter,) = pulled.parameterisation.parameters()
    torch.testing.assert_close(parameter.grad, 0.5 * 2 * prompt / 3)


def test_what_stands_in_front_of_a_prompt_is_not_among_the_gradients_of_its_tokens(base: CausalBase) -> None:
    member = a_member(base)
    behind = torch.cat([torch.full((1, 32), 9.0), torch.as_tensor(member.parameterisation.build_prompt())])
    member.accumulate(1.0, behind, [torch.arange(4.0)[:, None].expand(4, 32)])
    torch.testing.assert_close(member.gradient_norms, torch.tensor([1.0, 2.0, 3.0]) * 32**0.5)


def test_adafactor_is_set_as_in_the_paper_with_the_recipes_rate_and_decay() -> None:
    tune = declared("mood", optimizer="adafactor", learning_rate=0.3, weight_decay=0.01).tune
    [group] = build_optimizer(tune, [torch.nn.Parameter(torch.zeros(3, 2))]).param_groups
    expected = {"lr": 0.3, "weight_decay": 0.01, "decay_rate": -0.8}
    expected |= dict.fromkeys(("scale_parameter", "relative_step", "warmup_init"), False)
    assert {name: group[name] for name in expected} == expected


def test_the_best_prompt_of_a_member_that_failed_is_its_error(base: CausalBase) -> None:
    member = a_member(base)
    with pytest.raises(TrainingError, match="task a: nothing was trained"):
        member.require_best()
    judged(member, 2, 5)
    assert member.require_best() is member.best
    member.error = TrainingError("it diverged")
    with pytest.raises(TrainingError, match="it diverged"):
        member.require_best()


@pytest.mark.parametrize(("step", "rate"), [(1, 0.1), (10, 0.1)])
def test_a_constant_rate_without_warmup_is_the_recipes(step: int, rate: float) -> None:
    tune = declared("mood", schedule="constant", warmup_steps=0, learning_rate=0.1, steps=10).tune
    assert compute_learning_rate(tune, step) == rate


def test_token_norms_are_over_all_that_a_prompt_holds_of_a_token() -> None:
    keys = torch.zeros(2, 2, 3, 4)  # layers, heads, tokens, width
    keys[1, 0, 2, 3], keys[0, 1, 2, 0], keys[0, 0, 1, 1] = 3.0, 4.0, 2.0
    assert compute_token_norms([keys]).tolist() == [0.0, 2.0, 5.0]
    assert compute_token_norms([keys, keys]).tolist() == pytest.approx([0.0, 8**0.5, 50**0.5])


# ---------------------------------------------------------------- what the tracker is told


class Told(NoTracker):
    """Remembers how each run ended; stops the process at a point, if asked."""

    def __init__(self, interrupt: bool = False) -> None:
        self.interrupt = interrupt
        self.ended: dict[str | None, str] = {}

    def start(self, task: str, params: object, tags: object, run: str | None) -> str | None:
        return task

    def log_point(self, run: str | None, point: CurvePoint) -> None:
        if self.interrupt:
            raise KeyboardInterrupt

    def finish(self, run: str | None, status: str) -> None:
        self.ended[run] = status


def test_a_run_ends_as_its_member_did(base: CausalBase) -> None:
    told = Told()
    run_gang(base, [job(base, "a"), job(base, "b", learning_rate=1e300)], told, lambda line: None)
    assert told.ended == {"a": "FINISHED", "b": "FAILED"}


def test_an_interrupted_training_leaves_no_run_open(base: CausalBase) -> None:
    told = Told(interrupt=True)
    with pytest.raises(KeyboardInterrupt):
        run_gang(base, [job(base, "a"), job(base, "b")], told, lambda line: None)
    assert told.ended == {"a": "KILLED", "b": "KILLED"}


def test_the_curve_begins_at_the_first_step_and_each_point_has_the_losses_since_the_last(base: CausalBase) -> None:
    member = a_member(base)
    for step, losses in ((1, [4.0]), (3, [1.0, 2.0])):
        member.step, member.losses = step, [*member.losses, *losses]
        member.record(None)
    assert [point.loss for point in member.curve] == [4.0, 1.5]
    [trained] = run_gang(base, [job(base, "a", steps=5, eval_every=5)], NoTracker(), lambda line: None).members
    assert [point.step for point in trained.curve] == [1, 5]
