"""What a server says of itself: whether it is ready, which models it has, and that its store is away."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from ptpipeline.server.door import ANYONE, Ending
from ptpipeline.server.limits import Limits
from ptpipeline.server.metrics import Metrics
from ptpipeline.server.observation import make_router
from ptpipeline.server.service import Service
from ptpipeline.serving.live import Live
from ptpipeline.serving.pointers import DISCOVER
from ptpipeline.storage import FolderStore
from tests.server.serving import fill
from tests.server.test_door import Unobserved
from tests.serving.registered import Clock, OnEngine, point


def test_a_server_is_not_ready_before_its_first_look_at_the_store(tmp_path: Path) -> None:
    live, application = Live(FolderStore(tmp_path / "store"), OnEngine(), tmp_path / "home"), FastAPI()
    service = Service(live, Unobserved(), Limits(), None)  # type: ignore[arg-type]
    application.include_router(make_router(service, Ending()))
    client = TestClient(application)
    assert (client.get("/readyz").status_code, client.get("/readyz").text) == (503, "the versions are not loaded yet")
    live.start()
    assert client.get("/readyz").status_code == 200
    live.stop()


def test_each_alias_is_a_model_and_a_store_that_is_away_is_told(tmp_path: Path) -> None:
    store, clock, application = FolderStore(tmp_path / "store"), Clock(), FastAPI()
    canary = point(store, 1, fill(store)["first"].digest, 1, alias="canary", task="movies")
    live = Live(store, OnEngine(), tmp_path / "home", clock=clock)
    live.poll()
    service = Service(live, Unobserved(), Limits(), Metrics(live, Unobserved()))  # type: ignore[arg-type]
    application.include_router(make_router(service, Ending()))

    @application.middleware("http")
    async def let_in(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        request.state.caller = ANYONE
        return await answer(request)

    client = TestClient(application)
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert {name: model["version"] for name, model in models.items()} == {
        "movies": "movies@2", "movies@canary": "movies@1", "pairs": "pairs@1", "writer": "writer@1",
    }  # fmt: skip
    assert [models[name]["generates"] for name in ("movies", "writer")] == [False, True]
    assert models["movies@canary"]["created"] == int(datetime.fromisoformat(canary.at).timestamp())
    store.root.rename(tmp_path / "unmounted")
    assert client.get("/v1/status").json()["trouble"] is False  # nobody looked since
    clock.now += DISCOVER
    live.poll()
    assert client.get("/v1/status").json()["trouble"] is True
