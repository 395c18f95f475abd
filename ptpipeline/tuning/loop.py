"""The loop: K members train in one pass over one frozen model. One prompt is the gang with K = 1."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ptpipeline.errors import BaseModelError, TrainingError
from ptpipeline.models.causal import CausalBase
from ptpipeline.serving.ranking import rank
from ptpipeline.tuning.member import Job, Member
from ptpipeline.tuning.passes import Backward, examples_of
from ptpipeline.tuning.selfcheck import SelfCheck, checked_path
from ptpipeline.tuning.tracker import Tracker

log = logging.getLogger(__name__)

RECORD_EVERY = 10  # steps between two points of the learning curve


@dataclass
class Clock:
    """What the run's speed is computed from: wall seconds and text tokens trained on, evaluations apart."""

    started: float = field(default_factory=time.perf_counter)
    training: float = 0.0
    tokens: int = 0
    steps: int = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    @property
    def tokens_per_second(self) -> float:
        """Text tokens (prompt tokens apart) per second of training steps."""
        return self.tokens / max(self.training, 1e-9)


@dataclass
class Gang:
    """The members after training, the clock, and how the shared path compared with the reference."""

    members: list[Member]
    clock: Clock
    check: SelfCheck


def run_gang(base: CausalBase, jobs: Sequence[Job], tracker: Tracker, report: Callable[[str], None] = log.info) -> Gang:
    """Train every job to its last step, its early stop or its own failure; `report` gets progress lines.

    A member that fails ends alone, with `error` set. Raises BaseModelError where the base's weights changed.
    """
    before = base.weights_digest()
    members = [Member.of(base, job) for job in jobs]
    check = _self_check(base, members)
    for member in members:
        member.run = tracker.start(member.job.task.name, _parameters(base, member), {"ptp.task": member.job.task.name})
    clock = Clock()
    try:
        while active := [member for member in members if member.active]:
            _step(base, active, check.backward, clock, tracker, report)
    except BaseException:  # also when interrupted: no run is left open
        for member in members:
            tracker.finish(member.run, "KILLED")
        raise
    for member in members:
        if member.best is None and member.error is None:
            member.error = TrainingError(f"task {member.job.task.name}: no step was evaluated on dev")
        tracker.finish(member.run, "FAILED" if member.error else "FINISHED")
    if base.weights_digest() != before:
        raise BaseModelError(f"base model {base.ref.name}: its weights changed while training; nothing of this run is kept")
    return Gang(members, clock, check)


def _self_check(base: CausalBase, members: Sequence[Member]) -> SelfCheck:
    examples = examples_of([[(row.ids, m.job.labels.ids[row.label]) for row in m.job.train[:2]] for m in members])
    return checked_path(base, [member.prompt for member in members], examples)


def _step(base: CausalBase, active: list[Member], backward: Backward, clock: Clock, tracker: Tracker, report: Callable[[str], None]) -> None:
    """One optimizer step of every active member, and what is due after it."""
    started = time.perf_counter()
    examples = examples_of([member.next_rows() for member in active])
    losses = backward(base, [member.prompt for member in active], examples)
    norms = [member.update(float(loss)) for member, loss in zip(active, losses, strict=True)]
    clock.training += time.perf_counter() - started
    clock.tokens += sum(len(row.inputs) for row in examples)
    clock.steps += 1
    devs = _evaluate(base, [member for member in active if member.due])
    for member, norm in zip(active, norms, strict=True):
        if member.error:
            report(str(member.error))
        elif member.due or member.step % RECORD_EVERY == 0 or member.step == 1:
            dev = devs.get(member.job.task.name)
            tracker.point(member.run, member.record(norm, dev))
            report(_progress(member, active, clock, dev))


def _evaluate(base: CausalBase, due: list[Member]) -> dict[str, float]:
    """Dev metric of each member that is due, all of them in one mixed ranking."""
    rounded = [(member, stored) for member in due if (stored := member.stored()) is not None]
    if not rounded:
        return {}
    with torch.inference_mode():
        prefix = base.prefix([stored for _, stored in rounded])
    queries = [member.dev_queries(index) for index, (member, _) in enumerate(rounded)]
    scores = iter(rank(base, prefix, [query for rows in queries for query in rows]))
    judged = zip(rounded, queries, strict=True)
    return {member.job.task.name: member.judge(stored, [next(scores) for _ in rows]) for (member, stored), rows in judged}


def _progress(member: Member, active: list[Member], clock: Clock, dev: float | None) -> str:
    """`task: step 50/300, loss 0.412, dev accuracy 0.87, 610 tokens/s, 2m05s left`"""
    tune = member.job.task.tune
    remaining = max(m.job.task.tune.steps - m.step for m in active)
    left = int(clock.elapsed / clock.steps * remaining)
    shown = f", dev {member.job.task.gate.metric} {dev:.3f}" if dev is not None else ""
    return (
        f"{member.job.task.name}: step {member.step}/{tune.steps}, loss {member.curve[-1].loss:.3f}{shown}, "
        f"{clock.tokens_per_second:.0f} tokens/s, {left // 60}m{left % 60:02d}s left"
    )


def _parameters(base: CausalBase, member: Member) -> dict[str, str | int | float]:
    tune = member.job.task.tune.model_dump(mode="json")
    shown = {name: value if isinstance(value, (str, int, float)) else str(value) for name, value in tune.items()}
    return shown | {"base_model": base.ref.name, "train_rows": len(member.job.train), "dev_rows": len(member.job.dev)}
