"""Checkpoints: the state of a gang in training, in the object store; a killed run goes on from the last one, bit for bit.

One object per gang, since a member's rounding depends on the batches that it shares. It is a safetensors file: all tensors
(parameters, optimizer, best prompt), and as JSON in its metadata everything else, under a sha256 of the whole. What a
seed gives back (first prompt, network, data order) is made anew and only wound forward.
"""

import hashlib
import json
import logging
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, PtpError, TrainingError
from ptpipeline.models.frozen import like, tensors_of
from ptpipeline.records import CurvePoint, digest_of
from ptpipeline.storage import ObjectStore
from ptpipeline.tuning.clock import Clock
from ptpipeline.tuning.member import Job, Member

log = logging.getLogger(__name__)

FORMAT = 1  # raised when what the file holds changes; an older one is not read
PLAIN = ("step", "best_step", "best_dev", "stale", "run", "losses")  # a member's fields that JSON gives back exactly


class Checkpoint:
    """The place of one gang's checkpoint, and when the next one is due.

    Every put is conditional and replaces the whole object, so it is the older or the newer state at any instant. Two
    processes that train the same gang compute the same numbers: either's checkpoint serves both, and the loser of a put
    tries again at the next time.
    """

    def __init__(self, store: ObjectStore, key: str, seconds: float) -> None:
        self.store, self.key, self.seconds = store, key, seconds
        self._last = time.monotonic()
        self._warned = False

    @property
    def due(self) -> bool:
        """Whether `seconds` have passed since the last one, or since the beginning."""
        return time.monotonic() - self._last >= self.seconds

    def load(self, jobs: Sequence[Job], report: Callable[[str], None]) -> tuple[list[Member], Clock] | None:
        """The gang as it was saved; None where nothing is, or nothing usable, which `report` is told.

        Raises ServiceUnavailable where the store does not answer: to begin anew would throw away what it holds.
        """
        try:
            body = self.store.read(self.key).body
        except NotFound:
            return None
        try:
            members, clock = unpack(body, jobs)
        except ArtifactError as error:
            report(f"{self.store.url}/{self.key}: {error}; training starts from the beginning")
            return None
        report(f"resumes at {', '.join(f'{member.job.name} step {member.step}' for member in members)}")
        return members, clock

    def save(self, members: Sequence[Member], clock: Clock) -> None:
        """Put the state of this moment, which has to lie between two steps. A store that fails ends no training."""
        try:
            self._put(pack(members, clock))
        except PreconditionFailed:
            log.info("%s was just written by another process that trains the same; this one tries again at the next time", self.key)
        except (PtpError, OSError) as error:
            log.log(logging.DEBUG if self._warned else logging.WARNING, "no checkpoint of this moment, training goes on: %s", error)
            self._warned = True
        self._last = time.monotonic()

    def _put(self, body: bytes) -> None:
        try:
            etag = self.store.read(self.key).etag
        except NotFound:
            self.store.create(self.key, body)
        else:
            self.store.replace(self.key, body, etag)

    def clear(self) -> None:
        """Remove it; where the store does not let us, it stays behind and harms nothing."""
        try:
            self.store.delete(self.key)
        except (PtpError, OSError) as error:
            log.warning("%s stays behind in %s: %s", self.key, self.store.url, error)


class Checkpoints:
    """The checkpoints of all gangs that one run trains, written every `seconds`."""

    def __init__(self, store: ObjectStore, seconds: float) -> None:
        self.store, self.seconds = store, seconds
        self._given: list[Checkpoint] = []

    def of(self, jobs: Sequence[Job], computed: Mapping[str, str]) -> Checkpoint:
        """The place of the gang of these jobs in this order; `computed` says what else its rounding depends on."""
        about = [{"key": job.key, "name": job.name, "tune": job.tune.model_dump(mode="json"), "initial": _sha256(tensors_of(job.initial))} for job in jobs]
        self._given.append(Checkpoint(self.store, f"checkpoints/{digest_of({'jobs': about, **computed})}.safetensors", self.seconds))
        return self._given[-1]

    def clear(self) -> None:
        """Remove them all: what they led to is stored."""
        for checkpoint in self._given:
            checkpoint.clear()


def pack(members: Sequence[Member], clock: Clock) -> bytes:
    """The state of a gang between two steps as one safetensors file."""
    tensors = {f"{index}.{name}": tensor.detach().to("cpu", copy=True).contiguous() for index, member in enumerate(members) for name, tensor in _tensors(member).items()}
    state = {
        "format": FORMAT,
        "jobs": [[member.job.name, member.job.key] for member in members],
        "clock": {"elapsed": clock.elapsed, "training": clock.training, "tokens": clock.tokens, "steps": clock.steps},
        "members": [_plain(member) for member in members],
    }
    text = json.dumps(state)
    return save(tensors, {"state": text, "sha256": _seal(tensors, text)})


def unpack(body: bytes, jobs: Sequence[Job]) -> tuple[list[Member], Clock]:
    """The gang of these jobs as it was packed; ArtifactError where the file is damaged, or of another format."""
    try:
        (length,) = struct.unpack("<Q", body[:8])
        metadata = json.loads(body[8 : 8 + length])["__metadata__"]
        tensors = {name: tensor.clone() for name, tensor in load(body).items()}  # what is loaded are views of the bytes
        sound, state = _seal(tensors, metadata["state"]) == metadata["sha256"], json.loads(metadata["state"])
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ArtifactError(f"the checkpoint is damaged ({type(error).__name__})") from None
    if not sound:
        raise ArtifactError("the checkpoint is damaged (its sha256 is another)")
    if state["format"] != FORMAT:
        raise ArtifactError(f"the checkpoint has format {state['format']}, this engine reads {FORMAT}")
    members = [Member.of(job) for job in jobs]
    for index, (member, plain) in enumerate(zip(members, state["members"], strict=True)):
        _restore(member, plain, _below(tensors, f"{index}."))
    elapsed = state["clock"].pop("elapsed")
    return members, Clock(time.perf_counter() - elapsed, **state["clock"])


def _seal(tensors: dict[str, Tensor], state: str) -> str:
    return hashlib.sha256(save(tensors, {"state": state})).hexdigest()


def _sha256(tensors: Sequence[Tensor]) -> str:
    return hashlib.sha256(save({str(index): tensor.detach().to("cpu", copy=True).contiguous() for index, tensor in enumerate(tensors)})).hexdigest()


def _tensors(member: Member) -> dict[str, Tensor]:
    found = {f"parameter.{name}": tensor for name, tensor in member.parameterisation.state_dict().items()}
    for index, state in member.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    if member.best is not None:
        found |= {f"best.{index}": tensor for index, tensor in enumerate(tensors_of(member.best))}
    return found | {"gradient_norms": member.gradient_norms}


def _plain(member: Member) -> dict[str, Any]:
    """What is no tensor; the repr of a float, which JSON writes, reads back as the same float."""
    states = member.optimizer.state_dict()["state"].items()
    return {name: getattr(member, name) for name in PLAIN} | {
        "error": str(member.error) if member.error else None,
        "curve": [point.model_dump() for point in member.curve],
        "optimizer": {str(index): {name: value for name, value in state.items() if not isinstance(value, Tensor)} for index, state in states},
    }


def _restore(member: Member, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Bring a member at step 0 to where it was; hyperparameters are the recipe's, and the rate is set at every step."""
    member.parameterisation.load_state_dict(_below(tensors, "parameter."))
    states = {int(index): dict(values) for index, values in plain["optimizer"].items()}
    for name, tensor in _below(tensors, "optimizer.").items():
        index, _, field = name.partition(".")
        states[int(index)][field] = tensor
    member.optimizer.load_state_dict({"state": states, "param_groups": member.optimizer.state_dict()["param_groups"]})
    best = _below(tensors, "best.")
    member.best = like(member.job.initial, [best[name] for name in sorted(best)]) if best else None
    member.gradient_norms = tensors["gradient_norms"]
    member.error = TrainingError(plain["error"]) if plain["error"] else None
    member.curve = [CurvePoint(**point) for point in plain["curve"]]
    for name in PLAIN:
        setattr(member, name, plain[name])
    for _ in range(member.step):
        next(member.order)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
