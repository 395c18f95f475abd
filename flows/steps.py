"""The chain from data to promotion as visible Prefect steps: a task's failure ends that task alone."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from prefect import task as prefect_task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task as Step
from prefect.tasks import exponential_backoff

from flows.stages.chain import Stages
from flows.stages.outcome import Candidate, Outcome, outcome_of
from flows.stages.train import Plan
from flows.verdicts import tell
from ptpipeline.errors import PtpError, Transient, place_of
from ptpipeline.records import TunedPrompt
from ptpipeline.settings import load_settings
from ptpipeline.task.task import Task

_RETRIES = 3
_FIRST_DELAY = 2.0  # seconds, doubled with every retry

_log = logging.getLogger("ptpipeline.flows")

Result = TypeVar("Result")


class Unexpected(Exception):
    """A defect: which kind of error, and where, without its message."""


class Night(NamedTuple):
    """What came of a run, by task: outcomes of those that came through, one sentence for each that did not."""

    outcomes: dict[str, Outcome]
    errors: dict[str, str]


def opened() -> Stages:
    """The stages over the worker's settings; from here on the library's progress lines reach the run's page."""
    for name in ("ptpipeline", "registry"):
        logging.getLogger(name).setLevel(logging.INFO)  # Prefect's extra loggers keep the root's level, WARNING
    return Stages.open(load_settings())


def step(name: str, work: Callable[[], Result]) -> Result:
    """Run `work` as a task run of that name, directly, so that its error is this flow's; only Transient is retried."""

    @prefect_task(
        name=name.split()[0],
        task_run_name=name,
        retries=_RETRIES,
        retry_delay_seconds=exponential_backoff(_FIRST_DELAY),
        retry_condition_fn=_is_transient,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run() -> Result:
        try:
            return work()
        except PtpError:
            raise
        except Exception as error:  # noqa: BLE001  Prefect would keep its message for ever, and nobody knows what stands in there
            raise Unexpected(_place(error)) from None

    return run()


def improved(stages: Stages, tasks: list[Task], promote: bool, broken: dict[str, str] | None = None) -> Night:
    """Ingest, train, evaluate, gate and register the tasks, and promote them by their policy if asked to.

    `broken` are tasks whose files are wrong, with a sentence each: they fail the run beside the others.
    """
    night = Night({}, dict(broken or {}))
    plans: list[tuple[Task, Plan]] = []
    _shared(stages, tasks, night)
    for task in (task for task in tasks if task.name not in night.errors):
        with alone(night, [task]):
            snapshot = step(f"ingest {task.name}", partial(stages.ingest, task))
            plans.append((task, step(f"plan {task.name}", partial(stages.plan, task, snapshot))))
    trained = _trained(stages, plans, night)
    for task, plan in plans:
        if task.name in trained:
            with alone(night, [task]):
                night.outcomes[task.name] = _judged(stages, (task, plan), trained[task.name], promote)
    return night


def _shared(stages: Stages, tasks: list[Task], night: Night) -> None:
    """Bring the shared prompts up to date that these tasks start from; where one fails, so do its targets."""
    for name in dict.fromkeys(task.tune.shared for task in tasks if task.tune.shared):
        with alone(night, [task for task in tasks if task.tune.shared == name]):
            step(f"share {name}", partial(stages.share, name))


def _trained(stages: Stages, plans: list[tuple[Task, Plan]], night: Night) -> dict[str, TunedPrompt]:
    """Train one gang per base model; a member that failed alone goes to the errors."""
    trained: dict[str, TunedPrompt] = {}
    for base in sorted({plan.base_model for _, plan in plans}):
        gang = [(task, plan) for task, plan in plans if plan.base_model == base]
        fresh = sum(not plan.trained for _, plan in gang)
        size = f"{fresh} task{'s' * (fresh != 1)}" if fresh else "unchanged"
        with alone(night, [task for task, _ in gang]):
            results = step(f"train {base} ({size})", partial(stages.train, [plan for _, plan in gang]))
            trained |= {name: result for name, result in results.items() if not isinstance(result, str)}
            night.errors.update({name: result for name, result in results.items() if isinstance(result, str)})
    return trained


def _judged(stages: Stages, planned: tuple[Task, Plan], tuned: TunedPrompt, promote: bool) -> Outcome:
    task, plan = planned
    report = step(f"evaluate {task.name}", partial(stages.evaluate, task, tuned, plan.snapshot))
    verdict = step(f"gate {task.name}", partial(stages.gate, task, tuned, report))
    version = step(f"register {task.name}", partial(stages.register, task, tuned, report, verdict))
    promotion = step(f"promote {task.name}", partial(stages.promote, task, version, verdict)) if promote else None
    outcome = outcome_of(stages.registry, task, Candidate(tuned, report, verdict, version, promotion))
    tell(outcome, verdict)
    return outcome


@contextmanager
def alone(night: Night, tasks: list[Task]) -> Iterator[None]:
    """Whatever goes wrong inside ends these tasks and no other; the run is failed by it when all others are done."""
    try:
        yield
    except PtpError as error:
        night.errors.update({task.name: str(error) for task in tasks})
    except Exception as error:  # noqa: BLE001  a defect in one task's stage must not take the others with it
        sentence = str(error) if isinstance(error, Unexpected) else _place(error)
        _log.error("%s", sentence)
        night.errors.update({task.name: sentence for task in tasks})


def _place(error: BaseException) -> str:
    return f"{place_of(error)}; `ptp run TASK` shows all of it on your own terminal"


def _is_transient(_task: Step[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), Transient)
