"""A real server of the tiny base in this process: a store with prompts, its versions, and the listener."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI

from ptpipeline.errors import NotFound
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.prompts.artifact import Artifact, write_artifact
from ptpipeline.records.base import now
from ptpipeline.records.prompts import Generation
from ptpipeline.records.versions import Pointer, Promotion, VersionName
from ptpipeline.server.application import make_application
from ptpipeline.server.callers import Tokens
from ptpipeline.server.door import Ending
from ptpipeline.server.limits import Limits
from ptpipeline.server.listen import Address, Server
from ptpipeline.server.metrics import Metrics
from ptpipeline.server.service import Service
from ptpipeline.serving.answerer import Answerer
from ptpipeline.serving.batcher import Batcher
from ptpipeline.serving.engine import Engine
from ptpipeline.serving.live import EVERY, Live
from ptpipeline.storage import FolderStore, ObjectStore
from ptpipeline.storage.keys import pointer_key, version_key
from tests.evaluation.probed import artifact, embeddings, tiny

TASK, PAIRS, WRITER = "movies", "pairs", "writer"


class Running(NamedTuple):
    """A server that runs, and what it was made of."""

    url: str
    store: ObjectStore
    live: Live
    answerer: Batcher
    server: Server
    application: FastAPI
    ending: Ending


def publish(store: ObjectStore, made: Artifact, number: int, alias: str | None = "production") -> Promotion:
    """Store the prompt as a version of its task, and let the alias name it."""
    task = made.manifest.task
    write_artifact(store, made)
    name = VersionName(task=task, number=number, digest=made.digest)
    store.create(version_key(task, number), name.model_dump_json().encode())
    promotion = Promotion(
        task=task, alias=alias or "", seq=number, version=number, digest=made.digest, previous=number - 1 or None,
        actor="test", reason="test", verdict=None, at=now(),
    )  # fmt: skip
    if alias:
        body = Pointer(promotion=promotion, nonce=f"{number:032d}").model_dump_json().encode()
        key = pointer_key(task, alias)
        try:
            store.replace(key, body, store.read(key).etag)
        except NotFound:
            store.create(key, body)
    return promotion


def prompts() -> dict[str, Artifact]:
    """One prompt of each kind: two versions that tell opinions, one of two fields, one that writes."""
    base = tiny()
    two = "{first}\n{second}\nSentiment:"
    return {
        "first": artifact(base, embeddings(base, " yes")),
        "second": artifact(base, embeddings(base, " the film")),
        "pairs": artifact(base, embeddings(base, " yes"), task=PAIRS, template=two),
        "writer": artifact(
            base, embeddings(base, " yes"), task=WRITER, labels={}, generate=Generation(max_new_tokens=4)
        ),
    }


def fill(store: ObjectStore) -> dict[str, Artifact]:
    """Publish them: movies@1 and movies@2 (production), pairs@1, writer@1."""
    made = prompts()
    publish(store, made["first"], 1)
    publish(store, made["second"], 2)
    publish(store, made["pairs"], 1)
    publish(store, made["writer"], 1)
    return made


@contextmanager
def running(
    folder: Path, tokens: Tokens | None = None, limits: Limits = Limits(), address: Address = Address("127.0.0.1", 0),
    log_texts: bool = False, waiting: int = 1000, answers: Answerer | None = None, name: str = "",
    store: ObjectStore | None = None, every: float = EVERY, clock: Callable[[], float] = time.monotonic,
    base: FrozenBase | None = None,
) -> Iterator[Running]:  # fmt: skip
    """A server over a filled store, in a thread of this process. answers: who answers instead of the batcher. name:
    under which it reports. store: that of another server, else one of its own. every, clock: of its looks at the store.
    base: another one than the tiny one, of which the prompts in the store are.
    """
    if store is None:
        store = FolderStore(folder / "store")
        fill(store)
    answerer = Batcher(Engine(base or tiny()), waiting)
    live = Live(store, answerer, folder / "home", server=name, every=every, clock=clock)
    live.start()
    ending = Ending()
    service = Service(live, answers or answerer, limits, Metrics(live, answerer), log_texts)
    application = make_application(service, tokens, ending)
    server = Server(address, ending)
    thread = threading.Thread(target=server.run, args=(application,), daemon=True)
    thread.start()
    try:
        while not server.listens and thread.is_alive():
            time.sleep(0.01)
        yield Running(server.url, store, live, answerer, server, application, ending)
    finally:
        server.end()
        thread.join()
        live.stop()
        answerer.close()
