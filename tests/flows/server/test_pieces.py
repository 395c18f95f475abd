"""The pieces of `ptp bootstrap`: what becomes of each, and which there are; servers that answer as Prefect does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.server import bootstrap
from flows.server.bootstrap import Piece, Sight, look_at_automations, look_at_pool, read_template
from flows.server.buckets import NotKept
from ptpipeline.errors import NotFound, PtpError, ServiceUnavailable, SettingsError
from ptpipeline.settings import Settings
from tests.flows.server.test_prefect import Prefect, listening


@pytest.mark.parametrize(
    ("found", "dry", "state", "made"),
    [
        ("there", False, "there", 0),
        ("missing", True, "would be made", 0),
        ("missing", False, "made", 1),
        ("differs", True, "would be changed", 0),
        ("differs", False, "changed", 1),
    ],
)
def test_a_piece_is_made_if_it_is_not_as_it_should_be(found: Any, dry: bool, state: str, made: int) -> None:
    calls: list[None] = []
    piece = Piece("bucket", "here", lambda: Sight(found, "a note"), lambda: calls.append(None))
    outcome = bootstrap._bring(piece, dry)
    assert (outcome.piece, outcome.at, outcome.state, outcome.note) == ("bucket", "here", state, "a note")
    assert len(calls) == made


@pytest.mark.parametrize("where", ["look", "make"])
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (NotKept("by the console"), "by hand"),
        (SettingsError("no right"), "cannot"),
        (ServiceUnavailable("away"), "cannot"),
    ],
)
def test_a_piece_that_cannot_be_made_is_told_in_its_sentence(where: str, error: PtpError, state: str) -> None:
    def fail() -> Any:
        raise error

    piece = Piece("p", "here", fail if where == "look" else lambda: Sight("missing"), fail)
    outcome = bootstrap._bring(piece, dry=False)
    assert (outcome.state, outcome.note) == (state, str(error))


OWN = {"store": "s3://factory/some/prefix", "ledger": "postgresql://me@127.0.0.1:9/ledger"}


@pytest.mark.parametrize(
    ("named", "there", "not_there"),
    [
        ({}, ["bucket factory", "store keeps conditions"], ["bucket factory-mlflow", "MLflow answers"]),
        ({"mlflow": "http://127.0.0.1:9"}, ["bucket factory-mlflow", "MLflow answers"], []),
        ({"store": "file:///tmp/x"}, ["object store"], ["store keeps conditions", "bucket factory"]),
        ({"prefect": "http://127.0.0.1:9/api"}, ["work pool ptp (process)", "deployments", "automations"], ["Prefect"]),
    ],
)
def test_there_is_a_piece_for_each_thing_that_the_settings_name(
    tmp_path: Path, named: dict[str, str], there: list[str], not_there: list[str]
) -> None:
    settings = Settings(home=tmp_path, tasks=tmp_path, **{**OWN, **named})  # type: ignore[arg-type]
    names = [piece.name for piece in bootstrap._pieces(settings, [], bootstrap.DEFAULT)]
    assert {*there} <= {*names}
    assert not {*not_there} & {*names}


# ---------------------------------------------------------------- Prefect


def look(pool: str, routes: dict[str, Callable[[Any], tuple[int, Any]]]) -> Sight:
    with listening(Prefect(routes)) as prefect:
        return look_at_pool(prefect.url, pool)  # type: ignore[arg-type]


def a_pool(kind: str, template: Any) -> dict[str, Callable[[Any], tuple[int, Any]]]:
    return {"GET /work_pools/ptp": lambda _: (200, {"type": kind, "base_job_template": template})}


def test_a_pool_of_the_type_is_there_and_a_changed_template_stays() -> None:
    assert look("process", a_pool("process", read_template("process"))) == Sight("there")
    assert look("process", a_pool("process", {})) == Sight(
        "there", "its job template is not the shipped one, and stays"
    )
    with pytest.raises(SettingsError, match="is of type docker, not process: ask for --pool docker, or delete"):
        look("process", a_pool("docker", {}))


def test_a_pool_is_missing_only_where_prefect_answers() -> None:
    assert look("process", {"GET /health": lambda _: (200, True)}) == Sight("missing")
    with pytest.raises(NotFound, match="has no health"):
        look("process", {})


def test_automations_are_missing_where_no_flow_is_deployed() -> None:
    with listening(Prefect({"POST /deployments/filter": lambda _: (200, [])})) as prefect:
        assert look_at_automations(prefect.url) == Sight("missing")
