"""What each flow is asked for: one record per flow, strict about unknown fields; Prefect's form and `ptp` fill them.

And how a run is named after it, in Prefect's lists.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import Field

from ptpipeline.records.base import Record, digest_of
from ptpipeline.records.versions import PRODUCTION

PREFECT_ACTOR = "prefect"
VERDICT_DIGITS = 12  # at least so many name what a person read
_NAMED = 3  # tasks that the name of a run lists

_LONGEST = 200  # characters of a person's name

Claim = Field(
    PREFECT_ACTOR,
    max_length=_LONGEST,
    title="Claimed name",
    description="Who asks, as they say: nobody checks it, and the history records it as a claim.",
)

Name = Field(
    min_length=1,
    max_length=_LONGEST,
    title="Your name",
    description="Who decides. Nobody checks it, and the history records it as a claim; the one who started the run may "
    "not approve what it made.",
)


def record_claim(name: str) -> str:
    """Return the actor of a request that came through Prefect, which knows nobody: the name is only claimed."""
    return PREFECT_ACTOR if name.strip() in ("", PREFECT_ACTOR) else f"{PREFECT_ACTOR} (claims {name})"


def name_run(flow: str, request: Mapping[str, Any], at: datetime) -> str:
    """Return what a run does, on which day (UTC): `nightly 2026-11-26 all`, `promote 2026-11-26 movie-sentiment@3`."""
    task, tasks, version = request.get("task"), request.get("tasks"), request.get("version", request.get("to"))
    if task is not None:
        about = task if version is None else f"{task}@{version}"
    elif tasks is not None:
        about = ", ".join(tasks) if 0 < len(tasks) <= _NAMED else f"{len(tasks)} tasks"
    else:
        about = "all" if request.get("schedule") is None else "scheduled"
    return f"{flow} {at:%Y-%m-%d} {about}"


def name_tasks(request: Mapping[str, Any]) -> list[str]:
    """Return the tasks that a request names."""
    task = request.get("task")
    return [task] if task is not None else list(request.get("tasks") or [])


def key_run(flow: str, sources: Mapping[str, str], at: datetime) -> str:
    """Return the key by which Prefect starts one run for the same tasks, data (source key by task) and day (UTC)."""
    return f"{flow} {at:%Y-%m-%d} {', '.join(sorted(sources))[:100]} {digest_of(dict(sources))[:16]}"


class IngestRequest(Record):
    """Which tasks to ingest; None means all."""

    tasks: list[str] | None = None


class TuneRequest(Record):
    """Which tasks to train, evaluate, gate and register, without promotion; None means all."""

    tasks: list[str] | None = None


class NightlyRequest(Record):
    """Which tasks to bring up to date and promote by their policy; None means all.

    `schedule` narrows them to the tasks with the schedule of that slug; the scheduler sets it. `reason` is for the log.
    With `force` they train although nothing changed. `actor` may not approve what the run makes. `resumes` counts how
    often the night was started again because its worker died, `night` names the run that began it, and `cancelled` says
    that a person ended or suspended the one before; the automation sets them.
    """

    tasks: list[str] | None = None
    schedule: str | None = None
    reason: str = ""
    force: bool = False
    actor: str = Claim
    resumes: int = 0
    night: str = ""
    cancelled: bool = False


class GangRequest(Record):
    """Which tasks of a night one worker trains together and finishes; `actor` or `schedule` started the night."""

    tasks: list[str]
    force: bool = False
    actor: str = Claim
    schedule: str | None = None


class WatchSourcesRequest(Record):
    """Whose sources to look at; None means every task with `watch: true`, which a task needs in any case."""

    tasks: list[str] | None = None


class PromoteRequest(Record):
    """Move an alias to a version that passed its gate; `override` promotes one that did not, recorded permanently."""

    task: str
    version: int
    reason: str
    alias: str = PRODUCTION
    actor: str = Claim
    override: bool = False


class ApproveRequest(Record):
    """Approve a candidate that waits for people; if enough people did, production names it."""

    task: str = Field(title="Task", description="Its report and difference: artifact `verdict-TASK`.")
    version: int = Field(title="Version", description="The number behind the @, as the night's table shows it.")
    verdict: str = Field(
        title="Verdict",
        pattern=f"^[0-9a-f]{{{VERDICT_DIGITS},64}}$",
        description="The digits of the verdict that you read, as the night's table and the artifact show them. If it "
        "was judged again since, nothing is approved.",
    )
    actor: str = Name
    reason: str = Field(title="Reason", min_length=1, description="Why; the history keeps it forever.")


class RejectRequest(Record):
    """Reject a candidate that waits for people: nothing asks for it again."""

    task: str = Field(title="Task", description="Its report and difference: artifact `verdict-TASK`.")
    version: int = Field(title="Version", description="The number behind the @, as the night's table shows it.")
    actor: str = Name
    reason: str = Field(title="Reason", min_length=1, description="Why; the history keeps it forever.")


class RollbackRequest(Record):
    """Move an alias back to a version that was once promoted; None means the one before."""

    task: str
    reason: str
    alias: str = PRODUCTION
    to: int | None = None
    actor: str = Claim


class AlarmRequest(Record):
    """Notice what is overdue, and send what others are to be told; it asks for nothing."""


class ReconcileRequest(Record):
    """Bring pointers and MLflow to what the ledger says, for one task; None means all."""

    task: str | None = None
