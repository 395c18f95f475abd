"""What the watcher takes for a change in MLflow, against a small server that lists models as MLflow does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from flows.local import watcher
from flows.local.watcher import POLL_SECONDS, Watcher, connect, read_aliases
from ptpipeline.errors import ArtifactError, ServiceUnavailable
from ptpipeline.settings import Settings
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
