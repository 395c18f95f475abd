"""Members with one shared prompt learn it together; teachers are distilled with the loss of the paper."""

from typing import Any

import pytest
import torch

from ptpipeline.errors import TrainingError
from ptpipeline.models.inputs import Input
from ptpipeline.prompts.parameterise import RankOne
from ptpipeline.prompts.tensors import pack
from ptpipeline.records.data import Snapshot, SplitInfo
from ptpipeline.records.prompts import Cost
from ptpipeline.task.recipe import SharedPrompt, Tune
from ptpipeline.task.task import Task
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Member
from ptpipeline.tuning.multitask import Sources, _adapt_recipe, _describe_shared, _require_sound, compute_shared_key
from ptpipeline.tuning.passes import build_examples, concatenated_backward, shared_backward
from ptpipeline.tuning.tracker import NoTracker
from tests.evaluation.probed import fields, tiny
from tests.models.families import family
from tests.tuning.jobs import declared, job

ROWS = [([5, 6, 7], (41,)), ([11, 12], (42, 43)), ([3], (41, 7))]


def test_distillation_equals_the_papers_formula() -> None:
    """Row by row on the plain model: cross entropy + .9 (divergence from the teacher + squared distance of states)."""
    base = family("llama")
    torch.manual_seed(0)
    prompt, teacher = torch.randn(4, 32, dtype=torch.float64) * 0.3, torch.randn(6, 32, dtype=torch.float64) * 0.3
    expected, tokens = torch.zeros(()), sum(len(target) for _, target in ROWS)
    for ids, target in ROWS:
        row = Input(ids, target[:-1], 0)
        ours, aims = base.concatenate([prompt], [row]), base.concatenate([teacher], [row])
        log_ours, log_aims = base.compute_logits(ours).log_softmax(-1), base.compute_logits(aims).log_softmax(-1)
        for step, token in enumerate(target):
            divergence = torch.nn.functional.kl_div(log_ours[step], log_aims[step], log_target=True, reduction="sum")
            apart = torch.nn.functional.mse_loss(ours[step].float(), aims[step].float())
            expected = expected - log_ours[step, token] + 0.9 * (divergence + apart)
    found = shared_backward(base, [prompt.requires_grad_()], build_examples([ROWS]), [teacher])
    torch.testing.assert_close(found[0], expected / tokens, rtol=1e-5, atol=1e-6)


def test_a_teacher_touches_its_own_prompt_only() -> None:
    base = family("llama")
    torch.manual_seed(0)
    teacher = torch.randn(2, 32, dtype=torch.float64)
    gradients = []
    for path, teachers in (
        (shared_backward, [None, teacher]),
        (concatenated_backward, [None, teacher]),
        (shared_backward, []),
    ):
        prompts = [
            torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(i)).requires_grad_()
            for i in range(2)
        ]
        path(base, prompts, build_examples([ROWS, ROWS]), teachers)
        gradients.append([prompt.grad for prompt in prompts])
    taught, reference, untaught = gradients
    torch.testing.assert_close(taught, reference, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(taught[0], untaught[0], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(taught[1], untaught[1], rtol=1e-2)  # type: ignore[arg-type]


def test_one_step_moves_the_shared_prompt_by_all_sources() -> None:
    """The shared gradient is the sum of the sources' own, and one optimizer steps it once."""
    base = family("llama")
    shared = torch.nn.Parameter(job(base, "a", num_virtual_tokens=3).initial.clone())  # type: ignore[union-attr]
    jobs = [
        job(base, name, seed, method="multitask", shared="s")._replace(shared=shared) for seed, name in enumerate("ab")
    ]
    members = Member.start_gang(jobs)
    assert members[0].optimizer is members[1].optimizer
    own = []
    for member, rows in zip(members, [member.take_rows() for member in members], strict=True):
        prompt = member.build_prompt(base).detach().requires_grad_()  # type: ignore[union-attr]
        loss = shared_backward(base, [prompt], build_examples([rows]))
        member.accumulate(float(loss), member.build_prompt(base), [prompt.grad])
        own.append(prompt.grad)
    torch.testing.assert_close(shared.grad, own[0] + own[1])  # type: ignore[operator]
    before = shared.detach().clone()
    members[0].apply()
    assert not torch.equal(shared, before)
    assert shared.grad is None


def test_sources_keep_factors_of_their_own() -> None:
    base = family("llama")
    shared = torch.nn.Parameter(job(base, "a").initial.clone())  # type: ignore[union-attr]
    jobs = [
        job(base, name, seed, method="multitask", shared="s", steps=4)._replace(shared=shared)
        for seed, name in enumerate("abc")
    ]
    members = run_gang(base, jobs, NoTracker(), lambda line: None).members
    factors = [member.parameterisation for member in members]
    assert all(isinstance(factor, RankOne) and factor.shared is shared for factor in factors)
    assert len({tuple(factor.u.tolist()) for factor in factors if isinstance(factor, RankOne)}) == 3


def test_a_student_that_gains_nothing_trains_to_the_end() -> None:
    """The shared prompt would drift away from one that stops."""
    one = job(family("llama"), "a", patience=1, steps=5, eval_every=1)
    student = Member.of(one._replace(tune=_adapt_recipe(one)))
    for step in range(1, 5):
        student.step = step
        student.judge(one.initial, ["no such label"] * len(one.dev))
        assert student.active
    assert student.job.tune.steps == 5


def test_a_source_that_fails_fails_the_shared_prompt_whichever_it_is() -> None:
    base = family("llama")
    gang = run_gang(base, [job(base, name, steps=1) for name in "ab"], NoTracker(), lambda line: None)
    assert _require_sound(gang) is gang
    gang.members[-1].error = TrainingError("the loss of b is no number")
    with pytest.raises(TrainingError, match="the loss of b is no number"):
        _require_sound(gang)


def test_the_record_of_a_shared_prompt_counts_both_gangs_and_every_source() -> None:
    base = family("llama")
    gangs = [
        run_gang(base, [job(base, name, steps=1) for name in "ab"], NoTracker(), lambda line: None) for _ in range(2)
    ]
    for number, member in enumerate(member for gang in gangs for member in gang.members):
        member.tokens, member.seconds, member.processor_seconds = 10**number, 2.0**number, 3.0**number
        member.best_dev = number / 4
    tuned = _describe_shared(base, gangs, pack(torch.ones(3, 32), "float32", fields(tiny())))
    assert tuned.cost == Cost(tokens=1111, seconds=15, processor_seconds=40)
    assert (tuned.best_dev, [trial.best_dev for trial in tuned.trials]) == (0.625, [0.5, 0.75])
    assert [trial.cost for trial in tuned.trials] == [member.cost for member in gangs[-1].members]


# ---------------------------------------------------------------- the training key of a shared prompt


def a_source(name: str, train: str = "a", **changes: Any) -> tuple[Task, Snapshot]:
    def split(digest: str) -> SplitInfo:
        return SplitInfo(rows=4, labels={"no": 2, "yes": 2}, digest=digest * 64)

    rows = {"train": split(train), "dev": split("b"), "test": split("c")}
    snapshot = Snapshot(task=name, digest=train * 64, source="rows.csv", source_key="key", checks=[], **rows)
    return declared(name).model_copy(update=changes), snapshot


def shared_key(sources: list[tuple[Task, Snapshot]], name: str = "common", base: str = "f" * 64, **tune: Any) -> str:
    shared = SharedPrompt(base_model="tiny", sources=[task.name for task, _ in sources], tune=Tune(**tune))
    return compute_shared_key(Sources(name, shared, sources), base)


def test_each_part_of_a_shared_training_changes_its_key() -> None:
    two = [a_source("mood"), a_source("topic")]
    keys = [
        shared_key(two),
        shared_key(two, name="other"),
        shared_key(two, base="e" * 64),
        shared_key(two, steps=7),
        shared_key([a_source("mood", train="d"), two[1]]),
        shared_key([two[0], a_source("topic", train="d")]),
        shared_key([a_source("mood", template="{text}!"), two[1]]),
        shared_key([*two, a_source("tone")]),
        shared_key(two[::-1]),
    ]
    assert len(set(keys)) == len(keys)


def test_the_recipe_of_a_source_is_no_part_of_a_shared_training() -> None:
    other = a_source("mood", tune=declared("mood", steps=9).tune)
    assert shared_key([other, a_source("topic")]) == shared_key([a_source("mood"), a_source("topic")])
