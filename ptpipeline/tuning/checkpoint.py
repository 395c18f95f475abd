"""Checkpoints: where the state of a gang in training lies in the object store, and when it is written there.

There is one object per gang, since a member's rounding depends on the batches that it shares. If a killed run is run
again with the same gang, it goes on from the checkpoint and ends at the same bits.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from safetensors.torch import save

from ptpipeline.errors import ArtifactError, NotFound, Overtaken, PreconditionFailed, PtpError
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import list_tensors
from ptpipeline.records.base import digest_of
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import checkpoint_key
from ptpipeline.tuning.clock import Clock
from ptpipeline.tuning.key import ENGINE_VERSION
from ptpipeline.tuning.member import Job, Member
from ptpipeline.tuning.seal import seal, unseal
from ptpipeline.tuning.state import GangState, copy_tensors, pack, unpack

log = logging.getLogger(__name__)


def _let_pass() -> None:
    """Fence nothing: who trains without a ledger is alone."""


class Checkpoint:
    """The place of one gang's checkpoint.

    Every put is conditional and replaces the whole object, so at any instant the object is the older or the newer
    state. `fence` is asked between the read of what is there and the put over it: it raises Overtaken if another
    process took the gang over. Two processes that train the same gang all the same compute the same numbers: the
    checkpoint of either serves both, and the one that loses a put goes on and tries again at the next interval.
    """

    def __init__(
        self, store: ObjectStore, key: str, seconds: float, secret: bytes, fence: Callable[[], None] = _let_pass
    ) -> None:
        self.store, self.key, self.seconds = store, key, seconds
        self._secret, self._fence = secret, fence
        self._last = time.monotonic()
        self._warned = False

    @property
    def due(self) -> bool:
        """Whether `seconds` have passed since the last save, or since the beginning."""
        return time.monotonic() - self._last >= self.seconds

    def load(self, jobs: Sequence[Job], progress: Callable[[str], None]) -> GangState | None:
        """Return the gang as it was saved; None if there is no usable checkpoint, which `progress` gets a line about.

        Raises ServiceUnavailable if the store does not answer: to start again would throw away what it holds.
        """
        try:
            saved = unpack(unseal(self._secret, self.key, self.store.read(self.key).body), jobs)
        except NotFound:
            return None
        except ArtifactError as error:
            progress(f"{self.store.url}/{self.key}: {error}; training starts from the beginning")
            return None
        steps = ", ".join(f"{member.job.name} at step {member.step}" for member in saved.members)
        progress(f"resumes from a checkpoint: {steps}")
        return saved

    def save(self, members: Sequence[Member], clock: Clock) -> None:
        """Put the gang of this moment, which must lie between two steps.

        A store or ledger that fails does not end the training: one warning is logged. Raises Overtaken if another
        process took the gang over.
        """
        try:
            self._put(seal(self._secret, self.key, pack(members, clock)))
        except PreconditionFailed:
            log.info("another process wrote %s at the same time; this one tries again at the next interval", self.key)
        except Overtaken:
            raise
        except (PtpError, OSError) as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            log.log(level, "no checkpoint at step %d, training goes on: %s", clock.steps, error)
            self._warned = True
        self._last = time.monotonic()

    def _put(self, body: bytes) -> None:
        try:
            etag = self.store.read(self.key).etag
        except NotFound:
            self._fence()
            self.store.create(self.key, body)
        else:
            self._fence()
            self.store.replace(self.key, body, etag)

    def clear(self) -> None:
        """Remove the checkpoint; if the store refuses, it stays behind and harms nothing."""
        try:
            self.store.delete(self.key)
        except (PtpError, OSError) as error:
            log.warning("%s stays in %s, which does no harm: %s", self.key, self.store.url, error)


class Checkpoints:
    """The checkpoints of all gangs that one run trains, each written every `seconds` and sealed with `secret`, if
    `fence` lets it pass.
    """

    def __init__(
        self, store: ObjectStore, seconds: float, secret: bytes, fence: Callable[[], None] = _let_pass
    ) -> None:
        self.store, self.seconds = store, seconds
        self._secret, self._fence = secret, fence
        self._places: list[Checkpoint] = []

    def open(self, base: FrozenBase, jobs: Sequence[Job], path: str) -> Checkpoint:
        """Return the place of the gang of these jobs before their first step, in this order.

        `path` is the path that the self-check chose.
        """
        key = checkpoint_key(identify_gang(base, jobs, path))
        self._places.append(Checkpoint(self.store, key, self.seconds, self._secret, self._fence))
        return self._places[-1]

    def clear(self) -> None:
        """Remove them all, once the results are stored."""
        for place in self._places:
            place.clear()


def identify_gang(base: FrozenBase, jobs: Sequence[Job], path: str) -> str:
    """Return the digest of all that decides the numbers of this gang from its first step on."""
    return digest_of(
        {
            "engine": ENGINE_VERSION,
            "base": base.ref.fingerprint,
            "dtype": str(base.dtype),
            "path": path,
            "jobs": [_identify_job(job) for job in jobs],
        }
    )


def _identify_job(job: Job) -> dict[str, Any]:
    """Return all that decides a job's numbers, with its first prompt: the champion to start from may have moved."""
    prompts = {
        "initial": job.initial,
        "teacher": job.teacher,
        "shared": job.shared,
        "pull": job.pull.towards if job.pull else None,
    }
    tensors = {
        f"{name}.{index}": tensor
        for name, prompt in prompts.items()
        if prompt is not None
        for index, tensor in enumerate(list_tensors(prompt))
    }
    return {
        "name": job.name,
        "recipe": job.task.recipe_digest(),
        "metric": job.task.gate.metric,
        "tune": job.tune.model_dump(mode="json", exclude={"dev_rows"}),  # `rows` holds what it chose
        "labels": repr(job.text.labels),
        "rows": [hashlib.sha256(repr(rows).encode()).hexdigest() for rows in (job.train, job.dev)],
        "prompts": hashlib.sha256(save(copy_tensors(tensors))).hexdigest(),
    } | _identify_extras(job)


def _identify_extras(job: Job) -> dict[str, Any]:
    """Return what few jobs have: a job without it keeps the place that it had before such a part existed."""
    pull = {"pull": job.pull.gamma} if job.pull else {}
    return pull | ({"rungs": [list(rung) for rung in job.rungs]} if job.rungs else {})
