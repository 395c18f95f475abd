"""`ptp bootstrap` on servers that somebody else started: Prefect, MLflow, S3 and PostgreSQL.

A night behind it runs in tests/deploy/test_compose.py.
"""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import psycopg
import pytest

from benchmarks.fixtures.mlflow_server import running_mlflow
from benchmarks.fixtures.postgres import Postgres
from benchmarks.fixtures.prefect_server import CREDENTIAL, running_prefect
from benchmarks.fixtures.s3_server import S3Server, running_s3
from flows.server.api import call
from flows.server.bootstrap import Outcome, Wanted, bootstrap, make_pool, read_template
from flows.server.deploy import FLOWS
from ptpipeline.errors import SettingsError
from ptpipeline.settings import Settings, load_settings
from ptpipeline.task.folder import sound_tasks
from registry.ledger.database import Database
from tests.e2e.conftest import write_project

pytestmark = pytest.mark.servers


class Foreign(NamedTuple):
    """The settings of servers of somebody else, and what the first calls of bootstrap said of them."""

    settings: Settings
    s3: S3Server
    dry: list[Outcome]
    untouched: bool  # nothing was there behind the dry run
    first: list[Outcome]
    second: list[Outcome]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Foreign]:
    """Servers of somebody else with one project, brought up once; the environment points at them."""
    folder = tmp_path_factory.mktemp("foreign")
    write_project(folder)
    ledger = postgres.create_database(f"ledger-{uuid.uuid4().hex}")
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        prefect = running_prefect(folder / "prefect-server")
        mlflow = running_mlflow(folder / "mlflow-server")
        entered = pool.map(stack.enter_context, (prefect, mlflow))
        s3 = stack.enter_context(running_s3(folder / "s3", policies=True))
        api, tracking = entered
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.chdir(folder)
        named = {"HOME": folder / "home", "STORE": "s3://factory/some/prefix", "LEDGER": ledger, "MLFLOW": tracking}
        named |= {"PREFECT": api, "S3_ENDPOINT": s3.endpoint, "TASKS": folder / "tasks"}
        for name, value in named.items():
            patch.setenv(f"PTP_{name}", str(value))
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        patch.setenv("PREFECT_API_AUTH_STRING", CREDENTIAL)
        settings = load_settings()
        tasks = sound_tasks(settings.tasks)[0]
        dry = bootstrap(settings, tasks, dry=True)
        untouched = (
            Database(ledger, migrate=False).stored_schema() is None
            and call("POST", f"{api}/work_pools/filter", {}) == []
            and call("POST", f"{api}/deployments/filter", {}) == []
            and s3_client(s3).list_buckets()["Buckets"] == []
        )
        yield Foreign(settings, s3, dry, untouched, bootstrap(settings, tasks), bootstrap(settings, tasks))


def s3_client(server: S3Server) -> Any:
    return boto3.client("s3", endpoint_url=server.endpoint)


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.piece: outcome.state for outcome in outcomes}


def again(foreign: Foreign, **options: Any) -> dict[str, str]:
    return states(bootstrap(foreign.settings, sound_tasks(foreign.settings.tasks)[0], **options))


PIECES = [
    "bucket factory",
    "bucket factory-mlflow",
    "policy factory-some-prefix-ptp-trainer",
    "policy factory-some-prefix-ptp-promoter",
    "policy factory-some-prefix-ptp-nightly",
    "policy factory-some-prefix-ptp-server",
    "policy factory-some-prefix-ptp-mlflow",
    "ledger's schema",
    "store keeps conditions",
    "MLflow answers",
    "work pool ptp (process)",
    "deployments",
    "automations",
]


def test_a_dry_run_names_what_is_missing_and_makes_nothing(foreign: Foreign) -> None:
    assert [outcome.piece.split(" 0")[0] for outcome in foreign.dry] == PIECES
    assert {outcome.state for outcome in foreign.dry} == {"would be made", "there"}
    assert [outcome.piece for outcome in foreign.dry if outcome.state == "there"] == ["MLflow answers"]
    assert foreign.untouched


def test_the_first_run_makes_what_the_dry_run_named(foreign: Foreign) -> None:
    assert [outcome.note for outcome in foreign.first if outcome.state == "cannot"] == []
    promised = {outcome.piece for outcome in foreign.dry if outcome.state == "would be made"}
    made = {outcome.piece for outcome in foreign.first if outcome.state == "made"}
    assert made | {"automations"} == promised  # which come with the deployments
    api = foreign.settings.prefect
    assert call("GET", f"{api}/work_pools/ptp")["base_job_template"] == read_template("process")
    assert {one["name"] for one in call("POST", f"{api}/deployments/filter", {})} == {f"ptp-{name}" for name in FLOWS}


def test_a_second_run_changes_nothing(foreign: Foreign) -> None:
    assert {outcome.piece: (outcome.state, outcome.note) for outcome in foreign.second} == {
        outcome.piece: ("there", "") for outcome in foreign.first
    }
    before = all_of_prefect(foreign)
    again(foreign)
    assert all_of_prefect(foreign) == before


def all_of_prefect(foreign: Foreign) -> dict[str, Any]:
    """All that the server holds of pools and deployments, with the time of each last change."""
    kinds = ("work_pools", "deployments", "automations", "flows")
    found = {kind: call("POST", f"{foreign.settings.prefect}/{kind}/filter", {}) for kind in kinds}
    for deployment in found["deployments"]:
        del deployment["status"]  # whether a worker was seen
    for pool in found["work_pools"]:
        del pool["status"]
    return found


def test_what_somebody_changed_comes_back_and_what_somebody_paused_stays_paused(foreign: Foreign) -> None:
    api = foreign.settings.prefect
    nightly = call("GET", f"{api}/deployments/name/nightly/ptp-nightly")
    schedule = f"{api}/deployments/{nightly['id']}/schedules/{nightly['schedules'][0]['id']}"
    call("PATCH", schedule, {"active": False})  # as Prefect's page does; Prefect then forgets the parameters
    call("PATCH", f"{api}/deployments/{nightly['id']}", {"entrypoint": "flows.old.nightly"})
    tune = call("GET", f"{api}/deployments/name/tune/ptp-tune")
    call("DELETE", f"{api}/deployments/{tune['id']}")
    (told,) = (one for one in bootstrap(foreign.settings, tasks_of(foreign), dry=True) if one.piece == "deployments")
    assert told.state == "would be changed"
    assert told.note == "ptp-tune is missing; ptp-nightly has another entry point, another set of schedules"
    assert again(foreign)["deployments"] == "changed"
    after = call("GET", f"{api}/deployments/name/nightly/ptp-nightly")
    assert after["entrypoint"] == "flows.nightly.nightly"
    (kept,) = after["schedules"]
    assert (kept["id"], kept["active"]) == (nightly["schedules"][0]["id"], False)
    assert kept["parameters"] == nightly["schedules"][0]["parameters"] != {}
    call("PATCH", schedule, {"active": True, "parameters": kept["parameters"]})
    assert again(foreign)["deployments"] == "there"


def tasks_of(foreign: Foreign) -> Any:
    return sound_tasks(foreign.settings.tasks)[0]


def test_a_policy_that_somebody_loosened_is_put_back_or_told(foreign: Foreign) -> None:
    iam = boto3.client("iam", endpoint_url=foreign.s3.endpoint)
    arn = "arn:aws:iam:::policy/factory-some-prefix-ptp-server"
    loose = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:*"],"Resource":["arn:aws:s3:::*"]}]}'
    iam.create_policy_version(PolicyArn=arn, PolicyDocument=loose, SetAsDefault=True)
    assert again(foreign, dry=True)["policy factory-some-prefix-ptp-server"] == "would be changed"
    assert again(foreign)["policy factory-some-prefix-ptp-server"] == "changed"
    assert again(foreign, dry=True)["policy factory-some-prefix-ptp-server"] == "there"


def test_a_pool_of_another_type_is_told_and_stays(foreign: Foreign) -> None:
    outcomes = bootstrap(foreign.settings, tasks_of(foreign), Wanted("kubernetes", gpus=1))
    (told,) = (outcome for outcome in outcomes if outcome.piece.startswith("work pool"))
    assert told.state == "cannot"
    assert "is of type process, not kubernetes: ask for --pool process, or delete the pool first" in told.note


# ---------------------------------------------------------------- what is missing


def test_each_missing_setting_is_one_sentence(foreign: Foreign, tmp_path: Path) -> None:
    unset = {
        "store": f"file://{tmp_path}",
        "ledger": f"sqlite:///{tmp_path}/ledger.db",
        "mlflow": None,
        "prefect": None,
    }
    settings = foreign.settings.model_copy(update={**unset, "home": tmp_path})
    outcomes = bootstrap(settings, [])
    assert {outcome.state for outcome in outcomes} == {"cannot"}
    assert [(outcome.at, outcome.note.count(": ")) for outcome in outcomes] == [
        (name, 1) for name in ("PTP_STORE", "PTP_LEDGER", "PTP_MLFLOW", "PTP_PREFECT")
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "wrong", "piece", "sentence"),
    [
        (
            "ledger",
            "postgresql://postgres@127.0.0.1:{port}/nowhere",
            "ledger's",
            'database "nowhere" does not exist; make',
        ),
        ("ledger", "postgresql://nobody@127.0.0.1:{port}/postgres", "ledger's", 'role "nobody" does not exist; make'),
        (
            "ledger",
            "postgresql://reader@127.0.0.1:{port}/closed",
            "ledger's",
            "permission denied for schema public; make",
        ),
        ("mlflow", "http://127.0.0.1:9", "MLflow", "MLflow at http://127.0.0.1:9 does not answer"),
        ("prefect", "http://127.0.0.1:9/api", "work pool", "Prefect at http://127.0.0.1:9 does not answer"),
        ("s3_endpoint", "http://127.0.0.1:9", "bucket", "http://127.0.0.1:9 does not answer (EndpointConnectionError)"),
    ],
)
def test_each_missing_server_or_right_is_one_sentence(
    foreign: Foreign, postgres: Postgres, setting: str, wrong: str, piece: str, sentence: str
) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'reader'").fetchone():
            connection.execute("CREATE ROLE reader LOGIN")
            connection.execute("CREATE DATABASE closed")
    settings = foreign.settings.model_copy(update={setting: wrong.format(port=postgres.port)})
    outcomes = bootstrap(settings, tasks_of(foreign))
    told = [outcome for outcome in outcomes if outcome.piece.startswith(piece)]
    assert told[0].state == "cannot"
    assert sentence in told[0].note
    assert {one.state for one in outcomes if one.at != told[0].at} <= {
        "there",
        "by hand",
        "cannot",
        "changed",
    }  # what a test before left behind


def test_keys_without_rights_are_one_sentence(foreign: Foreign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "somebody:wrong")
    told = {outcome.piece: outcome for outcome in bootstrap(foreign.settings, tasks_of(foreign))}
    assert "this identity may not look at the bucket factory (403" in told["bucket factory"].note
    assert "Prefect at" in told["deployments"].note
    assert "refuses the credentials (401): set PREFECT_API_AUTH_STRING" in told["deployments"].note


def test_a_made_pool_has_the_template_of_its_type(foreign: Foreign, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect takes the templates of all types, not only of the one in use."""
    monkeypatch.setattr("flows.server.bootstrap.POOL", "other")
    api = str(foreign.settings.prefect)
    for pool in ("docker", "kubernetes"):
        make_pool(api, pool)
        assert call("GET", f"{api}/work_pools/other")["base_job_template"] == read_template(pool)
        call("DELETE", f"{api}/work_pools/other")
    with pytest.raises(SettingsError, match="Prefect refuses POST work_pools/"):
        make_pool(api, "process") or make_pool(api, "process")
    call("DELETE", f"{api}/work_pools/other")
