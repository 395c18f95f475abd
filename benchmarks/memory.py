"""Peak memory of a training step beyond the bare model: ours against PEFT, each in a process of its own.

    peak = largest resident memory while three steps run - resident memory of the loaded model before them

Resident memory is sampled every two milliseconds. On a GPU the peak is the allocator's.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch

from benchmarks.train_step import describe, load_pair, make_our_step, make_parser, make_peft_step, make_workload

STEPS = 3
SIDES = ("ours", "peft")


def measure_peak(work: Callable[[], object]) -> int:
    """Run `work`; return how many bytes it needs at most beyond what is resident before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    process, done, peak = psutil.Process(), threading.Event(), [0]

    def sample() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=sample)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return int(max(peak[0], process.memory_info().rss) - before)


def measure_side(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure one side in this process."""
    base, load_again = load_pair(arguments.base, arguments.dtype)
    work = make_workload(base, arguments.batch, arguments.tokens, arguments.prompt_length)
    step = make_our_step(base, work) if arguments.side == "ours" else make_peft_step(load_again(), work)
    return {"peak_bytes": measure_peak(lambda: [step() for _ in range(STEPS)]), **describe(base)}


def _run_side(side: str, values: dict[str, Any]) -> dict[str, Any]:
    """Measure one side in a process of its own."""
    options = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "benchmarks.memory", "--side", side, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both sides, print a line for people, then the figures as one JSON object on the last line."""
    parser = make_parser("memory", __doc__, batch=16, tokens=40, prompt_length=100)
    parser.add_argument("--side", choices=SIDES, help="measure only this side, in this process")
    arguments = parser.parse_args(argv)
    if arguments.side:
        print(json.dumps(measure_side(arguments)))
        return
    shape = {"batch": arguments.batch, "tokens": arguments.tokens, "prompt_length": arguments.prompt_length}
    figures = {side: _run_side(side, {**shape, "dtype": arguments.dtype, "base": arguments.base}) for side in SIDES}
    ours, peft = (figures[side].pop("peak_bytes") / 2**20 for side in SIDES)
    print(f"peak beyond the bare model: ours {ours:.0f} MiB, PEFT {peft:.0f} MiB")
    print(json.dumps({"ours_mib": ours, "peft_mib": peft, "ratio": ours / peft, **shape, **figures["ours"]}))


if __name__ == "__main__":
    main()
