"""Which type a base model computes in on this machine: bfloat16 only if its own largest product is faster so.

A processor's flags do not tell: with avx512_bf16 and no AMX, an Intel Xeon multiplies bfloat16 at half of float32's
rate, and an AMD EPYC at twice it. So both are timed once, and the rates are kept in a file below PTP_HOME.
"""

import logging
import math
import os
import platform
import re
import time
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ptpipeline.errors import ArtifactError, BaseModelError, NotFound
from ptpipeline.foreign import parse_record, read_file
from ptpipeline.models.base import PreparedBase
from ptpipeline.models.kernels import linear
from ptpipeline.models.weights import read_headers
from ptpipeline.private import write_private
from ptpipeline.records.base import Record, digest_of
from ptpipeline.settings import ComputeType, Settings

FOLDER = "compute"
GAIN = 1.1  # bfloat16 has to be this much faster: its answers are coarser

_TOKENS = {"cpu": 512, "cuda": 4096}  # in a pass of training or evaluation; fewer would not fill a GPU
_MAX_WEIGHTS = 2**23  # of the product: more of them do not change the rate, and take longer than a second
# Instructions that oneDNN, by its present and its earlier name, and MKL may use at most.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
_SECONDS, _ROUNDS = 0.4, 20  # of timing at most
_MAX_BYTES = 64 * 1024
_LAYER = re.compile(r"\.\d+\.")  # a layer's number in a tensor's name

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]

log = logging.getLogger(__name__)


class Product(Record):
    """A linear map of [tokens, inputs] by [outputs, inputs], and all that its speed depends on."""

    device: Literal["cpu", "cuda"]
    processor: str
    instructions: list[str]
    threads: int
    torch: str
    tokens: int
    inputs: int
    outputs: int


class Speed(Record):
    """How fast this machine computed a product: GFLOP/s by type, 0 if it cannot multiply the type."""

    schema_version: Literal[1] = 1
    product: Product
    float32: Rate
    bfloat16: Rate


class Choice(NamedTuple):
    """A compute type, and why it was taken."""

    dtype: ComputeType
    reason: str


def choose_dtype(prepared: PreparedBase, settings: Settings) -> Choice:
    """Return the type to compute this base in: what PTP_DTYPE says, or else what is measured to be faster.

    The first call on a machine takes up to a second. A damaged record of it is measured again.
    """
    if settings.dtype != "auto":
        return Choice(settings.dtype, "PTP_DTYPE says so")
    product = describe_product(prepared)
    path = locate_speed(settings.home, product)
    speed = _read(path, product)
    if speed is None:
        speed = measure_speed(product)
        _write(path, speed)
    return _choose(speed)


def describe_product(prepared: PreparedBase) -> Product:
    """Return the base's largest product in a layer, on the device that it will run on.

    Raises BaseModelError if the base has no matrix.
    """
    outputs, inputs = _find_largest_matrix(prepared)
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    flags = torch.cpu.get_capabilities()
    if device == "cuda":
        processor, instructions = torch.cuda.get_device_name(), [str(torch.cuda.get_device_capability())]
    else:
        processor = str(flags.get("cpu_name") or platform.processor() or platform.machine())
        instructions = [name for name, value in flags.items() if value is True]
        instructions += [f"limit {limit}" for name in _LIMITS if (limit := os.environ.get(name))]
    return Product(
        device=device,
        processor=processor,
        instructions=sorted(instructions),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        tokens=_TOKENS[device],
        inputs=inputs,
        outputs=max(1, min(outputs, _MAX_WEIGHTS // inputs)),
    )


def locate_speed(home: Path, product: Product) -> Path:
    """Return the file that keeps how fast the product is."""
    return home / FOLDER / f"{digest_of(product.to_json())}.json"


def measure_speed(product: Product) -> Speed:
    """Time the product in both types by turns; the shortest time of each counts, since other work only adds to it."""
    operands = {dtype: _make_operands(product, dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(operands, math.inf)
    with torch.inference_mode():
        for dtype, pair in operands.items():
            if not _can_multiply(*pair):
                best.pop(dtype)
        started = time.perf_counter()
        for _ in range(_ROUNDS):
            for dtype in best:
                best[dtype] = min(best[dtype], _time(*operands[dtype]))
            if time.perf_counter() - started > _SECONDS:
                break
    work = 2 * product.tokens * product.inputs * product.outputs / 1e9
    rates = {dtype: work / seconds for dtype, seconds in best.items()}
    return Speed(product=product, float32=rates.get(torch.float32, 0.0), bfloat16=rates.get(torch.bfloat16, 0.0))


def _choose(speed: Speed) -> Choice:
    product = speed.product
    dtype: ComputeType = "bfloat16" if speed.bfloat16 > GAIN * speed.float32 else "float32"
    return Choice(
        dtype,
        f"a product of [{product.tokens}, {product.inputs}] by [{product.outputs}, {product.inputs}] runs at "
        f"{speed.float32:.0f} GFLOP/s in float32 and {speed.bfloat16:.0f} in bfloat16 ({product.processor}, "
        f"threads: {product.threads}, torch {product.torch})",
    )


def _find_largest_matrix(prepared: PreparedBase) -> tuple[int, int]:
    """Return [out, in] of the largest matrix of a layer; embeddings are looked up, and few rows meet the head."""
    stored = read_headers(prepared.files.weights)
    shapes = {name: tensor.shape for name, tensor in stored.items() if len(tensor.shape) == 2}
    layers = [shape for name, shape in shapes.items() if _LAYER.search(name)] or list(shapes.values())
    if not layers or not math.prod(largest := max(layers, key=math.prod)):
        raise BaseModelError(f"base model {prepared.name}: {prepared.folder} holds no matrix; is it a language model?")
    return largest[0], largest[1]


# ---------------------------------------------------------------- timing


def _make_operands(product: Product, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return states [tokens, in] and weights [out, in]; no random numbers, which would move a training's."""
    states = torch.linspace(-1, 1, product.tokens * product.inputs, device=product.device)
    weight = torch.linspace(-1, 1, product.outputs * product.inputs, device=product.device)
    return states.view(-1, product.inputs).to(dtype), weight.view(-1, product.inputs).to(dtype)


def _can_multiply(states: Tensor, weight: Tensor) -> bool:
    try:
        linear(states, weight)  # also warms up
    except RuntimeError:  # oneDNN refuses bfloat16 on processors without instructions for it
        return False
    return True


def _time(states: Tensor, weight: Tensor) -> float:
    if states.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    linear(states, weight)
    if states.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


# ---------------------------------------------------------------- the record


def _read(path: Path, product: Product) -> Speed | None:
    """Return what was measured; None if nothing was, or the file is damaged or of another product."""
    try:
        speed = parse_record(Speed, read_file(path, _MAX_BYTES), str(path))
        if speed.product != product:
            raise ArtifactError(f"{path}: is of another product")
    except NotFound:
        return None
    except ArtifactError as error:
        log.warning("%s; the compute type is measured again", error)
        return None
    return speed


def _write(path: Path, speed: Speed) -> None:
    """Keep what was measured, whole or not at all."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, speed.model_dump_json(indent=1).encode())
    except OSError as error:
        log.warning("%s: cannot be written (%s), so each process measures the compute type again", path, error.strerror)
