"""Keeps in the ledger when a run over several tasks began, why, and what it came to.

`ptp nights` and `ptp metrics` read it.
"""

import logging
from collections.abc import Callable
from typing import Any

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows.requests import NightlyRequest, TuneRequest
from flows.stages.chain import Night
from flows.stages.context import Context, flow_run_page
from flows.stages.outcome import Outcome
from ptpipeline.errors import PtpError
from registry.ledger.nights import NightTask, RecordedNight, begin_night, end_night

log = logging.getLogger("ptpipeline.flows")


def begin(context: Context, request: NightlyRequest | TuneRequest) -> str:
    """Note that the flow run of this process begins; return the id of its night: that of the run that began it."""
    schedule, reason = getattr(request, "schedule", None), getattr(request, "reason", "")
    cause = f"schedule {schedule}" if schedule else reason or "asked for"
    id_, ledger = getattr(request, "night", "") or str(flow_run.id), context.registry.ledger

    def note() -> None:
        page, started = flow_run_page(context.settings), ledger.database.time().isoformat()
        begin_night(
            ledger, RecordedNight(id=id_, flow=str(flow_run.flow_name), cause=cause, page=page, started=started)
        )

    _keep(note)
    return id_


def finish(context: Context, id_: str, night: Night, state: State[Any]) -> State[Any]:
    """Note what the night of that id came to, and return its state."""
    tasks = [_describe(outcome) for outcome in night.outcomes.values()]
    tasks += [NightTask(task=task, status="failed", reason=sentence) for task, sentence in night.errors.items()]
    _keep(lambda: end_night(context.registry.ledger, id_, str(state.name), tasks))
    return state


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


def _keep(note: Callable[[], None]) -> None:
    """A night that is done is not undone by a ledger that is away: only `ptp nights` lacks it."""
    try:
        note()
    except PtpError as error:
        log.warning("`ptp nights` will not tell of this run: %s", error)
