"""Multitask prompt tuning: teachers of several source tasks, distilled into one shared prompt (Wang et al. 2023,
section 3).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ptpipeline.models.frozen import FrozenBase, SoftPrompt
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.parameterise import RankOne
from ptpipeline.prompts.tensors import pack
from ptpipeline.records import Snapshot, Trial, TunedPrompt, digest_of
from ptpipeline.storage import ObjectStore
from ptpipeline.task.recipe import SharedPrompt, Tune
from ptpipeline.task.task import Task
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.key import ENGINE_VERSION, compute_training_key
from ptpipeline.tuning.loop import Gang, run_gang
from ptpipeline.tuning.member import Job
from ptpipeline.tuning.tracker import Tracker
from ptpipeline.tuning.tune import TrainedTask, build_job, describe_tuning


class Sources(NamedTuple):
    """A shared prompt's declaration under its name, and its source tasks with their snapshots."""

    name: str
    declared: SharedPrompt
    tasks: Sequence[tuple[Task, Snapshot]]


def compute_shared_key(sources: Sources, base_fingerprint: str) -> str:
    """The shared prompt's training key: its recipe, and the rows, template and labels of each source."""
    recipes = [(task.model_copy(update={"tune": sources.declared.tune}), snapshot) for task, snapshot in sources.tasks]
    return digest_of(
        {
            "shared": sources.name,
            "sources": [compute_training_key(task, snapshot, base_fingerprint) for task, snapshot in recipes],
        }
    )


def train_shared(
    base: FrozenBase, sources: Sources, checkpoints: Checkpoints, tracker: Tracker, report: Callable[[str], None]
) -> TrainedTask:
    """Train a teacher per source in one gang, then the shared prompt in another; its `members` are the teachers.

    What is stored is the shared prompt times the mean of the sources' factors, from which targets start (section 3.3).
    Raises the error of a source that fails: a shared prompt of the others would be another prompt.
    """
    teachers = _sound(
        run_gang(
            base,
            [_job(base, sources, index, checkpoints.store) for index in range(len(sources.tasks))],
            tracker,
            report,
            checkpoints,
        )
    )
    shared = nn.Parameter(torch.as_tensor(teachers.members[0].job.initial).clone())
    students = [
        member.job._replace(
            name=f"{sources.name}/{member.job.task.name}",
            tune=_students_recipe(member.job),
            teacher=member.best,
            initial=shared.detach(),
            shared=shared,
        )
        for member in teachers.members
    ]
    gang = _sound(run_gang(base, students, tracker, report, checkpoints))
    with torch.no_grad():
        factors = [
            torch.outer(p.u, p.v) for member in gang.members if isinstance(p := member.parameterisation, RankOne)
        ]
        prompt = shared.detach() * torch.stack(factors).mean(0)
    kept = [_artifact(base, sources, member.best, []) for member in teachers.members if member.best is not None]
    artifact = _artifact(base, sources, prompt, [teacher.digest for teacher in kept])
    return TrainedTask(artifact, kept, _tuned(base, gang, artifact))


def _job(base: FrozenBase, sources: Sources, index: int, store: ObjectStore) -> Job:
    """The teacher of one source: the source's rows under the shared prompt's recipe."""
    task, snapshot = sources.tasks[index]
    job = build_job(base, task, sources.declared.tune, snapshot, store)
    return job._replace(name=f"{sources.name}/teacher of {task.name}")


def _students_recipe(job: Job) -> Tune:
    """All sources learn to the end: an early stop of one would let the shared prompt drift away from it."""
    return job.tune.model_copy(update={"method": "multitask", "patience": job.tune.steps})


def _sound(gang: Gang) -> Gang:
    for member in gang.members:
        if member.error is not None:
            raise member.error
    return gang


def _artifact(base: FrozenBase, sources: Sources, prompt: SoftPrompt, parents: list[str]) -> Artifact:
    """A teacher, or with teachers for parents the shared prompt: it answers nothing by itself, so it has no labels."""
    tune = sources.declared.tune
    fields: dict[str, Any] = {
        "task": sources.name,
        "method": "multitask" if parents else "prompt",
        "placement": tune.placement,
        "base_model": base.ref,
        "template": "{text}",
        "labels": {},
        "max_input_tokens": base.context - tune.num_virtual_tokens,
        "snapshot": digest_of([snapshot.digest for _, snapshot in sources.tasks]),
        "recipe": digest_of(sources.declared.model_dump(mode="json", exclude_defaults=True)),
        "training_key": compute_shared_key(sources, base.ref.fingerprint),
        "seed": tune.seed,
        "engine_version": ENGINE_VERSION,
        "parents": parents,
    }
    return pack(prompt, tune.store_dtype, fields)


def _tuned(base: FrozenBase, gang: Gang, artifact: Artifact) -> TunedPrompt:
    """The first source's training stands for all; every source's dev metric is among the trials."""
    trials = [
        Trial(name=member.job.name, best_dev=member.best_dev, best_step=member.best_step) for member in gang.members
    ]
    mean = sum(member.best_dev for member in gang.members) / len(gang.members)
    return describe_tuning(base, gang, gang.members[0], artifact).model_copy(
        update={"trials": trials, "best_dev": mean}
    )
