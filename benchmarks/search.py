"""A search of 24 trials, with successive halving in one gang, against the same trials one after another.

The trials are six learning rates times four seeds on the rows of one task. Per repetition, which has seeds of its own,
three searches run in one process: all trials one after another to their end (`solo`), all in one gang to their end
(`gang`), and in one gang with `halving` (`search`). Each picks the trial that is best on dev. Further repetitions run
only the last two, and tell how often halving keeps the winner.

    ratio      = solo_s / search_s               wall seconds with dev evaluations and self-checks; median
    gang_ratio = solo_s / gang_s                 what the shared passes give without halving; median
    worse      = dev of the best solo trial - dev of the best trial that halving kept; largest
    winner     = share of repetitions in which halving keeps the very trial that wins without it
    within     = share of repetitions in which it keeps a trial within .005 of it on dev

A search picks the first of equals, so another winner may be as good on dev.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.train_step import describe
from ptpipeline.data.snapshot import take_snapshot
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.load import load_base
from ptpipeline.settings import load_settings
from ptpipeline.storage import FolderStore
from ptpipeline.task.folder import find_task
from ptpipeline.task.recipe import Search, Tune
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Job, Member
from ptpipeline.tuning.tracker import NoTracker
from ptpipeline.tuning.tune import TaskData, build_job, choose_member

RATES = [0.003, 0.006, 0.012, 0.025, 0.05, 0.1]
SEEDS = 4  # of each repetition
CLOSE = 0.005  # dev values that count as the same


class Outcome(NamedTuple):
    """The trial that a search picked, its wall seconds, and how many steps all trials took together."""

    best: Member
    seconds: float
    steps: int


class Repetition(NamedTuple):
    """The searches over the same trials; `solo` is None if it was not run."""

    solo: Outcome | None
    gang: Outcome
    search: Outcome


class Rows(NamedTuple):
    """A task's snapshot, and the store that it lies in, which is not the registry's."""

    data: TaskData
    store: FolderStore


def build_trials(base: FrozenBase, rows: Rows, arguments: argparse.Namespace, repetition: int) -> list[Job]:
    """Return the trials of a repetition, with the rungs of its search."""
    task = rows.data.task
    seeds = [SEEDS * repetition + seed for seed in range(SEEDS)]
    given = task.tune.model_dump(exclude_unset=True, exclude={"learning_rate", "seed", "search"})
    sizes = {"steps": arguments.steps, "eval_every": arguments.eval_every}
    search = Search(learning_rate=RATES, seed=seeds, halving=arguments.halving)
    tune = Tune(**{**given, **sizes, "search": search})
    return [
        build_job(base, rows.data, variant, rows.store)._replace(
            name=f"{task.name}/rate {variant.learning_rate}, seed {variant.seed}", rungs=tune.rungs()
        )
        for variant in tune.variants()
    ]


def run_search(base: FrozenBase, gangs: Sequence[Sequence[Job]]) -> Outcome:
    """Train gang after gang; return the trial that is best on dev, the first of equals."""
    started = time.perf_counter()
    members = [member for jobs in gangs for member in run_gang(base, jobs, NoTracker(), lambda line: None).members]
    seconds = time.perf_counter() - started
    return Outcome(choose_member(members[0].job.tune, members), seconds, sum(member.step for member in members))


def repeat(base: FrozenBase, trials: Sequence[Job], solo: bool) -> Repetition:
    """Run the searches over these trials."""
    plain = [job._replace(rungs=()) for job in trials]
    return Repetition(
        run_search(base, [[job] for job in plain]) if solo else None,
        run_search(base, [plain]),
        run_search(base, [trials]),
    )


def report(repetitions: Sequence[Repetition]) -> dict[str, Any]:
    """Return the figures under the names that the last line prints."""
    timed = [(one.solo, one.gang, one.search) for one in repetitions if one.solo is not None]
    kept = [one.search.best.job.name == one.gang.best.job.name for one in repetitions]
    lost = [one.gang.best.best_dev - one.search.best.best_dev for one in repetitions]
    return {
        "ratio": statistics.median(solo.seconds / search.seconds for solo, _, search in timed),
        "gang_ratio": statistics.median(solo.seconds / gang.seconds for solo, gang, _ in timed),
        "solo_s": statistics.median(solo.seconds for solo, _, _ in timed),
        "gang_s": statistics.median(gang.seconds for _, gang, _ in timed),
        "search_s": statistics.median(search.seconds for _, _, search in timed),
        "step_ratio": statistics.median(solo.steps / search.steps for solo, _, search in timed),
        "worse": max(solo.best.best_dev - search.best.best_dev for solo, _, search in timed),
        "winner": sum(kept) / len(kept),
        "within": sum(gap <= CLOSE for gap in lost) / len(lost),
    }


def _format_repetition(number: int, one: Repetition) -> str:
    outcomes = {"one after another": one.solo, "gang": one.gang, "halving": one.search}
    parts = [
        f"{name} {outcome.seconds:.1f} s, {outcome.steps} steps, dev {outcome.best.best_dev:.3f} "
        f"({outcome.best.job.name.partition('/')[2]})"
        for name, outcome in outcomes.items()
        if outcome is not None
    ]
    return f"{number}: {'; '.join(parts)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print lines for people, then the figures as one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").partition("\n")[0])
    sizes = {
        "repetitions": (20, "searches, each with seeds of its own"),
        "timed": (5, "of these, how many also train one trial after another"),
        "steps": (48, "training steps of a trial that is not dropped"),
        "eval_every": (8, "steps between two dev evaluations"),
        "halving": (2, "parts that the steps are cut into; after each the best 1/N go on"),
    }
    for name, (default, words) in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=words)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="compute type")
    parser.add_argument("--base", default="smollm2-135m-wheel", help="a base model of base_models.yaml")
    parser.add_argument("--task", default="movie-sentiment", help="a task on this base")
    arguments = parser.parse_args(argv)
    settings = load_settings()
    base = load_base(prepare_base(arguments.base, settings), arguments.dtype)
    task, repetitions = find_task(settings.tasks, arguments.task), []
    with TemporaryDirectory() as folder:
        store = FolderStore(Path(folder))
        rows = Rows(TaskData(task, take_snapshot(task, store, settings.home)), store)
        for number in range(arguments.repetitions):
            trials = build_trials(base, rows, arguments, number)
            repetitions.append(repeat(base, trials, solo=number < arguments.timed))
            print(_format_repetition(number, repetitions[-1]), flush=True)
    figures = report(repetitions)
    print(
        f"{figures['ratio']:.2f} times as fast as one after another, {figures['gang_ratio']:.2f} without halving; "
        f"the same winner in {figures['winner']:.0%} of {len(repetitions)} searches, within {CLOSE} on dev in "
        f"{figures['within']:.0%}"
    )
    shape = {**{name: getattr(arguments, name) for name in sizes}, "trials": len(trials), "task": arguments.task}
    print(json.dumps({**figures, **shape, **describe(base)}))


if __name__ == "__main__":
    main()
