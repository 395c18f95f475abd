"""Keeps in the ledger when a run over several tasks began, why, and what it came to.

`ptp nights` and `ptp metrics` read it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from flows.requests import NightlyRequest, TuneRequest
from flows.server.api import call
from flows.stages.chain import Night
from flows.stages.context import Context, flow_run_page
from flows.stages.outcome import Outcome
from ptpipeline.errors import PtpError
from ptpipeline.records.base import read_clock
from registry.ledger.database import AWAY_SECONDS, outlasting
from registry.ledger.nights import NightTask, RecordedNight, begin_night, end_night

Result = TypeVar("Result")

_CANCEL_SECONDS = 5.0  # a process that is told to end has ten

log = logging.getLogger("ptpipeline.flows")


def begin(context: Context, request: NightlyRequest | TuneRequest) -> RecordedNight:
    """Note that the flow run of this process begins; return its night, which has the id of the run that began it.

    If that night has ended, a person runs the flow run again (Retry in Prefect): this is another night.
    """
    schedule, reason = getattr(request, "schedule", None), getattr(request, "reason", "")
    cause = f"schedule {schedule}" if schedule else reason or "asked for"
    ledger, again = context.registry.ledger, f"{flow_run.id} {flow_run.run_count}" if flow_run.run_count > 1 else None
    night = RecordedNight(
        id=getattr(request, "night", "") or str(flow_run.id),
        flow=str(flow_run.flow_name),
        cause=cause,
        page=flow_run_page(context.settings),
        started=read_clock().isoformat(),
    )

    def note() -> RecordedNight:
        known = night.model_copy(update={"started": ledger.database.time().isoformat()})
        return known.model_copy(update={"id": begin_night(ledger, known, again)})

    return _keep(note) or night


def finish(
    context: Context, begun: RecordedNight, night: Night, state: State[Any], patience: float = AWAY_SECONDS
) -> State[Any]:
    """Note what the night that began so came to, and return its state; a ledger that is away is asked for so long."""
    tasks = [_describe(outcome) for outcome in night.outcomes.values()]
    tasks += [NightTask(task=task, status="failed", reason=sentence) for task, sentence in night.errors.items()]
    _keep(lambda: end_night(context.registry.ledger, begun, str(state.name), tasks), patience)
    return state


@contextmanager
def noting_cancellation(context: Context, begun: RecordedNight) -> Iterator[None]:
    """If a person cancels the run of this process in the block, note that its night ended so.

    Else it would count as a night that still runs: none would be missed, and it would be too long.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException:  # the signal that ends the process
        if _is_cancelled():
            finish(context, begun, Night({}, {}), Cancelled(), _CANCEL_SECONDS)
        raise


def _is_cancelled() -> bool:
    api = PREFECT_API_URL.value()
    with suppress(PtpError):
        return bool(api) and call("GET", f"{api}/flow_runs/{flow_run.id}")["state_type"] in ("CANCELLING", "CANCELLED")
    return False


def _describe(outcome: Outcome) -> NightTask:
    return NightTask(
        task=outcome.task,
        status=outcome.status,
        reason=outcome.plan or outcome.reason,
        verdict=outcome.verdict,
        version=outcome.version,
        rows=outcome.rows,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        processor_seconds=outcome.processor_seconds,
    )


def _keep(note: Callable[[], Result], patience: float = AWAY_SECONDS) -> Result | None:
    """A night that is done is not undone by a ledger that stays away: only `ptp nights` lacks it."""
    try:
        return outlasting(note, patience)()
    except PtpError as error:
        log.warning("`ptp nights` will not tell of this run: %s", error)
        return None
