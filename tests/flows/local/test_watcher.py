"""What the watcher takes for a change in MLflow, against a small server that lists models as MLflow does; and its
rounds, over a real ledger and store.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import select

from benchmarks.fixtures.prompts import a_task, published
from flows.local import watcher
from flows.local.watcher import POLL_SECONDS, ROUND_SECONDS, Rounds, Watcher, connect, read_aliases
from flows.on_demand.silence import GRACE
from ptpipeline.errors import ArtifactError, ServiceUnavailable
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import pointer_key
from registry.ledger import tables
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from tests.http_server import Quiet, serve


@pytest.fixture(autouse=True)
def _credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ptp")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")


@contextmanager
def listing(*pages: list[dict[str, Any]]) -> Iterator[str]:
    """A server that lists these models, a page at a time."""

    class Models(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            number = int(parse_qs(urlsplit(self.path).query).get("page_token", ["0"])[0])
            more = {"next_page_token": str(number + 1)} if number + 1 < len(pages) else {}
            self.answer(200, json.dumps({"registered_models": pages[number], **more}).encode())

    with serve(Models) as url:
        yield url


class Noting(Watcher):
    """Judges by leaving it for later, or fails."""

    away, done = False, True

    def _judge(self, task: str) -> bool:
        if self.away:
            raise ServiceUnavailable("the ledger does not answer")
        return self.done


def a_model(name: str, version: str, **tags: str) -> dict[str, Any]:
    aliases = [{"alias": "production", "version": version}]
    return {"name": name, "aliases": aliases, "tags": [{"key": key, "value": value} for key, value in tags.items()]}


@pytest.fixture
def models() -> list[dict[str, Any]]:
    return [a_model("mood", "1"), a_model("topic", "1")]


@pytest.fixture
def noting(models: list[dict[str, Any]], tmp_path: Path) -> Iterator[Noting]:
    with listing(models) as url:
        made = Noting(Settings(home=tmp_path, mlflow=url))
        assert made.look() == []  # what was there before is nobody's edit
        yield made


def test_the_models_of_all_pages_are_read() -> None:
    pages = [[a_model("a", "1")], [], [a_model("b", "2")]]
    with listing(*pages) as url:
        assert [name for name, _ in read_aliases(connect(), url)] == ["a", "b"]


@pytest.mark.parametrize("models", [["a text"], 1, [{"aliases": []}]])
def test_what_is_no_list_of_models_is_told(models: Any) -> None:
    with listing(models) as url, pytest.raises(ArtifactError, match="it is no list of models"):
        list(read_aliases(connect(), url))


@pytest.mark.parametrize(
    "after",
    [
        [a_model("mood", "2"), a_model("topic", "1")],
        [a_model("mood", "1", reason="x"), a_model("topic", "1")],
        [a_model("topic", "1")],
    ],
    ids=["alias", "tag", "gone"],
)
def test_a_task_is_judged_once_if_its_aliases_or_tags_changed(
    noting: Noting, models: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    assert noting.look() == []
    models[:] = after
    assert [noting.look(), noting.look()] == [["mood"], []]
    assert noting.pause() == POLL_SECONDS


def test_what_is_not_done_is_looked_at_again_soon(
    noting: Noting, models: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "seconds_apart", lambda: -0.6)
    noting.done = False
    models[0] = a_model("mood", "2")
    assert noting.look() == ["mood"]
    assert noting.pause() == 0.0
    noting.done = True
    assert [noting.look(), noting.look()] == [["mood"], []]


def test_a_change_between_the_two_looks_does_not_delay_the_second(
    noting: Noting, models: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "seconds_apart", lambda: 60.0)
    noting.done = False
    models[0] = a_model("mood", "2")
    noting.look()
    planned = dict(noting._due)
    models[0] = a_model("mood", "3")
    assert noting.look() == ["mood"]
    assert noting._due == planned


def test_a_look_that_fails_is_repeated_though_nothing_changes(
    noting: Noting, models: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "AGAIN_SECONDS", -1.0)
    noting.away = True
    models[0] = a_model("mood", "2")
    with pytest.raises(ServiceUnavailable):
        noting.look()
    noting.away = False
    assert [noting.look(), noting.look()] == [["mood"], []]


# ---------------------------------------------------------------- rounds


@pytest.fixture
def started() -> list[str]:
    """The deployments of which a run was started."""
    return []


@pytest.fixture
def rounds(tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Rounds]:
    """Rounds over a ledger and a store in which production is version 1, whose second round is due at once."""

    class Prefect(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            self.answer(200, json.dumps({"id": self.path.rpartition("/")[2]}).encode())

        def do_POST(self) -> None:  # noqa: N802
            started.append(self.path.split("/")[2])
            self.answer(201, b'{"id": "run"}')

    ledger = f"sqlite:///{tmp_path}/ledger.db"
    registry = Registry(Ledger(ledger), FolderStore(tmp_path / "store"))
    promote(registry, a_task(), published(registry, a_task(), 1), Cause("ada", "better"))
    (tmp_path / "tasks").mkdir()
    monkeypatch.setattr(watcher, "ROUND_SECONDS", 0.0)
    with serve(Prefect) as prefect:
        yield Rounds(
            Settings(
                home=tmp_path,
                tasks=tmp_path / "tasks",
                ledger=ledger,
                store=f"file://{tmp_path}/store",
                prefect=prefect,
            )
        )


def break_task(rounds: Rounds) -> None:
    """A task file that nobody could read for an hour."""
    path = rounds._settings.tasks / "broken.yaml"
    path.write_text("name: [")
    os.utime(path, (time.time() - 3600, time.time() - 3600))


def test_prefects_page_is_brought_up_when_something_else_is_overdue(rounds: Rounds, started: list[str]) -> None:
    """And by the first round, which does not know what it shows."""
    counts = []
    for change in (None, None, break_task, None):
        if change:
            change(rounds)
        rounds.make()
        counts.append(len(started))
    assert counts == [1, 1, 2, 2]
    assert set(started) == {"ptp-alarm"}
    with Ledger(rounds._settings.ledger).database.reading() as connection:
        told = list(connection.execute(select(tables.event.c.kind)).scalars())
    assert told.count("broken_task") == 1


def test_a_round_brings_back_a_pointer_that_was_lost(rounds: Rounds) -> None:
    store = FolderStore(rounds._settings.home / "store")
    store.delete(pointer_key(a_task().name, "production"))
    rounds.make()
    assert store.read(pointer_key(a_task().name, "production"))


def test_the_alarm_is_sounded_though_the_store_is_away_and_pointers_are_mended_though_prefect_is(
    rounds: Rounds, started: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    store = rounds._settings.home / "store"
    store.rename(store.with_name("away"))
    store.write_text("")  # no folder
    rounds.make()
    assert started == ["ptp-alarm"]
    assert "nothing was reconciled" in caplog.text
    store.unlink()
    store.with_name("away").rename(store)
    FolderStore(store).delete(pointer_key(a_task().name, "production"))
    away = Rounds(rounds._settings.model_copy(update={"prefect": "http://127.0.0.1:9"}))
    away.make()
    assert "the alarm was not sounded" in caplog.text
    assert FolderStore(store).read(pointer_key(a_task().name, "production"))


def test_no_round_is_made_before_its_time_and_what_is_overdue_is_noticed_within_fifteen_minutes(
    rounds: Rounds, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "ROUND_SECONDS", ROUND_SECONDS)
    late = Rounds(rounds._settings)
    late.make()
    assert started == []
    assert GRACE.total_seconds() + ROUND_SECONDS < 15 * 60
