"""Everything that a GPU changes, in one command of a few minutes: exactness first, then steps, gangs, rows and memory.

It needs torch, transformers, PEFT and what these install, and no base model: all bases have random weights. Without a
GPU the same script runs on the CPU (`--quick` shrinks the bases). The last line is one JSON object.

    exact        per architecture, the worst relative error of states and gradients against transformers, in float64
    resumes      whether a training that begins again in its middle, with nothing recorded, ends at the same bits
    steps        one training step against PEFT, as in `train_step`: seconds, ratio, mfu, peak memory beyond the model;
                 `plain_s` is ours kernel by kernel, without recorded passes
    gangs        K prompts in one step against K steps
    evaluation   rows per second of a forward pass that reads one state of each row
"""

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.fixtures.random_base import NAMES, SIZES, make_random_base
from benchmarks.gang import make_steps
from benchmarks.memory import measure_peak
from benchmarks.train_step import (
    Peak,
    count_needed_flops,
    make_our_step,
    make_peft_step,
    make_workload,
    measure,
    measure_interleaved,
    run_timed,
)
from ptpipeline.models import recorded
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import Input
from ptpipeline.tuning.passes import build_examples, shared_backward

TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
MOST_ERROR = 1e-5  # transformers' norms round to float32 in a float64 model


class Shape(NamedTuple):
    """One training step: base, compute type, rows, text tokens of each, virtual tokens."""

    base: str
    dtype: str
    batch: int
    tokens: int
    prompt_length: int


def measure_errors(name: str) -> float:
    """Return the worst relative error of states and of prompt gradients of a tiny model of that architecture, float64.

    Three prompts, one longer than any window, stand before rows of several lengths. On a GPU the passes run plainly
    first, then they are recorded, then replayed, each time with other prompts.
    """
    base = make_random_base(name, torch.float64, **TINY)
    dice, worst = torch.Generator().manual_seed(1), 0.0
    rows = [Input(range(3, 3 + length), [7, 8], index % 3) for index, length in enumerate((1, 9, 40, 17))]
    for _ in range(4 if torch.cuda.is_available() else 1):
        prompts = [
            torch.randn(length, 64, generator=dice, dtype=torch.float64).to(base.device) for length in (1, 20, 5)
        ]
        results = []
        for by_hand in (True, False):
            leaves = [prompt.clone().requires_grad_() for prompt in prompts]
            states = (
                base.compute_states(base.compute_prefix(leaves), rows) if by_hand else base.concatenate(leaves, rows)
            )
            torch.autograd.backward((states * torch.cos(torch.arange(64.0, device=states.device))).sum())
            results.append([states.detach(), *(leaf.grad for leaf in leaves)])
        pairs = zip(*results, strict=True)
        worst = max(worst, *(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs))
    return worst


def check_resuming() -> bool:
    """Train three prompts for eight steps, then once more from the middle; return whether all bits repeat."""
    dice = torch.Generator().manual_seed(0)
    start = [0.1 * torch.randn(length, 64, generator=dice) for length in (1, 20, 5)]
    lengths = [[5, 9, 17], [40, 33, 2], [5, 12, 9], [70, 3, 8]] * 2
    batches = [[[(range(3, 3 + length), (7, 8))] * 4 for length in step] for step in lengths]

    def train(prompts: list[Tensor], steps: Sequence[list[Any]]) -> list[Tensor]:
        base = make_random_base("random-llama", torch.bfloat16, **TINY)
        for step in steps:
            leaves = [prompt.clone().requires_grad_() for prompt in prompts]
            shared_backward(base, leaves, build_examples(step))
            prompts = [leaf.detach() - 0.1 * leaf.grad for leaf in leaves if leaf.grad is not None]
        return prompts

    whole, middle = train(start, batches), train(start, batches[:4])
    return all(torch.equal(a, b) for a, b in zip(whole, train(middle, batches[4:]), strict=True))


def measure_step(shape: Shape, rounds: int) -> dict[str, Any]:
    """Return the figures of one step against PEFT's."""
    dtype: torch.dtype = getattr(torch, shape.dtype)
    base = make_random_base(shape.base, dtype)
    work = make_workload(base, shape.batch, shape.tokens, shape.prompt_length)
    sides = make_our_step(base, work), make_peft_step(make_random_base(shape.base, dtype).model, work)
    with patch.object(recorded, "MOST_TOKENS", 0):
        sides[0]()
        plain = statistics.median(run_timed(sides[0])[0] for _ in range(rounds))
    sides[0]()
    measured = measure(sides, Peak(base, work.ids.numel()), rounds)
    ours, peft = statistics.median(measured.ours), statistics.median(measured.peft)
    needed = count_needed_flops(base, shape.batch, shape.tokens, shape.prompt_length)
    with patch.object(recorded, "MOST_TOKENS", 0):  # recorded passes have the same memory from the start
        peaks = [measure_peak(side) / 2**20 for side in sides] if torch.cuda.is_available() else [None, None]
    return {
        **shape._asdict(),
        "ours_s": ours,
        "plain_s": plain,
        "ratio": peft / ours,
        "mfu": needed / ours / measured.peak,
        "grad_rel_err": measured.grad_rel_err,
        "tokens_per_pass": base.tokens_per_pass,
        "ours_mib": peaks[0],
        "peft_mib": peaks[1],
    }


def measure_gang(base: CausalBase, members: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of a gang's step and of its members' steps one after another."""
    arguments = argparse.Namespace(members=members, batch=4, tokens=40, prompt_length=20)
    seconds, (together, alone) = measure_interleaved(make_steps(base, arguments), rounds)
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(together, alone, strict=True))
    gang, solo = (statistics.median(side) for side in seconds)
    return {"members": members, "gang_s": gang, "ratio": solo / gang, "grad_rel_err": error}


def measure_rows(base: CausalBase, rows: int, tokens: int) -> float:
    """Return rows per second behind one prompt of 20 tokens, in passes of 32,768 tokens."""
    work = make_workload(base, rows, tokens, 20)
    inputs = [Input(ids, (), 0) for ids in work.ids.tolist()]
    step = max(1, 32768 // tokens)
    with torch.inference_mode():
        cache = base.compute_prefix([work.prompt])

        def run() -> Tensor:
            return torch.cat([base.compute_states(cache, inputs[at : at + step]) for at in range(0, rows, step)])

        run()
        seconds, _ = run_timed(run)
    return rows / seconds


def list_shapes(quick: bool) -> Iterator[Shape]:
    """Yield the training steps that are measured."""
    bases = ["random-llama", "random-qwen3"] if quick else ["random-llama-135m", "random-llama-1b", "random-qwen3-1b"]
    for base in bases:
        for dtype in ("float32", "bfloat16"):
            yield Shape(base, dtype, 16 if not quick else 4, 40, 20)
        yield Shape(base, "bfloat16", 16 if not quick else 4, 40, 100)
        yield Shape(base, "bfloat16", 8 if not quick else 2, 512, 20)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all, print a line for each, then one JSON object; exit with 1 if anything is inexact."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="all that a GPU changes")
    parser.add_argument("--quick", action="store_true", help="smaller bases and fewer rounds, for a CPU")
    arguments = parser.parse_args(argv)
    started, rounds = time.perf_counter(), 1 if arguments.quick else 5
    exact = {name: measure_errors(name) for name in NAMES if not name.endswith(tuple(SIZES))}
    for name, error in exact.items():
        print(f"{name}: states and gradients differ by {error:.2g} from transformers", flush=True)
    resumes = check_resuming()
    print(f"a training that is resumed {'ends at the same bits' if resumes else 'ENDS AT OTHER BITS'}", flush=True)
    steps = []
    for shape in list_shapes(arguments.quick):
        steps.append(measure_step(shape, rounds))
        print(json.dumps(steps[-1]), flush=True)
    base = make_random_base("random-llama" if arguments.quick else "random-llama-1b", torch.bfloat16)
    gangs = [measure_gang(base, members, rounds) for members in ((8,) if arguments.quick else (8, 64))]
    evaluation = measure_rows(base, 64 if arguments.quick else 4096, 40)
    print(f"gangs {gangs}; {evaluation:.0f} rows/s", flush=True)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    print(
        json.dumps(
            {"machine": machine, **versions, "exact": exact, "resumes": resumes, "steps": steps, "gangs": gangs,
             "rows_per_s": evaluation, "seconds": time.perf_counter() - started}
        )
    )  # fmt: skip
    if not resumes or any(error > MOST_ERROR for error in exact.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
