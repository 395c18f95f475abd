"""What a server says of itself before it has anything to answer with."""

from pathlib import Path

from fastapi import FastAPI
from starlette.testclient import TestClient

from ptpipeline.server.door import Ending
from ptpipeline.server.limits import Limits
from ptpipeline.server.observation import make_router
from ptpipeline.server.service import Service
from ptpipeline.serving.live import Live
from ptpipeline.storage import FolderStore
from tests.serving.registered import OnEngine


def test_a_server_is_not_ready_before_its_first_look_at_the_store(tmp_path: Path) -> None:
    live, application = Live(FolderStore(tmp_path / "store"), OnEngine(), tmp_path / "home"), FastAPI()
    application.include_router(make_router(Service(live, None, Limits(), None), Ending()))  # type: ignore[arg-type]
    client = TestClient(application)
    assert (client.get("/readyz").status_code, client.get("/readyz").text) == (503, "the versions are not loaded yet")
    live.start()
    assert client.get("/readyz").status_code == 200
    live.stop()
