"""An ensemble's latency: one text with N prompts in a single mixed batch, against the same text with one of them.

    ratio = seconds of the ensemble's answer / seconds of one member's answer

Both sides run serving's ranking over caches that are already loaded. They are interleaved in one process, and their
order alternates each round; medians of rounds.
"""

import argparse
import json
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.train_step import Step, describe, make_parser, make_workload, measure_interleaved
from ptpipeline.data.tokens import LabelTokens
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.load import load_base
from ptpipeline.serving.combine import combine
from ptpipeline.serving.ranking import Query, rank
from ptpipeline.settings import load_settings

LABELS = LabelTokens(("a", "b"), ((260,), (261,)))


def make_steps(base: FrozenBase, arguments: argparse.Namespace) -> tuple[Step, Step]:
    """Return the ensemble's answer and its first member's answer; each gives log-shares [labels]."""
    work = make_workload(base, 1, arguments.tokens, arguments.prompt_length)
    text, size = work.ids[0].tolist(), arguments.members
    with torch.inference_mode():
        caches = [base.compute_prefix([work.prompt + 0.01 * index for index in range(count)]) for count in (size, 1)]

    def answer(count: int, which: int) -> Tensor:
        return combine(
            torch.stack(rank(base, caches[which], [Query(text, LABELS, index) for index in range(count)])), "average"
        )

    return lambda: answer(size, 0), lambda: answer(1, 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for people, then the figures as one JSON object on the last line."""
    arguments = make_parser("ensemble", __doc__, members=5, tokens=12, prompt_length=16, rounds=15).parse_args(argv)
    base = load_base(prepare_base(arguments.base, load_settings()), arguments.dtype)
    sides = make_steps(base, arguments)
    seconds, _ = measure_interleaved(sides, arguments.rounds)
    ensemble, one = statistics.median(seconds[0]), statistics.median(seconds[1])
    print(
        f"{arguments.members} members {ensemble * 1000:.0f} ms, one {one * 1000:.0f} ms: {ensemble / one:.2f} "
        "times the latency"
    )
    shape = {"tokens": arguments.tokens, "prompt_length": arguments.prompt_length, "rounds": arguments.rounds}
    figures = {"n": arguments.members, "ratio": ensemble / one, "ensemble_s": ensemble, "one_s": one}
    print(json.dumps({**figures, **shape, **describe(base)}))


if __name__ == "__main__":
    main()
