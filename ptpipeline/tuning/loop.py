"""The loop: K members train in one pass over one frozen model. One prompt is the gang with K = 1."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.errors import BaseModelError, PtpError, TrainingError, place_of
from ptpipeline.models.frozen import FrozenBase, SoftPrompt, list_tensors, rebuild
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.serving.answers import answer
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.clock import Clock
from ptpipeline.tuning.member import Job, Member, Rows
from ptpipeline.tuning.passes import Backward, build_examples
from ptpipeline.tuning.selfcheck import SelfCheck, check_path
from ptpipeline.tuning.tracker import Tracker

log = logging.getLogger(__name__)

FAILURES = (RuntimeError, ValueError, IndexError, PtpError)  # of one member, which are to end it alone
RECORD_EVERY = 10  # steps between two points of the learning curve


@dataclass
class Gang:
    """The members after training, the clock, and how the shared path compared with the reference."""

    members: list[Member]
    clock: Clock
    check: SelfCheck


def run_gang(
    base: FrozenBase,
    jobs: Sequence[Job],
    tracker: Tracker,
    report: Callable[[str], None] = log.info,
    checkpoints: Checkpoints | None = None,
) -> Gang:
    """Train every job to its last step, its early stop or its own failure; `report` gets progress lines.

    Goes on from the gang's checkpoint where there is one, and leaves one behind at the end: removing it, once what the
    gang came to is stored, is the caller's. A member that fails ends alone, with `error` set. Raises BaseModelError
    where the base's weights changed.
    """
    before = base.digest_weights()
    members, clock = Member.start_gang(jobs), Clock()
    check = _self_check(base, members)
    checkpoint = checkpoints.of(base, jobs, str(check.figures["path"])) if checkpoints else None
    if checkpoint and (saved := checkpoint.load(jobs, report)):
        members, clock = saved
    for member in members:
        member.run = tracker.start(
            member.job.name, _parameters(base, member), {"ptp.task": member.job.name.partition("/")[0]}, member.run
        )
    try:
        while active := [member for member in members if member.active]:
            _step(base, active, check.backward, clock)
            _after_step(base, active, clock, tracker, report)
            if checkpoint and checkpoint.due:
                checkpoint.save(members, clock)
    except BaseException:  # also when interrupted, no run is left open; within a step, there is no state to be saved
        for member in members:
            tracker.finish(member.run, "KILLED")
        raise
    for member in members:
        if member.best is None and member.error is None:
            member.error = TrainingError(f"task {member.job.name}: no step was evaluated on dev")
        tracker.finish(member.run, "FAILED" if member.error else "FINISHED")
    if base.digest_weights() != before:
        if checkpoint:
            checkpoint.clear()
        raise BaseModelError(
            f"base model {base.ref.name}: its weights changed while training; nothing of this run is kept"
        )
    if checkpoint:
        checkpoint.save(members, clock)
    return Gang(members, clock, check)


def _self_check(base: FrozenBase, members: Sequence[Member]) -> SelfCheck:
    examples = build_examples([[(row.ids, row.target) for row in member.job.train[:2]] for member in members])
    return check_path(base, [member.prompt(base) for member in members], examples)


class _Gradients(NamedTuple):
    """What one step of one member came to: its loss, and the gradient on each tensor of its prompt."""

    loss: float
    prompt: SoftPrompt
    gradients: list[Tensor | None]


def describe_failure(error: Exception) -> str:
    """What may be told of it: our own sentences, torch's on sizes and devices; of others kind and place, since they may
    quote a row.
    """
    return str(error) if isinstance(error, (PtpError, RuntimeError)) else place_of(error)


def _step(base: FrozenBase, active: list[Member], backward: Backward, clock: Clock) -> None:
    """One optimizer step of every active member. Where one of them raises, each takes the step alone, to end that one
    only.
    """
    started = time.perf_counter()
    batches = [member.next_rows() for member in active]
    try:
        found = _gradients(base, active, batches, backward)
    except FAILURES as error:
        log.warning("a step of %d prompts failed (%s); each takes it alone", len(active), describe_failure(error))
        found = [_alone(base, member, rows, backward) for member, rows in zip(active, batches, strict=True)]
    for member, result in zip(active, found, strict=True):
        if result is not None:
            member.accumulate(*result)
    for member in {id(member.optimizer): member for member in active if member.error is None}.values():
        member.apply()
    clock.training += time.perf_counter() - started
    clock.tokens += sum(len(ids) + len(target) - 1 for rows in batches for ids, target in rows)
    clock.steps += 1


def _gradients(
    base: FrozenBase, members: list[Member], batches: Sequence[Rows], backward: Backward
) -> list[_Gradients | None]:
    prompts = [member.prompt(base) for member in members]
    leaves = [
        rebuild(prompt, [tensor.detach().requires_grad_() for tensor in list_tensors(prompt)]) for prompt in prompts
    ]
    losses = backward(base, leaves, build_examples(batches), [member.job.teacher for member in members]).tolist()
    return [
        _Gradients(loss, prompt, [tensor.grad for tensor in list_tensors(leaf)])
        for loss, prompt, leaf in zip(losses, prompts, leaves, strict=True)
    ]


def _alone(base: FrozenBase, member: Member, rows: Rows, backward: Backward) -> _Gradients | None:
    try:
        return _gradients(base, [member], [rows], backward)[0]
    except FAILURES as error:
        member.error = TrainingError(
            f"task {member.job.name}: step {member.step + 1} failed: {describe_failure(error)}"
        )
        return None


def _after_step(
    base: FrozenBase, active: list[Member], clock: Clock, tracker: Tracker, report: Callable[[str], None]
) -> None:
    """What is due after a step: dev evaluations, points of the learning curves, progress lines."""
    devs = _evaluate(base, [member for member in active if member.due])
    for member in active:
        if member.error:
            report(str(member.error))
        elif member.due or member.step % RECORD_EVERY == 0 or member.step == 1:
            dev = devs.get(member.job.name)
            tracker.point(member.run, member.record(dev))
            report(_progress(member, active, clock, dev))


def _evaluate(base: FrozenBase, due: list[Member]) -> dict[str, float]:
    """Dev metric of each member that is due; all of them are asked together, the stored form of each prompt."""
    rounded = [(member, stored) for member in due if (stored := member.stored()) is not None]
    if not rounded:
        return {}
    try:
        return _asked(base, rounded)
    except FAILURES as error:
        log.warning(
            "a dev evaluation of %d prompts failed (%s); each is asked alone", len(rounded), describe_failure(error)
        )
    found: dict[str, float] = {}
    for member, stored in rounded:
        try:
            found |= _asked(base, [(member, stored)])
        except FAILURES as error:
            member.error = TrainingError(
                f"task {member.job.name}: dev evaluation at step {member.step} failed: {describe_failure(error)}"
            )
    return found


def _asked(base: FrozenBase, rounded: list[tuple[Member, SoftPrompt]]) -> dict[str, float]:
    """The dev split of all these members in mixed passes, judged."""
    with torch.inference_mode():
        cache = base.compute_prefix(
            [place_prompt(base, stored, member.job.tune.placement) for member, stored in rounded]
        )
    queries = [member.dev_queries(index) for index, (member, _) in enumerate(rounded)]
    answered = iter(answer(base, cache, [query for rows in queries for query in rows]))
    judged = zip(rounded, queries, strict=True)
    return {member.job.name: member.judge(stored, [next(answered) for _ in rows]) for (member, stored), rows in judged}


def _progress(member: Member, active: list[Member], clock: Clock, dev: float | None) -> str:
    """`task: step 50/300, loss 0.412, dev accuracy 0.87, 610 tokens/s, 2m05s left`"""
    remaining = max(m.job.tune.steps - m.step for m in active)
    left = int(clock.elapsed / clock.steps * remaining)
    shown = f", dev {member.job.task.gate.metric} {dev:.3f}" if dev is not None else ""
    return (
        f"{member.job.name}: step {member.step}/{member.job.tune.steps}, loss {member.curve[-1].loss:.3f}{shown}, "
        f"{clock.tokens_per_second:.0f} tokens/s, {left // 60}m{left % 60:02d}s left"
    )


def _parameters(base: FrozenBase, member: Member) -> dict[str, str | int | float]:
    tune = member.job.tune.model_dump(mode="json")
    shown = {name: value if isinstance(value, (str, int, float)) else str(value) for name, value in tune.items()}
    return shown | {"base_model": base.ref.name, "train_rows": len(member.job.train), "dev_rows": len(member.job.dev)}
