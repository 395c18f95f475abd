"""Rows per second of each phase of an evaluation: test answers, baselines, probes, and a dev evaluation of training.

The rows are a task's own, the functions those that a run calls; the prompt is the recipe's first one, not trained. The
phases run one after another, as in a run: the probes get the answers that test and zero-shot have given.

    rows         = the rows that the phase answers for; `latency` times requests instead
    rows_per_s   = rows / seconds
    processor_s  = seconds of all cores, which other work on the machine does not lengthen as it does `seconds`
    share        = processor seconds / those of all phases
    dev          = one evaluation of the dev rows; training makes `steps / eval_every` of them
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from benchmarks.train_step import describe, make_parser
from ptpipeline.data.rows import Row
from ptpipeline.data.sample import sample_rows
from ptpipeline.data.snapshot import load_split, take_snapshot
from ptpipeline.evaluation.baselines import Bare
from ptpipeline.evaluation.evaluate import measure_prompt
from ptpipeline.evaluation.examples import Front
from ptpipeline.evaluation.measurement import Measurement, Sample
from ptpipeline.evaluation.probes.latency import measure_latency
from ptpipeline.evaluation.probes.membership import measure_membership
from ptpipeline.evaluation.probes.norms import measure_norms
from ptpipeline.evaluation.probes.queries import Known
from ptpipeline.evaluation.probes.robustness import measure_robustness
from ptpipeline.evaluation.probes.swaps import measure_swaps
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.load import load_base
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import pack, unpack
from ptpipeline.records.data import Snapshot
from ptpipeline.serving.answers import answer
from ptpipeline.serving.engine import Engine
from ptpipeline.settings import Settings, load_settings
from ptpipeline.storage import ObjectStore, open_store
from ptpipeline.task.folder import find_task
from ptpipeline.task.task import Task
from ptpipeline.tuning.member import Job, Member
from ptpipeline.tuning.tune import TaskData, build_job

Result = TypeVar("Result")

SWAPS = (("good", "bad"), ("he", "she"), ("man", "woman"), ("film", "movie"))  # of a task that names none


class Subject(NamedTuple):
    """What is measured: a task's first prompt on the engine, its job, and at most so many test rows."""

    engine: Engine
    task: Task
    artifact: Artifact
    job: Job
    sample: Sample
    train: list[Row]


def make_subject(base: FrozenBase, task: Task, store: ObjectStore, settings: Settings, limit: int) -> Subject:
    """Ingest the task's rows, and load the recipe's first prompt onto the base."""
    snapshot = take_snapshot(task, store, settings.home)
    tune = task.tune.variants()[0]
    job = build_job(base, TaskData(task, snapshot), tune, store)
    artifact = pack(job.initial, tune.store_dtype, _describe_prompt(base, job, snapshot))
    engine = Engine(base)
    engine.load(artifact)
    whole = Sample.of(store, snapshot, "test")
    sample = whole._replace(rows=sorted(sample_rows(whole.rows, limit or len(whole.rows)), key=lambda row: row.id))
    return Subject(engine, task, artifact, job, sample, load_split(store, snapshot, "train"))


def _describe_prompt(base: FrozenBase, job: Job, snapshot: Snapshot) -> dict[str, Any]:
    task = job.task
    return {
        "task": task.name,
        "method": "prompt",
        "placement": job.tune.placement,
        "base_model": base.ref,
        "template": task.template,
        "labels": task.labels,
        "generate": task.generate,
        "scoring": task.scoring,
        "max_input_tokens": job.text.limit,
        "snapshot": snapshot.digest,
        "recipe": task.recipe_digest(),
        "training_key": "0" * 64,
        "seed": job.tune.seed,
        "engine_version": 0,
    }


class Clock:
    """Rows, seconds and processor seconds of each phase, in the order in which they ran."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}

    def time(self, name: str, rows: int, phase: Callable[[], Result]) -> Result:
        """Run a phase, note its seconds and rows, and return its result."""
        started, used = time.perf_counter(), time.process_time()
        result = phase()
        seconds, processor = time.perf_counter() - started, time.process_time() - used
        self.phases[name] = {"rows": rows, "seconds": seconds, "processor_s": processor, "rows_per_s": rows / seconds}
        return result

    def add_shares(self) -> dict[str, dict[str, float]]:
        """Return the phases with each one's share of all processor seconds."""
        total = sum(phase["processor_s"] for phase in self.phases.values())
        return {name: phase | {"share": phase["processor_s"] / total} for name, phase in self.phases.items()}


def measure_phases(subject: Subject) -> tuple[Clock, Measurement]:
    """Run every phase once; return their times, and the test answers."""
    engine, artifact, sample, clock = subject.engine, subject.artifact, subject.sample, Clock()
    rows, base, manifest = sample.rows, subject.engine.base, subject.artifact.manifest
    measure_prompt(engine, artifact, sample._replace(rows=rows[:32]))  # warms up
    tested = clock.time("test", len(rows), lambda: measure_prompt(engine, artifact, sample))
    bare = Bare.of(base, manifest, sample, subject.train)
    zero_shot = clock.time("zero_shot", len(rows), lambda: bare.measure(Front([])))
    front = bare.write_front(subject.task.hard_prompt)
    clock.time("hard_prompt", len(rows), lambda: bare.measure(front))
    names = list(manifest.labels)
    known = Known(read_scores(rows, tested, names), read_scores(rows, zero_shot, names))
    swaps = subject.task.gate.checks.bias.swaps or SWAPS
    probes: dict[str, Callable[[], dict[str, float]]] = {
        "robustness": lambda: measure_robustness(engine, artifact, rows, known),
        "swaps": lambda: measure_swaps(engine, artifact, rows, swaps, known),
        "membership": lambda: measure_membership(engine, artifact, subject.train, rows, known),
        "norms": lambda: measure_norms(engine, artifact),
        "latency": lambda: measure_latency(engine, artifact, rows),
    }
    counts = {"robustness": "robustness.rows", "swaps": "bias.rows", "membership": "privacy.rows"}
    for name, probe in probes.items():
        measures = clock.time(name, 1, probe)
        asked = measures.get(counts.get(name, ""), 40 if name == "latency" else 1)
        clock.phases[name] |= {"rows": asked, "rows_per_s": asked / clock.phases[name]["seconds"]}
    clock.time("dev", len(subject.job.dev), lambda: _evaluate_dev(base, subject.job, artifact))
    return clock, tested


def read_scores(rows: Sequence[Row], measured: Measurement, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the measured score of each label by row id, as stored results hold them."""
    columns = [measured.columns[f"log_likelihood.{name}"] for name in names]
    return {row.id: list(scores) for row, *scores in zip(rows, *columns, strict=True)}


def _evaluate_dev(base: FrozenBase, job: Job, artifact: Artifact) -> None:
    """Answer the dev rows as training does."""
    with torch.inference_mode():
        cache = base.compute_prefix([place_prompt(base, unpack(artifact, *base.known), job.tune.placement)])
    answer(base, cache, Member.of(job).build_dev_requests(0))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures under the names that the last line prints."""
    settings = load_settings()
    base = load_base(prepare_base(arguments.base, settings), arguments.dtype)
    task = find_task(settings.tasks, arguments.task)
    with tempfile.TemporaryDirectory() as folder:
        subject = make_subject(base, task, open_store(Path(folder).as_uri()), settings, arguments.rows)
        clock, tested = measure_phases(subject)
    tokens = sum(len(base.encode(row.text, True)) for row in subject.sample.rows) / len(subject.sample.rows)
    return {
        "task": task.name,
        "phases": clock.add_shares(),
        **{name: sum(phase[name] for phase in clock.phases.values()) for name in ("seconds", "processor_s")},
        "test_tokens": tokens,
        "answers": {name: tested.columns["predicted"].count(name) for name in task.labels},
        **describe(base),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table for people, then the figures as one JSON object on the last line."""
    parser = make_parser("evaluation", __doc__)
    parser.add_argument("--task", default="movie-sentiment", help="a task of the tasks folder")
    parser.add_argument("--rows", type=int, default=300, help="at most so many test rows; 0: all")
    figures = run(parser.parse_args(argv))
    for name, phase in figures["phases"].items():
        print(
            f"{name:12} {phase['rows']:6.0f} rows {phase['seconds']:8.2f} s {phase['rows_per_s']:8.1f} rows/s "
            f"{phase['processor_s']:8.2f} s of processors {phase['share']:6.1%}"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
