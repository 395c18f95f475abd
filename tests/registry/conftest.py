"""Fixtures of the registry's tests: a ledger, a registry over a folder, one over real servers."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptpipeline.storage import FolderStore, S3Store
from ptpipeline.task import Task
from registry.ledger import Ledger
from registry.mlflow_store import MlflowStore
from registry.registry import Registry
from tests.registry.prompts import a_task
from tests.registry.servers import running_mlflow


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One MLflow server for the whole run."""
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def plain(ledger: Ledger, tmp_path: Path) -> Registry:
    """A registry without any server."""
    return Registry(ledger, FolderStore(tmp_path / "store"))


@pytest.fixture(params=["folder", pytest.param("servers", marks=pytest.mark.servers)])
def registry(request: pytest.FixtureRequest, plain: Registry) -> Registry:
    """A registry over a folder, and one over a real S3 server and a real MLflow server."""
    if request.param == "folder":
        return plain
    s3: S3Store = request.getfixturevalue("s3_store")
    return Registry(plain.ledger, s3, MlflowStore(request.getfixturevalue("mlflow_url")))


@pytest.fixture
def task() -> Task:
    """A task with a name of its own, since the MLflow server is shared."""
    return a_task(f"mood-{uuid.uuid4().hex[:8]}")
