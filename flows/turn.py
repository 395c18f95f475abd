"""Whether a night may run now: not too late, not beside another one, and not again and again after its worker died."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

from prefect import runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.requests import NightlyRequest
from flows.server.automations import MOST_RESUMES
from flows.stages.context import Context
from ptpipeline.errors import LeaseHeld, TrainingError
from registry.ledger.database import outlasting
from registry.ledger.gang import SECONDS, holding

NIGHT = "night"  # the lease that a night holds
_POLL_SECONDS = 5.0

log = logging.getLogger("ptpipeline.flows")


class Skipped(Exception):
    """This night does not run; the message says why."""

    def end(self) -> State[Any]:
        """Return the final state of the run: nothing failed, and nothing was done."""
        return Completed(name="Skipped", message=str(self))


@contextmanager
def take_turn(context: Context, request: NightlyRequest, seconds: float = SECONDS) -> Iterator[None]:
    """Let the block be the only night of this ledger; its writes are fenced, should it stand still too long.

    A dead night's lease lasts `seconds`, and is waited for even if nights skip each other.
    Raises Skipped if it comes too late, or while another night runs and the settings say so; TrainingError if its
    workers died too often.
    """
    with ExitStack() as held:
        while True:
            if request.schedule:  # set by the scheduler: what a person asks for is never too late
                time_now = outlasting(context.registry.ledger.database.time)()  # which no worker's clock decides
                check_lateness(runtime.flow_run.scheduled_start_time, time_now, context.settings.late_hours)
            try:
                held.enter_context(holding(context.registry.ledger.database, [NIGHT], seconds=seconds))
                break
            except LeaseHeld as error:
                if context.settings.night_overlap == "skip":
                    raise Skipped(
                        f"another night still runs ({error}); PTP_NIGHT_OVERLAP=skip leaves this one out"
                    ) from None
                log.info("waits for another night to end: %s", error)
                time.sleep(_POLL_SECONDS)
        check_resumes(request.resumes)  # as the one run of this night: what it raises ends the night
        yield


def check_resumes(resumes: int) -> None:
    """Raise TrainingError if the workers of this run died so often that another one would die too."""
    if resumes > MOST_RESUMES:
        raise TrainingError(
            f"the worker of this run died {resumes} times, so it is not started again; the log of the runs before "
            "tells at what; `ptp trigger nightly` starts a new one, which goes on from the checkpoints"
        )


def check_lateness(due: datetime, now: datetime, most: float) -> None:
    """Raise Skipped if it is more than `most` hours after the time that was due."""
    late = (now - due).total_seconds() / 3600
    if late > most:
        raise Skipped(
            f"it was due at {due:%Y-%m-%d %H:%M} UTC and would begin {late:.1f} hours late, more than PTP_LATE_HOURS "
            f"({most:g}) allows; the next one comes as scheduled, and `ptp trigger nightly` starts one now"
        )
