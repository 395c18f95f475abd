"""The state of a gang between two steps as bytes, and back, bit for bit.

A safetensors file: all tensors (parameters, optimizers, best prompts), and everything else as JSON in its metadata.
What a seed yields again (network, data order) is built again and moved to the same step. `seal` guards the bytes.
"""

import json
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from ptpipeline.errors import ArtifactError, TrainingError
from ptpipeline.foreign import parse_json, parsing
from ptpipeline.models.inputs import list_tensors, rebuild
from ptpipeline.records.prompts import CurvePoint, Dropped
from ptpipeline.tuning.clock import Clock
from ptpipeline.tuning.member import Job, Member

FORMAT = 1  # raised when what the file holds changes; an older one is not read
# A member's fields that JSON gives back exactly. Those of its cost came later: without them it counts on from zero.
COST = ("tokens", "seconds", "processor_seconds")
PLAIN = ("step", "best_step", "best_dev", "stale", "run", "losses", *COST)


class GangState(NamedTuple):
    """The members of a gang between two steps, and its clock."""

    members: Sequence[Member]
    clock: Clock


def pack(members: Sequence[Member], clock: Clock) -> bytes:
    """Return the gang of this moment, which must lie between two steps, as bytes."""
    tensors = {
        f"{index}.{name}": tensor
        for index, member in enumerate(members)
        for name, tensor in _list_member_tensors(member).items()
    }
    numbers: dict[str, dict[str, dict[str, float]]] = {}
    for index, optimizer in _list_optimizers(members).items():
        states = optimizer.state_dict()["state"]
        tensors |= {
            f"optimizer.{index}.{at}.{name}": value
            for at, state in states.items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        numbers[str(index)] = {
            str(at): {name: value for name, value in state.items() if not isinstance(value, Tensor)}
            for at, state in states.items()
        }
    state = {
        "format": FORMAT,
        "jobs": [member.job.name for member in members],
        "clock": {"elapsed": clock.elapsed, "training": clock.training, "tokens": clock.tokens, "steps": clock.steps},
        "members": [_list_plain_fields(member) for member in members],
        "optimizers": numbers,
    }
    text = json.dumps(state)  # it writes the repr of a float, which reads back as the same float
    body: bytes = save(copy_tensors(tensors), {"state": text})
    return body


def unpack(body: bytes, jobs: Sequence[Job]) -> GangState:
    """Return the gang of these jobs as it was packed.

    Raises ArtifactError if the bytes are damaged, of another format, or of another gang.
    """
    state, tensors = _read_state(body)
    if state.get("format") != FORMAT:
        raise ArtifactError(f"the checkpoint has format {state.get('format')}, this engine reads {FORMAT}")
    members = Member.start_gang(jobs)
    parameters = [_select(tensors, f"{index}.parameter.") for index in range(len(members))]
    if [_list_shapes(own) for own in parameters] != [
        _list_shapes(member.parameterisation.state_dict()) for member in members
    ]:
        raise ArtifactError("the checkpoint holds other parameters than these recipes train")
    for index, (member, plain) in enumerate(zip(members, state["members"], strict=True)):
        member.parameterisation.load_state_dict(parameters[index])
        _restore(member, plain, _select(tensors, f"{index}."))
    for first, optimizer in _list_optimizers(members).items():
        _restore_optimizer(optimizer, state["optimizers"][str(first)], _select(tensors, f"optimizer.{first}."))
    elapsed = state["clock"].pop("elapsed")
    return GangState(members, Clock(time.perf_counter() - elapsed, **state["clock"]))


def copy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as safetensors takes them: on the CPU, contiguous, none sharing memory with another."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _read_state(body: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return JSON and tensors."""
    with parsing("the checkpoint", "it is damaged"):
        (length,) = struct.unpack("<Q", body[:8])
        metadata = parse_json(body[8 : 8 + length], "the checkpoint", "it is damaged")["__metadata__"]
        tensors = {name: tensor.clone() for name, tensor in load(body).items()}  # loaded tensors are views of the bytes
        return json.loads(metadata["state"]), tensors


def _list_optimizers(members: Sequence[Member]) -> dict[int, Optimizer]:
    """Return each optimizer once, by the index of the first member that it steps."""
    return {
        index: member.optimizer
        for index, member in enumerate(members)
        if all(member.optimizer is not other.optimizer for other in members[:index])
    }


def _list_member_tensors(member: Member) -> dict[str, Tensor]:
    parameters = {f"parameter.{name}": tensor for name, tensor in member.parameterisation.state_dict().items()}
    best = list_tensors(member.best) if member.best is not None else []
    return (
        parameters
        | {f"best.{index}": tensor for index, tensor in enumerate(best)}
        | {"gradient_norms": member.gradient_norms}
    )


def _list_plain_fields(member: Member) -> dict[str, Any]:
    fields = {name: getattr(member, name) for name in PLAIN}
    return fields | {
        "error": str(member.error) if member.error else None,
        "dropped": member.dropped.to_json() if member.dropped else None,
        "curve": [point.model_dump() for point in member.curve],
    }


def _restore(member: Member, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name in PLAIN:
        setattr(member, name, plain.get(name, 0) if name in COST else plain[name])
    best = _select(tensors, "best.")
    member.best = rebuild(member.job.initial, [best[name] for name in sorted(best)]) if best else None
    member.gradient_norms = tensors["gradient_norms"]
    member.error = TrainingError(plain["error"]) if plain["error"] else None
    member.dropped = Dropped(**plain["dropped"]) if plain.get("dropped") else None
    member.curve = [CurvePoint(**point) for point in plain["curve"]]
    for _ in range(member.step):
        next(member.order)


def _restore_optimizer(optimizer: Optimizer, numbers: dict[str, dict[str, float]], tensors: dict[str, Tensor]) -> None:
    """Restore its statistics; hyperparameters are the recipe's, and every step sets the learning rate."""
    states: dict[int, dict[str, Any]] = {int(at): dict(values) for at, values in numbers.items()}
    for place, tensor in tensors.items():
        at, _, name = place.partition(".")
        states[int(at)][name] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _list_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
