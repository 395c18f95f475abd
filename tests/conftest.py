"""Fixtures that several packages share: object stores over a folder and over a real S3 server."""

import functools
import gc
import multiprocessing
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# One thread unless the environment names a number: tiny models gain nothing from threads that wait for each other, and
# real servers run beside them. `OMP_NUM_THREADS=2 make test` has to pass too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import alembic.command
import boto3
import botocore.session
import pytest
import typer.main
from httpx._transports import default
from hypothesis import settings

from benchmarks.fixtures.postgres import Postgres, running_postgres
from benchmarks.fixtures.s3_server import S3Server, running_s3
from ptpipeline.storage import FolderStore, ObjectStore, S3Store
from tests import ledgers, processes
from tests.hub_server import Hub, running_hub
from tests.schedule import ByFile, rank

# What a run imports is 800,000 objects that stay, and a full collection of garbage looks at each: 0.4 s, a tenth of all
# processor time. So none happens while modules are imported, and later ones leave these objects out.
gc.disable()

MEMORY, ROOM = "/dev/shm", 4 * 2**30  # bytes that have to be free there


def has_room(folder: str) -> bool:
    """Whether a run's files fit in there, and its programs can be run from there."""
    return (
        os.access(folder, os.W_OK)
        and shutil.disk_usage(folder).free > ROOM
        and not os.statvfs(folder).f_flag & os.ST_NOEXEC
    )


# A disk makes every commit of a ledger, a server or a folder store wait for it, and no test cuts the power.
if "TMPDIR" not in os.environ and has_room(MEMORY):
    os.environ["TMPDIR"] = tempfile.tempdir = MEMORY

# Each store has sessions of its own, and each session would read boto's description of S3 again: 0.1 s.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)
# So would each request of httpx with the certificates of all authorities: 0.03 s, also while it polls a server.
default.create_ssl_context = functools.cache(default.create_ssl_context)
# So would each call of `ptp` in this process make its forty verbs of their functions: 0.01 s.
typer.main.get_command = functools.cache(typer.main.get_command)
# And so would each new ledger run every migration: 0.05 s.
alembic.command.upgrade = ledgers.upgrade

settings.register_profile("shared machine", deadline=None)  # time per example says nothing if processors are shared
settings.load_profile("shared machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bring what takes longest to the front if several processes share the tests."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their parameter: gzip writes the second into its header, and processes have to collect the same."""
    return argname if isinstance(val, bytes) else None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Give out the tests as tests/schedule.py says."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_finish() -> None:
    """Name the imports of the one fork server, to which a test module may add; collect garbage from now on."""
    multiprocessing.set_forkserver_preload(processes.IMPORTED)
    gc.freeze()
    gc.callbacks.append(_leave_out)
    gc.enable()


def _leave_out(phase: str, about: dict[str, int]) -> None:
    """Leave what outlived a full collection out of the next: modules that tests import later, and what libraries keep.

    What is left out goes as ever with the last name that it has, unless it is in a circle.
    """
    if phase == "stop" and about["generation"] == 2:
        gc.freeze()


@pytest.fixture(autouse=True)
def _stay() -> Iterator[None]:
    """Let no test leave its process in a folder that goes with it: all later tests of the process would fail."""
    before = os.getcwd()
    yield
    try:
        after = os.getcwd()
    except FileNotFoundError:
        after = "a folder that is gone"
    os.chdir(before)
    assert after == before, f"the test left its process in {after}: use monkeypatch.chdir"


OWN_SERVERS = ("tests/e2e", "tests/deploy", "tests/flows/server/test_bootstrap", "tests/storage/test_identities")
_shared: list[S3Server] = []  # the server of this process, once it runs


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS for the whole run; its keys are in the environment of every test behind it (`_keys`)."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        _shared.append(server)
        yield server


@pytest.fixture(autouse=True)
def _keys(request: pytest.FixtureRequest) -> None:
    """Give each test the keys of the shared server, whatever a test before left in the environment of this process."""
    if _shared and not request.node.nodeid.startswith(OWN_SERVERS):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(_shared[0].environment)


@pytest.fixture(scope="session")
def s3_bucket(s3_server: S3Server) -> str:
    """One bucket for the tests to which a prefix of their own is enough: a fresh bucket's first write takes 0.2 s."""
    boto3.client("s3", endpoint_url=s3_server.endpoint).create_bucket(Bucket="shared")
    return "shared"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for the whole run."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub of models and data sets, which the environment names."""
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.fixture
def s3_store(s3_server: S3Server) -> S3Store:
    """A store in a bucket of its own on the real S3 server."""
    bucket = f"test-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=s3_server.endpoint).create_bucket(Bucket=bucket)
    return S3Store(bucket, endpoint=s3_server.endpoint)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.servers)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Each implementation of the object store in turn, empty."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        return S3Store(request.getfixturevalue("s3_bucket"), uuid.uuid4().hex, server.endpoint)
    return FolderStore(tmp_path / "store")
