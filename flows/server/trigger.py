"""Flow runs from the client's side: start one and follow its log. Imports no Prefect."""

import logging
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.requests import name_run, name_tasks
from flows.server.api import FINAL, call, expect
from flows.server.pauses import explain_wait
from flows.table import unescape_words
from ptpipeline.errors import NotFound, ServiceUnavailable, SettingsError
from ptpipeline.foreign import parse_json
from ptpipeline.records.base import Record

_POLL_SECONDS = 2.0
_PATIENCE = 12.0  # seconds; a worker that is free takes a run within 5
_AWAY_SECONDS = 300.0  # a server that is started again takes one minute, a busy one of SQLite less
_LATE_SECONDS = 60  # log lines come in batches, out of order


class LogLine(Record):
    """One line of a flow run's log; `logger` and `level` are those of Python's logging."""

    at: str
    logger: str
    level: int
    message: str


class Finished(Record):
    """How a flow run ended: state type (COMPLETED, FAILED, CRASHED, CANCELLED), the state's name (`Gate failed` is of
    type FAILED), its message, and the rows of its table.
    """

    state: str
    name: str
    message: str
    rows: list[dict[str, Any]]


def trigger(prefect_url: str, flow: str, request: Record, idempotency_key: str | None = None) -> str:
    """Start the deployment `ptp-<flow>` and return the flow run's id; a repeated key returns the id of the first run.

    Raises ServiceUnavailable if Prefect does not answer, NotFound if the flow is not deployed, SettingsError if Prefect
    refuses the request.
    """
    try:
        deployment = call("GET", f"{prefect_url}/deployments/name/{flow}/ptp-{flow}")
    except NotFound:
        raise NotFound(
            f"Prefect at {prefect_url} has no deployment {flow}/ptp-{flow}: run `ptp up`, which deploys the flows"
        ) from None
    asked = request.to_json()
    body = {
        "parameters": {"request": asked},
        "idempotency_key": idempotency_key or uuid.uuid4().hex,
        "name": name_run(flow, asked, datetime.now(UTC)),
        "tags": [f"task:{task}" for task in name_tasks(asked)],
    }
    try:
        run = call("POST", f"{prefect_url}/deployments/{deployment['id']}/create_flow_run", body)
    except SettingsError as error:
        hint = "; `ptp up` makes a new task known to Prefect" if "is not one of" in str(error) else ""
        raise SettingsError(f"{error}{hint}") from None
    return str(run["id"])


def follow(prefect_url: str, run_id: str) -> Iterator[LogLine | Finished]:
    """Yield the run's log lines as they arrive, and one why no worker takes it if none does; then how the run ended.

    A run goes on without Prefect's server, so one that is away is told once and waited for. Raises ServiceUnavailable
    if it is away for _AWAY_SECONDS, NotFound if the run was removed there.
    """
    seen: set[str] = set()
    since: str | None = None
    began = answered = time.monotonic()
    patience, is_away = _PATIENCE, False
    while True:
        try:
            run = _read_run(prefect_url, run_id)
            done = run["state_type"] in FINAL
            if done:
                time.sleep(_POLL_SECONDS)  # the last lines are stored after the state
            lines, rows = list(_lines(prefect_url, run_id, since)), _rows(prefect_url, run_id) if done else []
            waits = run["state_type"] == "SCHEDULED" and time.monotonic() - began > patience
            reason = explain_wait(prefect_url, run) if waits else None
        except ServiceUnavailable as error:
            if time.monotonic() - answered > _AWAY_SECONDS:
                raise
            if not is_away:
                yield _warn(f"{error}; the run goes on, and its log is followed as soon as Prefect answers again")
            is_away = True
            time.sleep(_POLL_SECONDS)
            continue
        answered, is_away = time.monotonic(), False
        for line in lines:
            if line["id"] not in seen:
                seen.add(line["id"])
                since = line["timestamp"]
                yield LogLine(at=line["timestamp"], logger=line["name"], level=line["level"], message=line["message"])
        if waits:
            patience *= 2
        if reason:
            yield _warn(f"waits: {reason}")
        if done:
            expect(run, state=dict)
            state = run["state"]
            yield Finished(state=run["state_type"], name=state["name"], message=state["message"] or "", rows=rows)
            return
        time.sleep(_POLL_SECONDS)


def _warn(message: str) -> LogLine:
    return LogLine(at=datetime.now(UTC).isoformat(), logger="ptpipeline.flows", level=logging.WARNING, message=message)


def _read_run(prefect_url: str, run_id: str) -> Any:
    try:
        return call("GET", f"{prefect_url}/flow_runs/{run_id}")
    except NotFound:
        raise NotFound(
            f"flow run {run_id} was removed in Prefect; if a worker had begun it, it goes on to its end: `ptp nights`"
        ) from None


def _lines(prefect_url: str, run_id: str, since: str | None) -> Iterator[dict[str, Any]]:
    """Yield the run's log lines in order of time, starting a minute before `since`."""
    logs: dict[str, Any] = {"flow_run_id": {"any_": [run_id]}}
    if since is not None:
        after = datetime.fromisoformat(since) - timedelta(seconds=_LATE_SECONDS)
        logs["timestamp"] = {"after_": after.isoformat()}
    offset = 0
    while True:
        page = call(
            "POST",
            f"{prefect_url}/logs/filter",
            {"logs": logs, "sort": "TIMESTAMP_ASC", "offset": offset, "limit": 200},
        )
        for line in page:
            expect(line, timestamp=str, level=int, message=str)
        yield from page
        offset += len(page)
        if len(page) < 200:
            return


def _rows(prefect_url: str, run_id: str) -> list[dict[str, Any]]:
    body = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "type": {"any_": ["table"]}}}
    artifacts = call("POST", f"{prefect_url}/artifacts/filter", body)
    for artifact in artifacts:
        expect(artifact, data=str)
    return [
        unescape_words(row)
        for artifact in artifacts
        for row in parse_json(artifact["data"].encode(), f"the table of flow run {run_id}", "run it again")
    ]
