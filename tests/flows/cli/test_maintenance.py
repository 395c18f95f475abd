"""Verbs that keep the registry in order, over one task or all; and how nights, tokens and the stack are told."""

import json
import re
import shlex
import threading
import webbrowser
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner, Result

from benchmarks.fixtures.prompts import a_task, published
from flows.cli import app, maintenance  # with all verbs
from flows.cli.stack import _describe_stack
from ptpipeline import storage
from ptpipeline.errors import NotFound
from ptpipeline.private import write_private
from ptpipeline.progress import Standing
from ptpipeline.records import base
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore, Stored
from ptpipeline.storage.keys import manifest_key
from ptpipeline.task.task import Schedule
from registry.ledger.ledger import Ledger
from registry.ledger.nights import begin_night, end_night
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from tests.flows.local.test_sign_in import KEYS, RECORDED
from tests.registry.ledger.test_nights import MOOD, TONE, a_night

ME = Cause("me", "because")


def ptp(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.fixture
def registry(named: Registry, tmp_path: Path) -> Registry:
    """Version 1 of `mood` and of `topic` is in production, and readers see only that of `topic`."""
    (tmp_path / "tasks").mkdir()
    for name in ("mood", "topic"):
        promote(named, a_task(name), published(named, a_task(name), 1), ME)
    named.store.delete("prompts/mood/aliases/production.json")
    return named


def test_doctor_looks_at_one_task_or_at_all(registry: Registry) -> None:
    assert [ptp("doctor", *words).exit_code for words in (["topic"], ["mood"], [])] == [0, 4, 4]
    row = ptp("doctor", "mood").stdout.splitlines()[-1]
    assert row.split()[0] == "mood"
    assert row.split()[-1] == "yes"  # --fix mends it
    assert ptp("doctor", "mood", "--fix").exit_code == 0


def test_doctor_reads_the_base_models_and_names_those_that_are_not_here(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "tasks/base_models.yaml").write_text(f"tiny: {{path: {tmp_path}/base}}")
    answer = ptp("doctor", "topic", "--json")
    assert (answer.exit_code, [json.loads(line)["kind"] for line in answer.stdout.splitlines()]) == (4, ["base"])
    (tmp_path / "base").rmdir()
    answer = ptp("doctor", "topic")
    assert (answer.exit_code, "not on this machine" in answer.stderr) == (0, True)


def test_whoever_waits_for_doctor_hears_how_far_it_has_come(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, told = threading.Event(), list[str]()

    class Telling:
        interval = 0.01

        def show(self, standing: Standing) -> None:
            told.append(str(standing))
            if "of 2 tasks" in told[-1]:
                heard.set()

        def close(self) -> None:
            told.append("closed")

    class Slow(FolderStore):
        def read(self, key: str) -> Stored:
            assert heard.wait(60)
            return super().read(key)

    monkeypatch.setattr(storage, "FolderStore", Slow)
    monkeypatch.setattr(maintenance, "choose_display", Telling)
    assert ptp("doctor").exit_code == 4
    assert any(line.startswith("doctor: 0 of 2 tasks") for line in told)
    assert told[-1] == "closed"


@pytest.mark.parametrize(
    "words",
    [
        ["reconcile", "moood"],
        ["gc", "moood"],
        ["versions", "moood"],
        ["history", "moood"],
        ["rollback", "moood", "--reason", "complaints"],
        ["show", "moood@1"],
        ["show", "moood"],
        ["lineage", "moood@1"],
    ],
)
def test_a_task_that_the_ledger_does_not_know_is_named(registry: Registry, words: list[str]) -> None:
    done = ptp(*words)
    assert isinstance(done.exception, NotFound)
    assert str(done.exception) == (
        "the ledger knows no task 'moood'; it knows mood, topic; `ptp run` registers a task's first version"
    )


def test_a_task_of_which_only_an_intent_is_there_is_known(registry: Registry) -> None:
    registry.ledger.intend("tone", "a" * 64)
    done = ptp("versions", "tone")
    assert (done.exit_code, "nothing is registered yet" in done.stderr) == (0, True)


def test_garbage_of_one_task_is_listed_alone(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mood", "topic"):
        for seed in (2, 3):
            published(registry, a_task(name), seed)
    in_half_an_hour = datetime.now(UTC) + timedelta(minutes=30)
    with monkeypatch.context() as later:
        later.setattr(base, "read_clock", lambda: in_half_an_hour)
        assert ptp("gc", "--keep", "1", "--grace", "1", "--json").stdout == ""  # hours
    words = ("gc", "--keep", "1", "--grace", "0", "--json")
    found = [json.loads(line)["task"] for line in ptp(*words, "mood").stdout.splitlines()]
    assert set(found) == {"mood"}
    assert {json.loads(line)["task"] for line in ptp(*words).stdout.splitlines()} >= {"mood", "topic"}


def test_what_cannot_be_signed_is_exit_code_4(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(tmp_path / "key.pem", key)
    monkeypatch.setenv("PTP_SIGNING_KEY", str(tmp_path / "key.pem"))
    assert [ptp("sign", name).exit_code for name in ("topic", "topic@1", "topic@production")] == [0, 0, 0]
    registry.store.delete(manifest_key("topic", registry.ledger.version("topic", 1).digest))
    assert ptp("sign", "topic").exit_code == 4


# ---------------------------------------------------------------- nights


def test_a_night_is_told_by_what_changed_and_one_that_did_not_end_too(registry: Registry, tmp_path: Path) -> None:
    assert "no night has run yet: `ptp trigger` starts one" in ptp("nights").stderr
    begin_night(registry.ledger, a_night("one").model_copy(update={"page": "http://prefect/runs/1"}))
    same = MOOD.model_copy(update={"task": "topic", "status": "unchanged"})
    end_night(registry.ledger, a_night("one"), "Failed", [TONE, MOOD, same])
    begin_night(registry.ledger, a_night("two", "2026-11-27T02:00:00+00:00"))
    lines = ptp("nights").stdout.splitlines()
    assert lines[0] == "2026-11-27 02:00 UTC  nightly, schedule x: no end; no tasks; did not end, or runs still"
    title = next(line for line in lines if line.startswith("2026-11-26"))
    assert "nightly, schedule x: Failed; 3 tasks, 1 unchanged; " in title
    assert title.endswith(" s")
    assert "  http://prefect/runs/1" in lines
    assert {line.split()[0] for line in lines if line[:5] in ("mood ", "tone ", "topic")} == {"mood", "tone"}
    [shown] = ptp("nights", "--last", "1", "--json").stdout.splitlines()
    assert json.loads(shown)["id"] == "two"


def test_metrics_are_printed_or_written_to_a_file(registry: Registry, tmp_path: Path) -> None:
    printed = ptp("metrics").stdout
    assert 'ptp_production_version{task="mood"} 1.0' in printed
    done = ptp("metrics", "--to", str(tmp_path / "ptp.prom"))
    assert (done.exit_code, done.stdout, (tmp_path / "ptp.prom").read_text()) == (0, "", printed)


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("option", [["--task", "mood"], ["--per-minute", "5"], ["--revoke"]])
def test_a_token_is_named_before_anything_is_done_with_it(registry: Registry, option: list[str]) -> None:
    done = ptp("token", *option)
    assert (done.exit_code, "name the token first" in " ".join(done.stderr.split())) == (2, True)
    assert "no token is made yet" in ptp("token").stderr


# ---------------------------------------------------------------- the stack


def test_what_runs_by_itself_is_told_and_what_does_not(tmp_path: Path) -> None:
    nightly = a_task("mood").model_copy(update={"schedule": Schedule(cron="0 2 * * *", timezone="UTC")})
    settings = Settings(
        home=tmp_path, tasks=tmp_path, prefect="http://127.0.0.1:4200/api", mlflow="http://127.0.0.1:5000"
    )
    lines = _describe_stack(settings, [nightly, a_task("topic")])
    assert lines[0].startswith("Prefect  http://127.0.0.1:4200  ")
    assert lines[-2:] == [
        "nightly at `0 2 * * *` UTC: mood",
        "without a schedule, by `ptp trigger nightly --task TASK`: topic",
    ]
    assert _describe_stack(settings, [nightly])[-1] == "nightly at `0 2 * * *` UTC: mood"
    assert "`ptp init FILE` makes one of a file of rows" in _describe_stack(settings, [])[-1]


def test_what_was_registered_before_there_was_a_stack_is_shown_by_the_command_that_up_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "a home"
    settings = Settings(home=home, tasks=tmp_path, store="s3://ptp")
    assert "before there was a stack" not in "\n".join(_describe_stack(settings, [a_task("mood")]))
    registry = Registry(Ledger(f"sqlite:///{home}/ledger.db"), FolderStore(home / "store"))
    published(registry, a_task("mood"), 1)
    told = re.search(r"`env (.*) ptp versions`", _describe_stack(settings, [a_task("mood")])[-1])
    assert told is not None
    for word in shlex.split(told[1]):
        monkeypatch.setenv(*word.split("=", 1))
    assert "mood  1 " in ptp("versions").stdout


@pytest.mark.parametrize(
    ("options", "there", "printed"), [([], True, False), ([], False, True), (["--no-browser"], True, True)]
)
def test_the_link_is_printed_if_no_browser_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], there: bool, printed: bool
) -> None:
    (tmp_path / "stack.json").write_text(json.dumps({"settings": RECORDED, "processes": {}}))
    (tmp_path / "stack.env").write_text(KEYS)
    monkeypatch.setenv("PTP_HOME", str(tmp_path))
    monkeypatch.setattr(webbrowser, "open", lambda _: there)
    assert ("/ptp-login?token=" in ptp("open", "prefect", *options).stdout) == printed
