"""What a night costs beside its training: `python -m benchmarks.nightly --tasks 200 --changed 8`.

A first night, which is not measured, trains all tasks on a tiny base with few steps (fixed work in place of a real
training); a second one judges each anew, because it is its own champion now. Then `--changed` tasks get new rows, and a
third night runs as Prefect runs it, with a server of its own.
Its wall time is told apart by stage; what no stage took is orchestration: the flow, its task runs, leases, artifacts.
On a busy machine look at `processor_seconds`.
`--direct` leaves Prefect out. The last line is one JSON object.
"""

import argparse
import csv
import json
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

from flows.stages.chain import Mode, Night, Step, run, run_directly
from flows.stages.context import Context, select_tasks
from ptpipeline.settings import Settings

Result = TypeVar("Result")

BASE = Path(__file__).parents[1] / "tests" / "tiny_base"
STAGES = {"ingest": "plan", "plan": "plan", "train": "train", "evaluate": "gate", "gate": "gate"}
STAGES |= {"register": "publish", "promote": "publish", "finish": "finish"}
OPINIONS = {"positive": ["good", "fine", "great"], "negative": ["bad", "poor", "awful"]}
# So many that sentences are no near duplicates, which would be moved into one split.
FILLER = ["film", "plot", "the", "a", "was", "and", "story", "scene", "very", "actor", "music", "end", "it", "this"]
FILLER += ["that", "some", "many", "first", "last", "long", "short", "quiet", "loud", "old", "new", "dark", "light"]
TASK = """\
name: {name}
base_model: tiny
data:
  source: {{path: "{path}", format: csv}}
  text: text
  label: label
  split: {{dev: 0.15, test: 0.25}}
template: "{{text}}\\nSentiment:"
labels: {{negative: " negative", positive: " positive"}}
tune: {{num_virtual_tokens: 4, steps: {steps}, batch_size: 4, learning_rate: 0.05, eval_every: {steps}}}
gate: {{metric: accuracy, minimum: 0.0, champion: {{rule: non_inferiority, margin: 0.5}},
  checks: {{gain: off, collapse: off, never: off}}}}
promote: auto
"""


class Timed:
    """A step that also adds up what each stage took."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, name: str, work: Callable[[], Result], /) -> Result:
        def timed() -> Result:
            started = time.perf_counter()
            try:
                return work()
            finally:
                self.seconds[STAGES[name.split()[0]]] += time.perf_counter() - started

        return self._step(name, timed)


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Write a csv file of distinct sentences, each labelled by the one opinion word that it holds, in turns."""
    dice, texts = random.Random(seed), dict[str, str]()
    while len(texts) < rows:
        label = sorted(OPINIONS)[len(texts) % len(OPINIONS)]
        words = [*dice.choices(FILLER, k=dice.randint(5, 9)), dice.choice(OPINIONS[label])]
        dice.shuffle(words)
        texts[" ".join(words)] = label
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *texts.items()])


def write_project(folder: Path, tasks: int, rows: int, steps: int) -> Settings:
    """Write the tasks and their rows; return settings with everything in that folder."""
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "base_models.yaml").write_text(f'tiny: {{path: "{BASE}"}}\n')
    for number in range(tasks):
        name = f"task-{number:03}"
        write_rows(folder / f"{name}.csv", rows, number)
        path = folder / "tasks" / f"{name}.yaml"
        path.write_text(TASK.format(name=name, path=folder / f"{name}.csv", steps=steps))
    return Settings(
        home=folder / "home",
        tasks=folder / "tasks",
        store=f"file://{folder / 'store'}",
        ledger=f"sqlite:///{folder / 'ledger.db'}",
        dtype="float32",
    )


def run_directly_timed(settings: Settings) -> tuple[Night, Timed]:
    """Run the stages alone."""
    timed = Timed(run_directly)
    return run(Context.open(settings), select_tasks(settings), Mode(timed, isolate=True)), timed


def run_in_prefect(settings: Settings) -> tuple[Night, Timed]:
    """Run the night as the nightly flow does, with its task runs, artifacts and lease."""
    from prefect import flow

    from flows.night import end, show_verdict
    from flows.requests import NightlyRequest
    from flows.steps import step
    from flows.turn import take_turn

    timed, nights = Timed(step), list[Night]()

    @flow(name="nightly", persist_result=False)
    def nightly() -> object:
        context = Context.open(settings)
        with take_turn(context, NightlyRequest()):
            nights.append(run(context, select_tasks(settings), Mode(timed, isolate=True, show=show_verdict)))
            return end(nights[0], "nightly")

    nightly(return_state=True)
    return nights[0], timed


def check_whole(night: Night) -> None:
    """Raise SystemExit if a task failed: its seconds would be those of something else."""
    if night.errors:
        raise SystemExit(f"tasks failed: {night.errors}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for people, then the figures as one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nightly", description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--changed", type=int, default=0, help="how many of them get new rows")
    parser.add_argument("--rows", type=int, default=120, help="rows of each task")
    parser.add_argument("--steps", type=int, default=2, help="steps of each training")
    parser.add_argument("--direct", action="store_true", help="leave Prefect out")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="ptp-nightly-") as folder, _serving(arguments.direct):
        settings = write_project(Path(folder), arguments.tasks, arguments.rows, arguments.steps)
        started = time.perf_counter()
        for _ in range(2):
            check_whole(run_directly_timed(settings)[0])
        first = time.perf_counter() - started
        for number in range(arguments.changed):
            write_rows(Path(folder) / f"task-{number:03}.csv", arguments.rows + 40, number)
        started, processor = time.perf_counter(), time.process_time()
        night, timed = (run_directly_timed if arguments.direct else run_in_prefect)(settings)
        wall, processor = time.perf_counter() - started, time.process_time() - processor
    check_whole(night)
    trained = sum(outcome.plan != "unchanged" for outcome in night.outcomes.values())
    overhead = wall - sum(timed.seconds.values())
    print(
        f"{arguments.tasks} tasks, {trained} trained: {wall:.1f} s, of which {overhead:.1f} s orchestration"
        f" (the two nights before took {first:.1f} s)"
    )
    figures = {
        "tasks": arguments.tasks,
        "changed": arguments.changed,
        "trained": trained,
        "prefect": not arguments.direct,
        "training": f"tiny base, {arguments.steps} steps",
        "seconds": round(wall, 2),
        "processor_seconds": round(processor, 2),
        **{stage: round(timed.seconds[stage], 2) for stage in dict.fromkeys(STAGES.values())},
        "overhead_seconds": round(overhead, 2),
        "overhead_s_per_task": round(overhead / max(trained, 1), 3),
    }
    print(json.dumps(figures))


def _serving(direct: bool) -> AbstractContextManager[None]:
    if direct:
        return nullcontext()
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    from prefect.testing.utilities import prefect_test_harness

    return prefect_test_harness(server_startup_timeout=600)


if __name__ == "__main__":
    main()
