"""The loop: K members train in one pass over one frozen model. One prompt is a gang with K = 1."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.errors import BaseModelError, TrainingError
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import SoftPrompt, list_tensors, rebuild
from ptpipeline.progress import advance, expect, phase
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.serving.answers import answer
from ptpipeline.tuning.checkpoint import Checkpoint, Checkpoints, identify_gang
from ptpipeline.tuning.clock import Clock, Reading
from ptpipeline.tuning.interruption import Interruption, deferred_sigterm
from ptpipeline.tuning.member import Job, Member, Rows
from ptpipeline.tuning.passes import FAILURES, Backward, build_examples, describe_failure
from ptpipeline.tuning.places import drop_hopeless, fill_places
from ptpipeline.tuning.ranks import ALONE, Ranks
from ptpipeline.tuning.selfcheck import SelfCheck, check_path
from ptpipeline.tuning.state import GangState, pack, unpack
from ptpipeline.tuning.tracker import Tracker

log = logging.getLogger(__name__)

RECORD_EVERY = 10  # steps between two points of the learning curve

Progress = Callable[[str], None]  # gets one line of text at a time


@dataclass
class Gang:
    """The members after training, the clock, and how the shared path compared with the reference."""

    members: list[Member]
    clock: Clock
    check: SelfCheck


class _Run(NamedTuple):
    """What all steps of one gang share."""

    base: FrozenBase
    backward: Backward
    ranks: Ranks
    tracker: Tracker
    progress: Progress
    clock: Clock


def run_gang(
    base: FrozenBase,
    jobs: Sequence[Job],
    tracker: Tracker,
    progress: Progress = log.info,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks = ALONE,
) -> Gang:
    """Train every job to its last step, its early stop or its own failure; `progress` gets lines on the way.

    All `ranks` call this with the same jobs, and the first alone reads and writes checkpoints. Jobs that do not fit
    into one step wait in a queue: if a member ends, the next one joins at the next step. Training goes on from the
    gang's checkpoint if there is one, and leaves one behind at the end: the caller removes it once the results are
    stored. A member that fails ends alone, with `error` set. Raises BaseModelError if the base's weights changed,
    SettingsError if the ranks' jobs differ, RankLost if one of them ends, Overtaken if another process took the gang
    over. SIGTERM ends it behind a checkpoint of the step in progress, by what handled that signal before.
    """
    before = base.digest_weights()
    members, clock = Member.start_gang(jobs), Clock()
    check = _run_self_check(base, members)
    path = str(check.figures["path"])
    if ranks.size > 1:
        ranks.agree(identify_gang(base, jobs, path))
    checkpoint = checkpoints.open(base, jobs, path) if checkpoints and ranks.first else None
    if saved := _resume(ranks, checkpoint, jobs, progress):
        members, clock = list(saved.members), saved.clock
    run = _Run(base, ranks.divide(check.backward), ranks, tracker, progress, clock)
    _expect_steps(members)
    # the other ranks may stand in an exchange, in which no handler would run: they end at once
    with deferred_sigterm() if ranks.first else nullcontext(Interruption()) as interruption:
        _train(run, members, checkpoint, interruption)
        if ranks.any(base.digest_weights() != before):
            _refuse_weights(base, checkpoint)
        if checkpoint:
            checkpoint.save(members, clock)
        if interruption.asked:
            interruption.end()
    _report_traffic(run)
    return Gang(members, clock, check)


def _train(run: _Run, members: list[Member], checkpoint: Checkpoint | None, interruption: Interruption) -> None:
    """Take steps until every member has ended; save the checkpoints that are due, and one before an interruption."""
    tracked: set[str] = set()  # members whose run this process started and has not ended
    try:
        while active := fill_places(members, run.base.prompt_tokens):
            _start_runs(run.base, [member for member in active if member.job.name not in tracked], run.tracker)
            tracked |= {member.job.name for member in active}
            _step(run, active)
            _finish_step(run, active, members)
            for member in (dropped := drop_hopeless(members)):
                run.progress(f"{member.job.name}: {member.dropped.reason if member.dropped else ''}")
            if dropped:
                _expect_steps(members)
            ended = [member for member in members if member.job.name in tracked and not member.active]
            _end_runs(ended, run.tracker)
            tracked -= {member.job.name for member in ended}
            if checkpoint and (checkpoint.due or interruption.asked):
                checkpoint.save(members, run.clock)
            if interruption.asked:
                run.progress(f"told to end (SIGTERM) at step {run.clock.steps}; the next run goes on from there")
                interruption.end()
    except BaseException:  # an interruption too leaves no run open; within a step there is no state to save
        for member in members:
            if member.job.name in tracked:
                run.tracker.finish(member.run, "KILLED")
        raise


def _resume(ranks: Ranks, checkpoint: Checkpoint | None, jobs: Sequence[Job], progress: Progress) -> GangState | None:
    """Return the gang as the first rank's checkpoint holds it, on all ranks; None if there is none."""
    saved = checkpoint.load(jobs, progress) if checkpoint else None
    if ranks.size == 1:
        return saved
    body = ranks.send(pack(saved.members, saved.clock) if saved else b"")
    return unpack(body, jobs) if body else None


def _report_traffic(run: _Run) -> None:
    """Say what the ranks exchanged in the last step."""
    if run.ranks.size > 1:
        gradients, agreement = run.ranks.traffic
        run.progress(
            f"{run.ranks.size} processes trained together: each gave {gradients:,} bytes of prompt gradients into the "
            f"last step, and {agreement:,} of losses"
        )


def _expect_steps(members: Sequence[Member]) -> None:
    """Say how many steps are left: none of a member that has ended."""
    wanted = sum(member.job.tune.steps if member.active else member.step for member in members)
    expect(wanted, "steps", sum(member.step for member in members))


def _run_self_check(base: FrozenBase, members: Sequence[Member]) -> SelfCheck:
    examples = build_examples([[(row.ids, row.target) for row in member.job.train[:2]] for member in members])
    return check_path(base, [member.build_prompt(base) for member in members], examples)


def _start_runs(base: FrozenBase, members: Sequence[Member], tracker: Tracker) -> None:
    for member in members:
        tags = {"ptp.task": member.job.name.partition("/")[0]}
        member.run = tracker.start(member.job.name, _list_parameters(base, member), tags, member.run)


def _end_runs(ended: Sequence[Member], tracker: Tracker) -> None:
    for member in ended:
        if member.best is None and member.error is None:
            member.error = TrainingError(f"task {member.job.name}: no step was evaluated on dev")
        tracker.finish(member.run, "FAILED" if member.error else "FINISHED")


def _refuse_weights(base: FrozenBase, checkpoint: Checkpoint | None) -> None:
    if checkpoint:
        checkpoint.clear()
    raise BaseModelError(
        f"base model {base.ref.name}: its weights changed while training, so nothing of this run is kept; run again"
    )


class _Gradients(NamedTuple):
    """One step of one member: its loss, its prompt, and the gradient on each tensor of the prompt."""

    loss: float
    prompt: SoftPrompt
    gradients: list[Tensor | None]


def _step(run: _Run, active: list[Member]) -> None:
    """Take one optimizer step of every active member; if one raises, each steps alone, so that only that one ends."""
    started, clock = Reading.take(), run.clock
    batches = [member.take_rows() for member in active]
    results: Sequence[_Gradients | None]
    try:
        results = _compute_gradients(run, active, batches)
    except FAILURES as error:
        log.warning("a step of %d prompts failed (%s); each steps alone", len(active), describe_failure(error))
        results = [_step_alone(run, member, rows) for member, rows in zip(active, batches, strict=True)]
    for member, result in zip(active, results, strict=True):
        if result is not None:
            member.accumulate(*result)
    for member in {id(member.optimizer): member for member in active if member.error is None}.values():
        member.apply()
    spent, tokens = started.measure(), [sum(len(ids) + len(target) - 1 for ids, target in rows) for rows in batches]
    clock.training += spent.seconds
    clock.tokens += sum(tokens)
    clock.steps += 1
    advance(len(active))
    _charge(active, tokens, spent)
    for member, count in zip(active, tokens, strict=True):
        member.tokens += count


def _charge(members: Sequence[Member], tokens: Sequence[int], spent: Reading) -> None:
    """Share what was spent by the tokens of each member's rows and of its prompt."""
    computed = [count + member.job.tune.num_virtual_tokens for count, member in zip(tokens, members, strict=True)]
    for member, own in zip(members, computed, strict=True):
        member.charge(spent, own / sum(computed))


def _compute_gradients(run: _Run, members: list[Member], batches: Sequence[Rows]) -> list[_Gradients]:
    prompts = [member.build_prompt(run.base) for member in members]
    leaves = [_detach(prompt) for prompt in prompts]
    losses = run.backward(run.base, leaves, build_examples(batches), [member.job.teacher for member in members])  # [K]
    return [
        _Gradients(loss, prompt, [tensor.grad for tensor in list_tensors(leaf)])
        for loss, prompt, leaf in zip(losses.tolist(), prompts, leaves, strict=True)
    ]


def _detach(prompt: SoftPrompt) -> SoftPrompt:
    """Return the same values as leaves that collect gradients."""
    return rebuild(prompt, [tensor.detach().requires_grad_() for tensor in list_tensors(prompt)])


def _step_alone(run: _Run, member: Member, rows: Rows) -> _Gradients | None:
    try:
        return _compute_gradients(run, [member], [rows])[0]
    except FAILURES as error:
        reason = describe_failure(error)
        member.error = TrainingError(f"task {member.job.name}: step {member.step + 1} failed: {reason}")
        return None


def _finish_step(run: _Run, active: list[Member], members: Sequence[Member]) -> None:
    """Do what is due after a step: dev evaluations, points of the learning curves, progress lines."""
    due, started = [member for member in active if member.due], Reading.take()
    devs = _evaluate(run, due)
    _charge(due, [sum(len(row.ids) for row in member.job.dev) for member in due], started.measure())
    for member in active:
        if member.error:
            run.progress(str(member.error))
        elif member.due or member.step % RECORD_EVERY == 0 or member.step == 1:
            dev = devs.get(member.job.name)
            run.tracker.log_point(member.run, member.record(dev))
            run.progress(_format_progress(member, run.clock, dev))


class _Rounded(NamedTuple):
    """A member, and its prompt of this moment as it would be stored."""

    member: Member
    stored: SoftPrompt


def _evaluate(run: _Run, due: list[Member]) -> dict[str, float]:
    """Return the dev metric of each member that is due, by the stored form of its prompt; all answer together."""
    rounded = [_Rounded(member, stored) for member in due if (stored := member.round_to_stored()) is not None]
    if not rounded:
        return {}
    try:
        return _judge(run, rounded)
    except FAILURES as error:
        reason = describe_failure(error)
        log.warning("a dev evaluation of %d prompts failed (%s); each answers alone", len(rounded), reason)
    metrics: dict[str, float] = {}
    for single in rounded:
        member = single.member
        try:
            metrics |= _judge(run, [single])
        except FAILURES as error:
            reason = describe_failure(error)
            member.error = TrainingError(
                f"task {member.job.name}: dev evaluation at step {member.step} failed: {reason}"
            )
    return metrics


def _judge(run: _Run, rounded: list[_Rounded]) -> dict[str, float]:
    """Return the members' dev metrics by name, from answers to all their dev splits in mixed passes."""
    base = run.base
    prompts = [place_prompt(base, stored, member.job.tune.placement) for member, stored in rounded]
    with torch.inference_mode():
        cache = base.compute_prefix(prompts)
    requests = [member.build_dev_requests(prompt) for prompt, (member, _) in enumerate(rounded)]
    together = [request for of_member in requests for request in of_member]
    with phase("dev"):
        answers = iter(run.ranks.divide_requests(together, partial(answer, base, cache)))
    return {
        member.job.name: member.judge(stored, [next(answers) for _ in of_member])
        for (member, stored), of_member in zip(rounded, requests, strict=True)
    }


def _format_progress(member: Member, clock: Clock, dev: float | None) -> str:
    """Return `task: step 50/300, loss 0.412, dev accuracy 0.87, 610 tokens/s`; the speed is that of the whole training.

    How much time is left is said by the lines of the progress, which know what an earlier process has done.
    """
    metric = f", dev {member.job.task.gate.metric} {dev:.3f}" if dev is not None else ""
    return (
        f"{member.job.name}: step {member.step}/{member.job.tune.steps}, loss {member.curve[-1].loss:.3f}{metric}, "
        f"{clock.tokens_per_second:.0f} tokens/s"
    )


def _list_parameters(base: FrozenBase, member: Member) -> dict[str, str | int | float]:
    tune = member.job.tune.model_dump(mode="json")
    plain = {name: value if isinstance(value, (str, int, float)) else str(value) for name, value in tune.items()}
    return plain | {"base_model": base.ref.name, "train_rows": len(member.job.train), "dev_rows": len(member.job.dev)}
