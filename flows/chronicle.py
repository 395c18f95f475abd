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
from registry.ledger.nights import NightTask, RecordedNight, begin_night, end_night

Result = TypeVar("Result")

log = logging.getLogger("ptpipeline.flows")


def begin(context: Context, request: NightlyRequest | TuneRequest) -> str:
    """Note that the flow run of this process begins; return the id of its night: that of the run that began it.

    If that night has ended, a person runs the flow run again (Retry in Prefect): this is another night.
    """
    schedule, reason = getattr(request, "schedule", None), getattr(request, "reason", "")
    cause = f"schedule {schedule}" if schedule else reason or "asked for"
    id_, ledger = getattr(request, "night", "") or str(flow_run.id), context.registry.ledger

    again = f"{flow_run.id} {flow_run.run_count}" if flow_run.run_count > 1 else None

    def note() -> str:
        page, started = flow_run_page(context.settings), ledger.database.time().isoformat()
        night = RecordedNight(id=id_, flow=str(flow_run.flow_name), cause=cause, page=page, started=started)
        return begin_night(ledger, night, again)

    return _keep(note) or id_


def finish(context: Context, id_: str, night: Night, state: State[Any]) -> State[Any]:
    """Note what the night of that id came to, and return its state."""
    tasks = [_describe(outcome) for outcome in night.outcomes.values()]
    tasks += [NightTask(task=task, status="failed", reason=sentence) for task, sentence in night.errors.items()]
    _keep(lambda: end_night(context.registry.ledger, id_, str(state.name), tasks))
    return state


@contextmanager
def noting_cancellation(context: Context, id_: str) -> Iterator[None]:
    """If a person cancels the run of this process in the block, note that its night of that id ended so.

    Else it would count as a night that still runs: none would be missed, and it would be too long.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException:  # the signal that ends the process
        if _is_cancelled():
            finish(context, id_, Night({}, {}), Cancelled())
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


def _keep(note: Callable[[], Result]) -> Result | None:
    """A night that is done is not undone by a ledger that is away: only `ptp nights` lacks it."""
    try:
        return note()
    except PtpError as error:
        log.warning("`ptp nights` will not tell of this run: %s", error)
        return None
