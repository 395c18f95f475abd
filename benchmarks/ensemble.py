"""An ensemble's latency: one text behind N prompts in a single mixed batch, against the same text behind one of them.

    ratio = seconds of the ensemble's answer / seconds of one member's answer

Both sides run the serving path's ranking over caches that are loaded already. Interleaved in one process, the order
turning each round; medians of rounds.
"""

import argparse
import json
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.train_step import Step, describe, interleaved, options, workload
from ptpipeline.data.tokens import LabelTokens
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.load import load_base
from ptpipeline.serving.combine import combine
from ptpipeline.serving.ranking import Query, rank
from ptpipeline.settings import load_settings

LABELS = LabelTokens(("a", "b"), ((260,), (261,)))


def steps(base: FrozenBase, arguments: argparse.Namespace) -> tuple[Step, Step]:
    """The answer of the ensemble, and that of its first member; each returns log-shares [labels]."""
    work = workload(base, 1, arguments.tokens, arguments.prompt_length)
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
    arguments = options("ensemble", __doc__, members=5, tokens=12, prompt_length=16, rounds=15).parse_args(argv)
    base = load_base(prepare_base(arguments.base, load_settings()), arguments.dtype)
    sides = steps(base, arguments)
    seconds, _ = interleaved(sides, arguments.rounds)
    all_of, one = statistics.median(seconds[0]), statistics.median(seconds[1])
    print(
        f"{arguments.members} members {all_of * 1000:.0f} ms, one {one * 1000:.0f} ms: {all_of / one:.2f} "
        "times the latency"
    )
    shape = {"tokens": arguments.tokens, "prompt_length": arguments.prompt_length, "rounds": arguments.rounds}
    print(
        json.dumps(
            {
                "n": arguments.members,
                "ratio": all_of / one,
                "ensemble_s": all_of,
                "one_s": one,
                **shape,
                **describe(base),
            }
        )
    )


if __name__ == "__main__":
    main()
