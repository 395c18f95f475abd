"""`torchrun --nproc-per-node N -m flows.parallel TASK` is `ptp run TASK` with a training that N processes share.

The first process does all that `ptp run` does. The others wait until it announces a gang, read the same tasks and rows,
and train along; they open no registry, and write nothing but the base model's files on a machine that has none.
"""

import argparse
import logging
import math
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from flows.cli.app import FAILED, UNANSWERED, open_context
from flows.cli.outcomes import print_outcome
from flows.cli.terminal import log_plainly, say, say_traceback
from flows.stages.chain import run_task
from flows.stages.train import Announced
from ptpipeline.data.snapshot import read_snapshot
from ptpipeline.errors import PtpError, RankLost, Transient
from ptpipeline.foreign import parse_record
from ptpipeline.models.base import prepare_base
from ptpipeline.models.load import load_base
from ptpipeline.private import private_files
from ptpipeline.settings import load_settings
from ptpipeline.storage.signed import open_signed_store
from ptpipeline.task.folder import find_task
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.ranks import Ranks, open_ranks
from ptpipeline.tuning.tracker import NoTracker
from ptpipeline.tuning.tune import TaskData, tune


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the task, or train along; exit as `ptp run` does."""
    sys.excepthook = say_traceback
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m flows.parallel", description="`ptp run TASK`, trained by N processes"
    )
    parser.add_argument("task", metavar="TASK", help="a task of the tasks folder")
    task = parser.parse_args(arguments).task
    try:
        with private_files():
            ranks = open_ranks()
            sys.exit(_lead(ranks, task) if ranks.first else _follow(ranks))
    except PtpError as error:
        say(f"error: {error}", sys.stderr)
        sys.exit(UNANSWERED if isinstance(error, Transient) else FAILED)


def _lead(ranks: Ranks, task: str) -> int:
    """Run the task's stages, and return the exit code."""
    signal.signal(signal.SIGTERM, _end)  # torchrun sends it if another process died: runs are closed before this ends
    try:
        context = open_context()
        context.ranks = ranks
        outcome = run_task(context, find_task(context.settings.tasks, task))
    finally:
        ranks.close()
    return print_outcome(outcome, as_json=False)


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise RankLost(
        "this process was told to end, because another process of the training died or somebody stopped it; run the "
        "same command again: it goes on from the last checkpoint"
    )


def _follow(ranks: Ranks) -> int:
    """Train along until the first process has no more to train, and return the exit code."""
    log_plainly(logging.ERROR)  # the first process warns
    settings = load_settings()
    store = open_signed_store(settings)
    while announced := ranks.receive():
        gang = parse_record(Announced, announced, "the first process", "it runs another ptpipeline")
        base = load_base(prepare_base(gang.base_model, settings), gang.dtype)
        tasks = [
            TaskData(find_task(settings.tasks, name), read_snapshot(store, name, digest))
            for name, digest in gang.snapshots.items()
        ]
        tune(base, tasks, Checkpoints(store, math.inf, b""), NoTracker(), _say_nothing, ranks)
    ranks.close()
    return 0


def _say_nothing(_line: str) -> None:
    """The first process speaks."""


if __name__ == "__main__":
    main()
