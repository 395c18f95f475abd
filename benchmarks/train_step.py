"""One training step, forward and backward only: ours against PEFT on the same base, and its share of the processor's
peak.

Ours is training's own function (`shared_backward`). PEFT is used as its users do: `get_peft_model` with a
`PromptTuningConfig`, the label token after the text, labels -100 elsewhere, `loss.backward()`. Both have the same
frozen model, dtype, rows and initial prompt, and no optimizer. They are interleaved in one process, and their order
alternates each round; medians of rounds.

    grad_rel_err = |ours - peft| / |peft|        of the gradients of the last timed round, in the run's dtype
    tokens_per_s = B T / ours_s                  text tokens; virtual tokens are not counted
    mfu          = FLOPs / ours_s / peak

Letters: B rows, T tokens, P virtual tokens, H width, L layers, a heads of size d, V vocabulary. FLOPs are what an exact
step needs at least, 2 per multiply-add; W is a layer's weights in linear maps, of them Q = H a d in the query's and
KV = 2 H a_kv d in the keys' and values':

    linear    = 2 (L - 1) W (BT + P)             forward and activation gradient; no weight gradients
              + 2 (KV (BT + P) + (W - KV) B)     last layer: beyond keys and values only where a label is read
              - (Q + KV) BT                      nothing learns below the rows' first keys, values and queries
    attention = 6 a d ((L - 1) (B S + P (P + 1) / 2) + B (P + T))      2 products forward, 4 backward
                S = P T + T (T + 1) / 2 pairs that see each other; the last layer has one query per row
    head      = 2 H V B                          at the B label positions
    FLOPs     = 2 (linear + attention + head)

peak is the best rate of a matrix product in the same run: the layer's largest one with BT rows, and a square one.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.fixtures.random_base import NAMES, make_random_base
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.tuning.passes import Example, build_examples, shared_backward

SQUARE = 2048  # side of the square product of the peak

SIZES = {
    "members": "prompts (K)",
    "batch": "rows of each prompt (B)",
    "tokens": "text tokens of each row (T)",
    "prompt_length": "virtual tokens (P)",
    "steps": "training steps",
    "rounds": "timed rounds",
}


class Workload(NamedTuple):
    """Rows of T text tokens and one label token each, and the initial prompt in float32."""

    ids: Tensor  # [B, T]
    labels: Tensor  # [B]
    prompt: Tensor  # [P, H]

    def examples(self) -> list[Example]:
        """Return the rows in training's form: one member, one label token per row."""
        return build_examples(
            [[(row, (label,)) for row, label in zip(self.ids.tolist(), self.labels.tolist(), strict=True)]]
        )


def make_workload(base: FrozenBase, batch: int, tokens: int, prompt_length: int) -> Workload:
    """Make random rows and a prompt of sampled vocabulary, the same for the same arguments."""
    dice = torch.Generator().manual_seed(0)
    vocabulary = base.model.config.vocab_size
    ids, labels, slots = (
        torch.randint(vocabulary, shape, generator=dice) for shape in ((batch, tokens), (batch,), (prompt_length,))
    )
    return Workload(ids, labels, base.embed(slots).float().cpu())


Step = Callable[[], Tensor]


def make_our_step(base: FrozenBase, work: Workload) -> Step:
    """Return a step by the shared prompt pass, forward and backward; it gives the prompt's gradient [P, H]."""
    prompt, examples = work.prompt.clone().requires_grad_(), work.examples()

    def step() -> Tensor:
        prompt.grad = None
        shared_backward(base, [prompt], examples)
        return _gradient(prompt)

    return step


def load_pair(name: str, dtype: str) -> tuple[FrozenBase, Callable[[], Any]]:
    """Return a base model, and how to get its model once more as transformers makes it: a declared or a random base."""
    kind: torch.dtype = getattr(torch, dtype)
    if name in NAMES:
        return make_random_base(name, kind), lambda: make_random_base(name, kind).model
    from ptpipeline.models.base import prepare_base  # needs more packages than a bare machine with a GPU has
    from ptpipeline.models.load import load_base
    from ptpipeline.settings import load_settings

    prepared = prepare_base(name, load_settings())
    base = load_base(prepared, "bfloat16" if dtype == "bfloat16" else "float32")
    return base, lambda: _load_plain(prepared.folder, kind)


def _load_plain(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.to("cuda") if torch.cuda.is_available() else model


def make_peft_step(frozen: Any, work: Workload) -> Step:
    """Return the same step by PEFT, on a frozen model of its own."""
    from peft import PromptTuningConfig, TaskType, get_peft_model

    model: Any = get_peft_model(
        frozen, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(work.prompt))
    )
    prompt: Tensor = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        prompt.copy_(work.prompt)
    ids = torch.cat([work.ids, work.labels[:, None]], 1).to(frozen.device)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    mask = torch.ones_like(ids)

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        return _gradient(prompt)

    return step


def _gradient(prompt: Tensor) -> Tensor:
    if prompt.grad is None:
        raise RuntimeError("the step left no gradient on the prompt")
    return prompt.grad.float().cpu()


def count_needed_flops(base: FrozenBase, batch: int, tokens: int, prompt_length: int) -> float:
    """Return the FLOPs of one exact step, by the formula in this module's docstring."""
    config, (rows, text, prompt) = base.model.config, (batch, tokens, prompt_length)
    width, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or width // heads
    layers = config.num_hidden_layers
    groups = getattr(config, "num_key_value_heads", None) or heads
    queries, keys_values = width * heads * size, 2 * width * groups * size
    weights = _count_layer_weights(base)
    pairs = prompt * text + text * (text + 1) / 2
    linear = 2 * (layers - 1) * weights * (rows * text + prompt)
    linear += (
        2 * (keys_values * (rows * text + prompt) + (weights - keys_values) * rows)
        - (queries + keys_values) * rows * text
    )
    attention = 6 * heads * size * ((layers - 1) * (rows * pairs + prompt * (prompt + 1) / 2) + rows * (prompt + text))
    return float(2 * (linear + attention + 2 * width * config.vocab_size * rows))


def _count_layer_weights(base: FrozenBase) -> int:
    return sum(matrix.numel() for matrix in _list_layer_matrices(base))


def _list_layer_matrices(base: FrozenBase) -> list[Tensor]:
    """Return the matrices of the first layer, which GPT-2 keeps in `h`."""
    body = base.model.base_model
    layers = body.layers if hasattr(body, "layers") else body.h
    return [parameter for parameter in layers[0].parameters() if parameter.ndim == 2]


class Peak:
    """The best rate of a matrix product so far, in FLOP/s."""

    def __init__(self, base: FrozenBase, tokens: int) -> None:
        largest = max(_list_layer_matrices(base), key=Tensor.numel)
        square = torch.randn(SQUARE, SQUARE).to(base.device, base.dtype)
        activations = torch.randn(tokens, largest.shape[1]).to(base.device, base.dtype)
        self._pairs = [(activations, largest.detach(), 20), (square, square, 2)]
        self.rate = 0.0

    def sample(self) -> None:
        """Time both products again; keep the best rate."""
        for left, right, repeats in self._pairs:
            for _ in range(repeats):
                seconds, _ = run_timed(lambda left=left, right=right: torch.nn.functional.linear(left, right))  # type: ignore[misc]
                self.rate = max(self.rate, 2 * left.shape[0] * right.numel() / seconds)


def run_timed(step: Step) -> tuple[float, Tensor]:
    """Run a step; return its wall seconds and its result. Waits for the GPU before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def measure_interleaved(
    sides: Sequence[Step], rounds: int, before: Callable[[], None] | None = None
) -> tuple[list[list[float]], list[Tensor]]:
    """Run two sides in turn, in alternating order; return the seconds of each side's rounds and its last result.

    One round before them warms up; `before` runs at the start of every round.
    """
    seconds: list[list[float]] = [[], []]
    results = [side() for side in sides]
    for turn in range(rounds):
        if before is not None:
            before()
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            duration, results[side] = run_timed(sides[side])
            seconds[side].append(duration)
    return seconds, results


class Measured(NamedTuple):
    """Seconds of each round, the error of the last round's gradients, and the peak in FLOP/s."""

    ours: list[float]
    peft: list[float]
    grad_rel_err: float
    peak: float


def measure(sides: tuple[Step, Step], peak: Peak, rounds: int) -> Measured:
    """Time our step and PEFT's, and sample the peak in every round."""
    (our_seconds, peft_seconds), (ours, peft) = measure_interleaved(sides, rounds, peak.sample)
    return Measured(our_seconds, peft_seconds, float((ours - peft).norm() / peft.norm()), peak.rate)


def report(base: FrozenBase, arguments: argparse.Namespace, measured: Measured) -> dict[str, Any]:
    """Return the figures under the names that the last line prints."""
    shape = {"batch": arguments.batch, "tokens": arguments.tokens, "prompt_length": arguments.prompt_length}
    ours, peft = statistics.median(measured.ours), statistics.median(measured.peft)
    return {
        "ours_s": ours,
        "peft_s": peft,
        "ratio": peft / ours,
        "grad_rel_err": measured.grad_rel_err,
        "tokens_per_s": arguments.batch * arguments.tokens / ours,
        "peak_gflops": measured.peak / 1e9,
        "mfu": count_needed_flops(base, **shape) / ours / measured.peak,
        **shape,
        "rounds": arguments.rounds,
        "peft": version("peft"),
        "architecture": type(base.model).__name__,
        "path": "fused" if isinstance(base, CausalBase) and base.fused is not None else "general",
        **describe(base),
    }


def describe(base: FrozenBase) -> dict[str, Any]:
    """Return what a figure depends on besides the workload: base, dtype, threads, torch, machine."""
    return {
        "dtype": str(base.dtype).removeprefix("torch."),
        "base": base.ref.name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def make_parser(script: str, about: str | None, **sizes: int) -> argparse.ArgumentParser:
    """Return a parser of the options that the benchmarks share: these sizes with their defaults, dtype and base."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{script}", description=(about or "").partition("\n")[0]
    )
    for name, default in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=SIZES[name])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="compute type")
    parser.add_argument(
        "--base", default="smollm2-135m-wheel", help=f"a base of tasks/base_models.yaml, or one of {', '.join(NAMES)}"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print lines for people, then the figures as one JSON object on the last line."""
    arguments = make_parser("train_step", __doc__, batch=16, tokens=40, prompt_length=100, rounds=5).parse_args(argv)
    base, load_again = load_pair(arguments.base, arguments.dtype)
    work = make_workload(base, arguments.batch, arguments.tokens, arguments.prompt_length)
    sides = make_our_step(base, work), make_peft_step(load_again(), work)
    measured = measure(sides, Peak(base, work.ids.numel()), arguments.rounds)
    figures = report(base, arguments, measured)
    for name, seconds in (("ours", measured.ours), ("PEFT", measured.peft)):
        print(
            f"{name}: median {statistics.median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f} s, "
            "forward and backward"
        )
    print(f"{figures['ratio']:.2f} times as fast; gradients differ by {figures['grad_rel_err']:.2g}")
    print(
        f"{figures['tokens_per_s']:.0f} text tokens/s; {figures['mfu']:.2f} of the "
        f"{figures['peak_gflops']:.0f} GFLOP/s peak"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
