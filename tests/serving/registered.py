"""A store with versions and aliases as the registry writes them, without one; and an engine as a server holds it."""

import uuid
from collections.abc import Sequence
from typing import Any

from ptpipeline.errors import NotFound
from ptpipeline.prompts.artifact import Artifact, write_artifact
from ptpipeline.records.base import now
from ptpipeline.records.versions import PRODUCTION, Beside, Pointer, Promotion, VersionName
from ptpipeline.serving.engine import Engine
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import pointer_key, version_key
from ptpipeline.storage.signed import without_checks
from tests.evaluation.probed import artifact, embeddings, tiny

TASK = "movies"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class OnEngine:
    """What holds prompts as the batcher does, in the thread that asks, over a real engine, and notes them."""

    def __init__(self) -> None:
        self.engine = Engine(tiny())
        self.held: list[str] = []
        self.dropped: list[str] = []

    def hold(self, artifact: Artifact, members: Sequence[Artifact]) -> None:
        self.held.append(artifact.digest)
        self.engine.add(artifact, members)
        self.engine.probe(artifact.digest)

    def drop(self, digest: str) -> None:
        self.engine.unload(digest)
        self.dropped.append(digest)


def a_prompt(word: str, **changed: Any) -> Artifact:
    """A prompt of the tiny base that begins with that word; another word is another prompt."""
    return artifact(tiny(), embeddings(tiny(), word), **changed)


def add_version(store: ObjectStore, made: Artifact, number: int) -> str:
    """Store the prompt as the version of that number; returns its digest."""
    digest = write_artifact(store, made)
    name = VersionName(task=made.manifest.task, number=number, digest=digest)
    store.create(version_key(made.manifest.task, number), name.model_dump_json().encode())
    return digest


def point(
    store: ObjectStore,
    number: int,
    digest: str,
    seq: int,
    alias: str = PRODUCTION,
    beside: Beside | None = None,
    task: str = TASK,
    before: Promotion | None = None,
) -> Promotion:
    """Let the alias's pointer name the version, as promotion `seq` behind that one."""
    promotion = Promotion(
        task=task,
        alias=alias,
        seq=seq,
        version=number,
        digest=digest,
        previous=None,
        actor="a person",
        reason="because",
        verdict=None,
        at=now(),
        beside=beside,
        chain=before.row_digest() if before else None,
    )
    put(
        store, pointer_key(task, alias), Pointer(promotion=promotion, nonce=uuid.uuid4().hex).model_dump_json().encode()
    )
    return promotion


def put(store: ObjectStore, key: str, body: bytes) -> None:
    """Write an object, whatever lies there."""
    try:
        store.replace(key, body, without_checks(store).read(key).etag)
    except NotFound:
        store.create(key, body)
