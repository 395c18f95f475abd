"""K prompts on small batches: one gang step against K solo steps, forward and backward only, on the same frozen base.

Both sides run training's own function (`shared_backward`) over the same rows. The gang's K prompts share one prompt
pass and one pass of rows. Both sides are interleaved in one process, and their order alternates each round; medians of
rounds.

    ratio        = seconds of K solo steps / seconds of one gang step
    grad_rel_err = largest |gang - solo| / |solo| of a member's gradient, in the run's dtype

Letters: K prompts, B rows of each, T text tokens of a row, P virtual tokens.
"""

import argparse
import json
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.train_step import Step, describe, load_pair, make_parser, make_workload, measure_interleaved
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.tuning.passes import build_examples, shared_backward


def make_steps(base: FrozenBase, arguments: argparse.Namespace) -> tuple[Step, Step]:
    """Return the gang's step and the K solo steps; each gives all gradients [K, P, H]."""
    work = make_workload(base, arguments.members * arguments.batch, arguments.tokens, arguments.prompt_length)
    rows = [(row, (label,)) for row, label in zip(work.ids.tolist(), work.labels.tolist(), strict=True)]
    batches = [rows[start : start + arguments.batch] for start in range(0, len(rows), arguments.batch)]
    prompts = [(work.prompt + 0.001 * index).requires_grad_() for index in range(arguments.members)]

    def take_gradients() -> Tensor:
        gradients = torch.stack([prompt.grad for prompt in prompts if prompt.grad is not None])
        for prompt in prompts:
            prompt.grad = None
        return gradients

    def gang() -> Tensor:
        shared_backward(base, prompts, build_examples(batches))
        return take_gradients()

    def solo() -> Tensor:
        for prompt, batch in zip(prompts, batches, strict=True):
            shared_backward(base, [prompt], build_examples([batch]))
        return take_gradients()

    return gang, solo


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for people, then the figures as one JSON object on the last line."""
    arguments = make_parser("gang", __doc__, members=8, batch=4, tokens=40, prompt_length=20, rounds=5).parse_args(argv)
    base, _ = load_pair(arguments.base, arguments.dtype)
    sides = make_steps(base, arguments)
    seconds, (gang_gradients, solo_gradients) = measure_interleaved(sides, arguments.rounds)
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(gang_gradients, solo_gradients, strict=True))
    gang, solo = statistics.median(seconds[0]), statistics.median(seconds[1])
    print(
        f"{arguments.members} prompts: {gang:.3f} s together, {solo:.3f} s one after another: "
        f"{solo / gang:.2f} times as fast"
    )
    shape = {name: getattr(arguments, name) for name in ("batch", "tokens", "prompt_length", "rounds")}
    figures = {"k": arguments.members, "ratio": solo / gang, "gang_s": gang, "solo_s": solo, "grad_rel_err": error}
    print(json.dumps({**figures, **shape, **describe(base)}))


if __name__ == "__main__":
    main()
