"""Peak memory of a training step over the bare model: ours against PEFT, each in a process of its own.

    peak = largest resident memory while three steps run - resident memory of the loaded model before them

Resident memory is sampled every two milliseconds. On a GPU it is the allocator's own peak.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import psutil
import torch

from benchmarks.train_step import describe, options, our_step, peft_step, workload
from ptpipeline.models.base import prepare_base
from ptpipeline.models.load import load_base
from ptpipeline.settings import load_settings

STEPS = 3
SIDES = ("ours", "peft")


def peak_over(work: Callable[[], object]) -> int:
    """Bytes that `work` needs at most beyond what is resident before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    process, done, seen = psutil.Process(), threading.Event(), [0]

    def sample() -> None:
        while not done.wait(0.002):
            seen[0] = max(seen[0], process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=sample)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return int(max(seen[0], process.memory_info().rss) - before)


def one_side(arguments: argparse.Namespace) -> dict[str, object]:
    """The figures of one side, measured in this process."""
    prepared = prepare_base(arguments.base, load_settings())
    base = load_base(prepared, arguments.dtype)
    work = workload(base, arguments.batch, arguments.tokens, arguments.prompt_length)
    step = our_step(base, work) if arguments.side == "ours" else peft_step(prepared.folder, base.dtype, work)
    return {"peak_bytes": peak_over(lambda: [step() for _ in range(STEPS)]), **describe(base)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both sides, print a line for people, then the figures as one JSON object on the last line."""
    parser = options("memory", __doc__, batch=16, tokens=40, prompt_length=100)
    parser.add_argument("--side", choices=SIDES, help="measure this side alone, in this process")
    arguments = parser.parse_args(argv)
    if arguments.side:
        print(json.dumps(one_side(arguments)))
        return
    shape = {"batch": arguments.batch, "tokens": arguments.tokens, "prompt_length": arguments.prompt_length}
    passed = [
        text
        for name, value in {**shape, "dtype": arguments.dtype, "base": arguments.base}.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    found = {}
    for side in SIDES:
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", "--side", side, *passed],
            capture_output=True,
            text=True,
            check=True,
        )
        found[side] = json.loads(run.stdout.splitlines()[-1])
    ours, peft = (found[side].pop("peak_bytes") / 2**20 for side in SIDES)
    print(f"peak over the bare model: ours {ours:.0f} MiB, PEFT {peft:.0f} MiB")
    print(json.dumps({"ours_mib": ours, "peft_mib": peft, "ratio": ours / peft, **shape, **found["ours"]}))


if __name__ == "__main__":
    main()
