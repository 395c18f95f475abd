"""K prompts on small batches: one gang step against K solo steps, forward and backward only, on the same frozen base.

Both sides run the product's own path (`shared_backward`) over the same rows; the gang's K prompts share one prompt pass
and one pass of rows. Interleaved in one process, the order turning each round; medians of rounds.

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

from benchmarks.train_step import Step, describe, interleaved, options, workload
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.load import load_base
from ptpipeline.settings import load_settings
from ptpipeline.tuning.passes import build_examples, shared_backward

Rows = list[tuple[list[int], tuple[int, ...]]]


def steps(base: FrozenBase, arguments: argparse.Namespace) -> tuple[Step, Step]:
    """The gang's step and the K solo steps; each returns all gradients [K, P, H]."""
    work = workload(base, arguments.members * arguments.batch, arguments.tokens, arguments.prompt_length)
    rows = [(row, (label,)) for row, label in zip(work.ids.tolist(), work.labels.tolist(), strict=True)]
    batches = [rows[start : start + arguments.batch] for start in range(0, len(rows), arguments.batch)]
    prompts = [(work.prompt + 0.001 * index).requires_grad_() for index in range(arguments.members)]

    def gradients() -> Tensor:
        found = torch.stack([prompt.grad for prompt in prompts if prompt.grad is not None])
        for prompt in prompts:
            prompt.grad = None
        return found

    def gang() -> Tensor:
        shared_backward(base, prompts, build_examples(batches))
        return gradients()

    def solo() -> Tensor:
        for prompt, batch in zip(prompts, batches, strict=True):
            shared_backward(base, [prompt], build_examples([batch]))
        return gradients()

    return gang, solo


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for people, then the figures as one JSON object on the last line."""
    arguments = options("gang", __doc__, members=8, batch=4, tokens=40, prompt_length=20, rounds=5).parse_args(argv)
    base = load_base(prepare_base(arguments.base, load_settings()), arguments.dtype)
    sides = steps(base, arguments)
    seconds, (together, alone) = interleaved(sides, arguments.rounds)
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(together, alone, strict=True))
    gang, solo = statistics.median(seconds[0]), statistics.median(seconds[1])
    print(
        f"{arguments.members} prompts: {gang:.3f} s together, {solo:.3f} s one after another: "
        f"{solo / gang:.2f} times as fast"
    )
    shape = {
        "batch": arguments.batch,
        "tokens": arguments.tokens,
        "prompt_length": arguments.prompt_length,
        "rounds": arguments.rounds,
    }
    print(
        json.dumps(
            {
                "k": arguments.members,
                "ratio": solo / gang,
                "gang_s": gang,
                "solo_s": solo,
                "grad_rel_err": error,
                **shape,
                **describe(base),
            }
        )
    )


if __name__ == "__main__":
    main()
