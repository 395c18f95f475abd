"""`ptp approve`, `ptp reject`, `ptp alarm` and what `ptp status` says, as a person runs them."""

import json
import os
import sqlite3
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task, published
from flows.cli.app import os_user
from ptpipeline.storage import FolderStore
from ptpipeline.task.task import Task
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.versions.approval import request_approval
from tests.flows.cli.pty_reader import Typed
from tests.flows.cli.test_cli import environment_of, ptp
from tests.flows.cli.test_ingest import on_terminal
from tests.flows.server.test_events import SECRET, is_genuine
from tests.http_server import Quiet, serve

FILE = """\
name: mood
base_model: tiny
data: {source: {path: rows.csv, format: csv}, text: text, label: label}
template: "{text}\\nMood:"
labels: {bad: " bad", good: " good"}
gate: {metric: accuracy, minimum: 0.8}
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A project in which a candidate of mood waits for one person other than carl."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mood.yaml").write_text(f"{FILE}approvals: 1\n")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    registry, task = Registry(Ledger(f"sqlite:///{home}/ledger.db"), FolderStore(home / "store")), a_task()
    version = registry.ledger.version("mood", published(registry, task, 1))
    verdict = registry.ledger.latest_verdict("mood", version.digest)
    assert verdict
    request_approval(registry, Task.model_validate(task), version, verdict, "carl")
    registry.ledger.close()
    return environment_of(tmp_path)


def test_a_terminal_shows_the_report_and_asks_why(environment: dict[str, str]) -> None:
    seen = on_terminal(environment, 120, "approve", "mood@1", typed=Typed("looks right\n"))
    before, _, after = seen.partition(f"Approve mood@1 as {os_user()}, because: ")
    assert "verdict: passed" in before
    assert "on the test split" in before
    assert f"approved by {os_user()} at" in after
    assert "mood@production is version 1" in after


def read(environment: dict[str, str]) -> list[str]:
    """The option that says which verdict was read, as the list of what waits names it."""
    waiting = [json.loads(line) for line in ptp(environment, "approve", "--json").stdout.splitlines()]
    return ["--verdict", waiting[0]["verdict"][:12] if waiting else "0" * 12]


def test_a_script_says_which_verdict_it_approves(environment: dict[str, str]) -> None:
    asked = ["approve", "mood@1", "--reason", "looks right"]
    for given in ([], ["--verdict", "5f"]):
        done = ptp(environment, *asked, *given)
        assert done.returncode == 2
        assert "--reason needs --verdict" in " ".join(done.stderr.replace("│", " ").split())
    done = ptp(environment, *asked, "--verdict", "0" * 12)
    assert (done.returncode, f"you read the verdict {'0' * 12}" in done.stderr) == (1, True)
    shown = read(environment)
    assert f"verdict: passed ({shown[1]})" in ptp(environment, "show", "mood@1").stdout
    assert ptp(environment, *asked, *shown).returncode == 0


def test_a_terminal_approves_only_what_it_showed(environment: dict[str, str], tmp_path: Path) -> None:
    """While the person reads, the candidate is judged by another policy, and people are asked about that."""

    def judge_again() -> None:
        registry, task = (
            Registry(Ledger(f"sqlite:///{tmp_path}/home/ledger.db"), FolderStore(tmp_path / "home" / "store")),
            a_task(),
        )
        version = registry.ledger.version("mood", 1)
        verdict = registry.ledger.latest_verdict("mood", version.digest)
        assert verdict
        other = verdict.model_copy(update={"measures": {"bytes.stored": 1.0}})
        registry.ledger.save_verdict(other)
        request_approval(registry, Task.model_validate(task), version, other, "carl")
        registry.ledger.close()

    typed = Typed("looks right\n", "because: ", judge_again)
    seen = on_terminal(environment, 120, "approve", "mood@1", typed=typed, code=1)
    assert "you read the verdict" in " ".join(seen.split())
    assert json.loads(ptp(environment, "approve", "--json").stdout)["given"] == 0


def test_it_is_said_how_many_approvals_are_still_needed(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tasks" / "mood.yaml").write_text(f"{FILE}approvals: 2\n")
    done = ptp(environment, "approve", "mood@1", "--reason", "looks right", *read(environment))
    assert done.returncode == 0
    assert "1 of 2 approvals; 1 more of somebody else promotes it" in done.stderr


def test_without_a_reference_it_lists_what_waits(environment: dict[str, str]) -> None:
    done = ptp(environment, "approve", "--json")
    [waiting] = map(json.loads, done.stdout.splitlines())
    assert (waiting["task"], waiting["version"], waiting["status"], waiting["needed"]) == ("mood", 1, "waiting", 1)
    ptp(environment, "reject", "mood@1", "--reason", "wrong tone")
    done = ptp(environment, "approve")
    assert "nothing waits for approval" in done.stdout + done.stderr


def test_without_a_terminal_the_reason_is_an_option(environment: dict[str, str]) -> None:
    done = ptp(environment, "approve", "mood@1")
    assert done.returncode == 2
    assert "say why with --reason" in done.stderr


def test_a_rejected_candidate_is_refused_from_then_on(environment: dict[str, str]) -> None:
    assert ptp(environment, "reject", "mood@1", "--reason", "wrong tone").returncode == 0
    done = ptp(environment, "approve", "mood@1", "--reason", "but why", *read(environment))
    assert done.returncode == 1
    assert f"mood@1 was rejected by {os_user()} at" in done.stderr
    assert "(wrong tone)" in done.stderr


def test_status_and_alarm_say_what_is_overdue(environment: dict[str, str], tmp_path: Path) -> None:
    assert ptp(environment, "status").returncode == 0
    path = tmp_path / "tasks" / "mood.yaml"
    path.write_text(f"{FILE}max_age: 0.000001\n")
    os.utime(path, (0, 0))
    status = ptp(environment, "status")
    assert status.returncode == 4
    assert "overdue: mood: its last verdict is" in status.stderr
    alarm = ptp(environment, "alarm", "--json")
    assert alarm.returncode == 4
    assert json.loads(alarm.stdout)["kind"] == "stale_task"


def test_a_stale_task_reaches_a_receiver_once_and_signed(environment: dict[str, str], tmp_path: Path) -> None:
    received: list[tuple[dict[str, str], bytes]] = []

    class Receiver(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.answer(200)

    path = tmp_path / "tasks" / "mood.yaml"
    path.write_text(f"{FILE}max_age: 0.000001\n")
    os.utime(path, (0, 0))
    with serve(Receiver) as url:
        told = {"PTP_EVENTS": "ops", "PTP_EVENT_OPS": f"{url}/hook", "PTP_EVENT_OPS_SECRET": f"whsec_{SECRET}"}
        for _ in range(2):  # the alarm looks every five minutes
            assert ptp(environment | told, "alarm").returncode == 4
    stale = [(headers, body) for headers, body in received if json.loads(body)["type"] == "stale_task"]
    [(headers, body)] = stale
    assert is_genuine(headers, body)
    content = json.loads(body)
    assert (content["data"]["task"], content["data"]["actor"]) == ("mood", "alarm")
    assert content["text"].startswith("stale task: mood: its last verdict is 0.0 hours old, more than max_age")


def expire(ledger: Path) -> None:
    """As if the days in which people may approve were over; the ledger itself lets nobody change a request."""
    with sqlite3.connect(ledger) as connection:
        connection.execute("DROP TRIGGER approval_request_no_update")
        connection.execute("UPDATE approval_request SET asked = asked - 1e9, expires = expires - 1e9")
    connection.close()


def test_an_approval_that_expired_is_refused_and_promotes_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    shown = read(environment)
    expire(tmp_path / "home" / "ledger.db")
    done = ptp(environment, "approve", "mood@1", "--reason", "looks right", *shown)
    assert (done.returncode, "expired (`approval_days`); `ptp run mood` asks again" in done.stderr) == (1, True)
    assert ptp(environment, "approve", "--json").stdout == ""
    assert "has no production version" in ptp(environment, "predict", "mood", "text").stderr


def test_the_alarm_needs_no_store(environment: dict[str, str]) -> None:
    away = {"PTP_STORE": "s3://away", "PTP_S3_ENDPOINT": "http://127.0.0.1:9"}
    done = ptp(environment | away, "alarm", "--json")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_status_names_a_target_that_takes_no_events(environment: dict[str, str]) -> None:
    away = {"PTP_EVENTS": "ops", "PTP_EVENT_OPS": "slack:http://127.0.0.1:9/hidden"}
    assert ptp(environment, "approve", "mood@1", "--reason", "fine", *read(environment)).returncode == 0
    sent = ptp(environment | away, "alarm")
    assert (sent.returncode, "0 events delivered" in sent.stderr) == (4, True)
    status = ptp(environment | away, "status")
    assert "events: target ops did not take 1, the oldest of 20" in status.stderr
    assert "hidden" not in sent.stderr + status.stderr
