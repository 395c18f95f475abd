"""Fixtures of the registry's tests: a ledger, a registry over a folder, one over real servers."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.fixtures.mlflow_server import running_mlflow
from benchmarks.fixtures.postgres import Postgres
from benchmarks.fixtures.prompts import a_task
from benchmarks.fixtures.s3_server import S3Server
from ptpipeline.storage import FolderStore, S3Store
from ptpipeline.task.task import Task
from registry import failpoints
from registry.ledger.ledger import Ledger
from registry.mlflow.client import connect
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from tests.registry.signed import WORKER, fill, signed

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One MLflow server for the whole run."""
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(scope="session")
def new_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger's file that was just made; tests begin with a copy, which takes less time than its tables."""
    path = tmp_path_factory.mktemp("new") / "ledger.db"
    Ledger(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def new_database(postgres: Postgres) -> str:
    """The name of a ledger's database that was just made, to copy likewise."""
    Ledger(postgres.create_database("new")).close()
    return "new"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, new_file: Path) -> Iterator[Ledger]:
    """An empty ledger on each database in turn."""
    if request.param == "sqlite":
        opened = Ledger(f"sqlite:///{shutil.copy(new_file, tmp_path)}")
    else:
        server: Postgres = request.getfixturevalue("postgres")
        template = request.getfixturevalue("new_database")
        opened = Ledger(server.create_database(f"ledger-{uuid.uuid4().hex}", template))
    yield opened
    opened.close()


@pytest.fixture
def plain(tmp_path: Path, new_file: Path) -> Iterator[Registry]:
    """A registry without any server."""
    opened = Ledger(f"sqlite:///{shutil.copy(new_file, tmp_path)}")
    yield Registry(opened, FolderStore(tmp_path / "store"))
    opened.close()


@pytest.fixture(params=["folder", pytest.param("servers", marks=pytest.mark.servers)])
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    """A registry over plain files, and one over real PostgreSQL, S3 and MLflow servers."""
    if request.param == "folder":
        yield request.getfixturevalue("plain")
        return
    server: Postgres = request.getfixturevalue("postgres")
    template = request.getfixturevalue("new_database")
    opened = Ledger(server.create_database(f"registry-{uuid.uuid4().hex}", template))
    s3: S3Server = request.getfixturevalue("s3_server")
    store = S3Store(request.getfixturevalue("s3_bucket"), uuid.uuid4().hex, s3.endpoint)
    yield Registry(opened, store, MlflowStore(request.getfixturevalue("mlflow_url")))
    opened.close()


@pytest.fixture
def keyed(plain: Registry) -> Registry:
    """A registry with the worker's key, which is trusted, in which three versions were promoted, one in a release."""
    registry = signed(plain, WORKER, WORKER)
    fill(registry)
    return registry


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """Let something happen when a publish, a promotion or a collection reaches a step."""

    def when(step: str, do: Callable[[], object]) -> None:
        monkeypatch.setattr(failpoints, "_watching", [lambda reached: do() if reached == step else None])

    return when


@pytest.fixture
def task() -> Task:
    """A task with a name of its own, since the MLflow server is shared."""
    return a_task(f"mood-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def client(mlflow_url: str) -> "MlflowClient":
    """MLflow's own client of the shared server."""
    return connect(mlflow_url)


@pytest.fixture
def shown(plain: Registry, mlflow_url: str) -> Registry:
    """A registry over a folder and the real MLflow server."""
    return Registry(plain.ledger, plain.store, MlflowStore(mlflow_url))
