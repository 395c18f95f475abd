"""A real server of the tiny base in this process: a store with prompts, its versions, and the listener."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI

from ptpipeline.errors import NotFound, PtpError
from ptpipeline.prompts.artifact import Artifact, write_artifact
from ptpipeline.records.base import now
from ptpipeline.records.prompts import Generation
from ptpipeline.records.versions import Pointer, Promotion, VersionName
from ptpipeline.server.application import make_application
from ptpipeline.server.door import Leaving
from ptpipeline.server.limits import Limits
from ptpipeline.server.listen import Address, Server
from ptpipeline.server.metrics import Metrics
from ptpipeline.server.service import Service
from ptpipeline.server.tokens import Tokens
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.live import Live
from ptpipeline.serving.memory import Memory
from ptpipeline.serving.service import Piece, Sampling
from ptpipeline.storage import FolderStore, ObjectStore
from ptpipeline.storage.keys import pointer_key, version_key
from ptpipeline.task.template import Fields
from tests.evaluation.probed import artifact, embeddings, tiny

TASK, PAIRS, WRITER = "movies", "pairs", "writer"


class EngineAnswerer:
    """Answers one request after another with an engine; `pause` is how long each waits before."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.pause, self.waiting, self.cancelled = engine, 0.0, 0, 0
        self._alone = asyncio.Lock()

    def hold(self, artifact: Artifact, members: Sequence[Artifact]) -> None:
        self.engine.load(artifact, members)

    def drop(self, digest: str) -> None:
        pass

    async def classify(
        self, digest: str, texts: Sequence[Fields], patience: float
    ) -> list[dict[str, float] | PtpError]:
        outcomes: list[dict[str, float] | PtpError] = []
        manifest = self.engine._loaded[digest].artifact.manifest
        async with self._take_turn():
            for fields in texts:
                try:
                    (scores,) = self.engine.score_labels([Question(digest, fields)])
                except PtpError as error:
                    if not manifest.labels:
                        raise
                    outcomes.append(error)
                else:
                    shares = dict(zip(manifest.labels, scores.softmax(0).tolist(), strict=True))
                    outcomes.append(dict(sorted(shares.items(), key=lambda pair: -pair[1])))
        return outcomes

    async def generate(self, digest: str, fields: Fields, sampling: Sampling, patience: float) -> AsyncIterator[Piece]:
        if digest not in self.engine._loaded:
            raise NotFound("not held")
        async with self._take_turn():
            (text,) = self.engine.generate([Question(digest, fields)])
            words = text.split()[: sampling.max_tokens]
            for place, word in enumerate(words, 1):
                yield Piece(word if place == 1 else f" {word}", place, 20 + place)
                await asyncio.sleep(self.pause)
            yield Piece("", len(words), 20 + len(words), "length")

    @contextlib.asynccontextmanager
    async def _take_turn(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            async with self._alone:
                await asyncio.sleep(self.pause)
                yield
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1


class Running(NamedTuple):
    """A server that runs, and what it was made of."""

    url: str
    store: ObjectStore
    answerer: EngineAnswerer
    server: Server
    application: FastAPI


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
    log_texts: bool = False,
) -> Iterator[Running]:  # fmt: skip
    """A server over a filled store, in a thread of this process."""
    store = FolderStore(folder / "store")
    fill(store)
    answerer = EngineAnswerer(Engine(tiny()))
    live = Live(store, answerer, Memory(folder / "home"), folder / "home")
    live.start()
    leaving = Leaving()
    service = Service(live, answerer, limits, Metrics(live, answerer), log_texts)
    application = make_application(service, tokens, leaving)
    server = Server(address, leaving)
    thread = threading.Thread(target=server.run, args=(application,), daemon=True)
    thread.start()
    try:
        while not server.listens:
            time.sleep(0.01)
        yield Running(server.url, store, answerer, server, application)
    finally:
        server.end()
        thread.join()
        live.stop()
