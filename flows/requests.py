"""What each flow is asked for: one record per flow, strict about unknown fields; Prefect's form and `ptp` fill them."""

from pydantic import Field

from ptpipeline.records.base import Record
from ptpipeline.records.versions import PRODUCTION

PREFECT_ACTOR = "prefect"

Claim = Field(
    PREFECT_ACTOR,
    title="Claimed name",
    description="Who asks, as they say: nobody checks it, and the history records it as a claim.",
)


def record_claim(name: str) -> str:
    """Return the actor of a request that came through Prefect, which knows nobody: the name is only claimed."""
    return PREFECT_ACTOR if name.strip() in ("", PREFECT_ACTOR) else f"{PREFECT_ACTOR} (claims {name})"


class IngestRequest(Record):
    """Which tasks to ingest; None means all."""

    tasks: list[str] | None = None


class TuneRequest(Record):
    """Which tasks to train, evaluate, gate and register, without promotion; None means all."""

    tasks: list[str] | None = None


class NightlyRequest(Record):
    """Which tasks to bring up to date and promote by their policy; None means all.

    `schedule` narrows them to the tasks with the schedule of that slug; the scheduler sets it. `reason` is for the log.
    With `force` they train although nothing changed. `resumes` counts how often the night was started again because its
    worker died, and `night` names the run that began it; the automation sets both.
    """

    tasks: list[str] | None = None
    schedule: str | None = None
    reason: str = ""
    force: bool = False
    resumes: int = 0
    night: str = ""


class GangRequest(Record):
    """Which tasks of a night one worker trains together and finishes."""

    tasks: list[str]
    force: bool = False


class PromoteRequest(Record):
    """Move an alias to a version that passed its gate; `override` promotes one that did not, recorded permanently."""

    task: str
    version: int
    reason: str
    alias: str = PRODUCTION
    actor: str = Claim
    override: bool = False


class RollbackRequest(Record):
    """Move an alias back to a version that was once promoted; None means the one before."""

    task: str
    reason: str
    alias: str = PRODUCTION
    to: int | None = None
    actor: str = Claim


class ReconcileRequest(Record):
    """Bring pointers and MLflow to what the ledger says, for one task; None means all."""

    task: str | None = None
