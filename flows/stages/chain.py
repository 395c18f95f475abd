"""The order of the stages, written once: from the rows of all tasks to versions that production names.

Every stage is idempotent by content: it first asks the ledger under its key, and says so if nothing is to be done.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from flows.stages.context import MACHINE, Context, Selection
from flows.stages.ingest import ingest
from flows.stages.judge import evaluate, gate
from flows.stages.outcome import Candidate, Outcome, summarise
from flows.stages.plan import Plan, group, identify, plan
from flows.stages.promote import promote
from flows.stages.register import register
from flows.stages.train import claim_trained, share, train
from ptpipeline.errors import PtpError, SettingsError, place_of
from ptpipeline.gate.disclosure import disclose_verdict
from ptpipeline.interpreter import explain
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.verdicts import Verdict
from ptpipeline.task.task import Task
from registry.ledger.database import outlasting
from registry.ledger.gang import GangLease, open_gangs, working_on
from registry.registry import Registry

Result = TypeVar("Result")

log = logging.getLogger("ptpipeline.flows")


class Step(Protocol):
    """Runs one stage under a name that people see, and returns its result."""

    def __call__(self, name: str, work: Callable[[], Result], /) -> Result: ...


def run_directly(_name: str, work: Callable[[], Result], /) -> Result:
    """Run the stage as it is."""
    return work()


def _show_nothing(_outcome: Outcome, _verdict: Verdict) -> None:
    return None


class Night(NamedTuple):
    """What a run came to, by task: the outcomes of those that came through, one sentence for each of the others."""

    outcomes: dict[str, Outcome]
    errors: dict[str, str]


PATIENCE = 4 * 3600.0  # seconds that a night's run waits for another run that works on one of its tasks


class Mode(NamedTuple):
    """How the chain runs.

    `step` runs each stage. With `isolate`, an error ends only the tasks that it concerns and goes to the night's
    errors; without, it is raised. Without `promote`, production stays as it is. `show` gets each task's outcome as soon
    as it is there, and the verdict as people may see it. `actor` is who promotes. With `force`, tasks train although
    nothing changed. What trains is divided into about `parts` gangs; with `spread`, they are trained and finished
    elsewhere. `patience` are the seconds that a task waits for another run that works on it, by default those that a
    dead run's lease lasts.
    """

    step: Step = run_directly
    isolate: bool = False
    promote: bool = True
    show: Callable[[Outcome, Verdict], None] = _show_nothing
    actor: str = MACHINE
    force: bool = False
    parts: int = 1
    spread: Callable[[Sequence[Sequence[Plan]]], Night] | None = None
    patience: float | None = None


DIRECT = Mode()


class Unexpected(Exception):
    """A defect: which kind of error, and where, without its message, which may hold a row's text."""


class _Planned(NamedTuple):
    task: Task
    plan: Plan


def run(context: Context, selection: Selection, mode: Mode = DIRECT) -> Night:
    """Ingest, train, evaluate, gate, register and promote the tasks; broken task files are errors beside them."""
    night = Night({}, dict(selection.broken))
    _share(context, selection.tasks, mode, night)
    planned: dict[str, _Planned] = {}
    for task in (task for task in selection.tasks if task.name not in night.errors):
        with _guard(mode, night, [task]):
            snapshot = mode.step(f"ingest {task.name}", partial(ingest, context, task))
            todo = mode.step(f"plan {task.name}", partial(plan, context, task, snapshot, mode.force))
            planned[task.name] = _Planned(task, todo)
    for each in planned.values():
        if each.plan.trained:
            with _guard(mode, night, [each.task]):
                _work_on(context, [each], mode, night)
    begun = open_gangs(context.registry.ledger.database, list(planned))
    gangs = group([todo for _, todo in planned.values()], begun, mode.parts)
    if mode.spread:  # a single gang too: this process may have no GPU
        with _guard(mode, night, [planned[todo.task].task for gang in gangs for todo in gang]):
            elsewhere = mode.spread(gangs)
            night.outcomes.update(elsewhere.outcomes)
            night.errors.update(elsewhere.errors)
        return night
    for gang in gangs:
        members = [planned[todo.task] for todo in gang]
        with _guard(mode, night, [task for task, _ in members]):
            _work_on(context, members, mode, night)
    return night


def _work_on(context: Context, gang: Sequence[_Planned], mode: Mode, night: Night) -> None:
    """Train a gang and finish its tasks, as the only run that works on them.

    Raises LeaseHeld if another run goes on working on one of them, Overtaken if one took them over.
    """
    names = [task.name for task, _ in gang]
    with working_on(context.registry.ledger.database, names, mode.patience) as lease:
        trained = _claim(context, gang) or _train(context, lease, gang, mode, night)
        for task, todo in gang:
            if task.name in trained:
                with _guard(mode, night, [task]):
                    outcome = finish(context, task, trained[task.name], todo.snapshot, mode, todo.trained)
                    night.outcomes[task.name] = outcome.model_copy(update={"plan": todo.reason})


@outlasting
def _claim(context: Context, gang: Sequence[_Planned]) -> dict[str, TunedPrompt]:
    """Return the prompt of a task that need not train; nothing if it has to all the same, because it was collected."""
    first = gang[0].plan
    tuned = claim_trained(context, first.task, first.training_key) if first.trained else None
    return {first.task: tuned} if tuned else {}


def run_task(context: Context, task: Task) -> Outcome:
    """Run the whole chain for one task, here and now; an error is raised."""
    return run(context, Selection([task], {})).outcomes[task.name]


def finish(
    context: Context, task: Task, tuned: TunedPrompt, snapshot: str, mode: Mode = DIRECT, known: bool = False
) -> Outcome:
    """Evaluate, gate, register and promote a stored prompt; `snapshot` is the digest of today's rows.

    known: the prompt is no new one, so there is mostly nothing to do. All of it is one step then, because a step in
    Prefect costs more than to find that out, and most tasks of a night are such.
    """
    settle = partial(_settle, context, task, tuned, snapshot)
    if known:
        candidate = mode.step(f"finish {task.name}", partial(settle, mode._replace(step=run_directly)))
    else:
        candidate = settle(mode)
    outcome = _summarise(context.registry, task, candidate)
    mode.show(outcome, disclose_verdict(candidate.verdict))
    return outcome


def _settle(context: Context, task: Task, tuned: TunedPrompt, snapshot: str, mode: Mode) -> Candidate:
    name, step = task.name, mode.step
    report = step(f"evaluate {name}", partial(evaluate, context, task, tuned, snapshot))
    verdict = step(f"gate {name}", partial(gate, context, task, tuned, report))
    version = step(f"register {name}", partial(register, context, task, tuned, report, verdict))
    promotion = (
        step(f"promote {name}", partial(promote, context, task, version, verdict, mode.actor)) if mode.promote else None
    )
    return Candidate(tuned, report, verdict, version, promotion)


@outlasting
def _summarise(registry: Registry, task: Task, candidate: Candidate) -> Outcome:
    """`summarise`; a ledger that does not answer for a while must not turn what was promoted into a failure."""
    return summarise(registry, task, candidate)


def _share(context: Context, tasks: Sequence[Task], mode: Mode, night: Night) -> None:
    """Bring the shared prompts up to date that these tasks start from; if one fails, so do the tasks."""
    for name in dict.fromkeys(task.tune.shared for task in tasks if task.tune.shared):
        with _guard(mode, night, [task for task in tasks if task.tune.shared == name]):
            mode.step(f"share {name}", partial(share, context, name))


def _train(
    context: Context, lease: GangLease, gang: Sequence[_Planned], mode: Mode, night: Night
) -> dict[str, TunedPrompt]:
    """Train the tasks together; whoever takes the gang over if this run dies is told which they are."""
    trained: dict[str, TunedPrompt] = {}
    plans = [todo for _, todo in gang]
    lease.note(identify(plans))
    step = f"train {plans[0].base_model} ({len(plans)} task{'s' * (len(plans) != 1)})"
    results = mode.step(step, partial(train, context, plans))
    lease.note(None)
    for task, _ in gang:
        with _guard(mode, night, [task]):
            trained[task.name] = _prompt_in(results[task.name])
    return trained


def _prompt_in(result: TunedPrompt | PtpError) -> TunedPrompt:
    if isinstance(result, PtpError):
        raise result  # as what it is: whether a retry can help decides the exit code
    return result


# ---------------------------------------------------------------- isolation


def _guard(mode: Mode, night: Night, tasks: Sequence[Task]) -> AbstractContextManager[None]:
    return isolate(night, tasks) if mode.isolate else nullcontext()


@contextmanager
def isolate(night: Night, tasks: Sequence[Task]) -> Iterator[None]:
    """Let an error inside end these tasks and no other; it goes to the night's errors."""
    try:
        yield
    except PtpError as error:
        night.errors.update({task.name: str(error) for task in tasks})
    except Exception as error:  # noqa: BLE001  a defect in one task's stage must not end the others
        sentence = str(error if isinstance(error, Unexpected) else hide_message(error))
        log.error("%s", sentence)
        night.errors.update({task.name: sentence for task in tasks})


def hide_message(error: Exception) -> Unexpected | SettingsError:
    """Return what stands for an error that nobody expected: what its surroundings lack, or a defect without its words,
    which may hold a text.
    """
    return explain(error) or Unexpected(f"{place_of(error)}; `ptp run TASK` shows all of it on your own terminal")
