"""Multitask prompt tuning (Wang et al. 2023, section 3): teachers of several source tasks, distilled into one prompt.

Letters: P virtual tokens, H width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ptpipeline.models.chat import digest_chat
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import SoftPrompt
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.parameterise import RankOne
from ptpipeline.prompts.tensors import pack
from ptpipeline.records.base import digest_of
from ptpipeline.records.prompts import Trial, TunedPrompt
from ptpipeline.storage import ObjectStore
from ptpipeline.task.recipe import SharedPrompt, Tune
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.key import ENGINE_VERSION, compute_training_key
from ptpipeline.tuning.loop import Gang, run_gang
from ptpipeline.tuning.member import Job
from ptpipeline.tuning.tracker import Tracker
from ptpipeline.tuning.tune import TaskData, TrainedTask, build_job, describe_tuning, sum_costs


class Sources(NamedTuple):
    """A shared prompt's name and declaration, and its source tasks with their snapshots."""

    name: str
    declared: SharedPrompt
    tasks: Sequence[TaskData]


def compute_shared_key(sources: Sources, base_fingerprint: str, chat: str | None = None) -> str:
    """Return the shared prompt's training key: of its recipe, and of the rows, template and labels of each source."""
    recipes = [(task.model_copy(update={"tune": sources.declared.tune}), snapshot) for task, snapshot in sources.tasks]
    return digest_of(
        {
            "shared": sources.name,
            "sources": [
                compute_training_key(task, snapshot, base_fingerprint, chat=chat) for task, snapshot in recipes
            ],
        }
    )


def train_shared(
    base: FrozenBase, sources: Sources, checkpoints: Checkpoints, tracker: Tracker, progress: Callable[[str], None]
) -> TrainedTask:
    """Train a teacher per source in one gang, then the shared prompt in another; its `members` are the teachers.

    The stored prompt, from which targets start, is the shared prompt times the mean of the sources' factors (section
    3.3). Raises the error of a source that fails: a shared prompt of the others would be another prompt.
    """
    jobs = [_build_teacher_job(base, sources, data, checkpoints.store) for data in sources.tasks]
    teachers = _require_sound(run_gang(base, jobs, tracker, progress, checkpoints))
    shared = nn.Parameter(torch.as_tensor(teachers.members[0].job.initial).clone())
    students = [
        member.job._replace(
            name=f"{sources.name}/{member.job.task.name}",
            tune=_adapt_recipe(member.job),
            teacher=member.best,
            initial=shared.detach(),
            shared=shared,
        )
        for member in teachers.members
    ]
    gang = _require_sound(run_gang(base, students, tracker, progress, checkpoints))
    with torch.no_grad():
        parameterisations = [member.parameterisation for member in gang.members]
        factors = [torch.outer(own.u, own.v) for own in parameterisations if isinstance(own, RankOne)]  # [P, H] each
        prompt = shared.detach() * torch.stack(factors).mean(0)  # [P, H]
    packed = [_pack_shared(base, sources, member.best, []) for member in teachers.members if member.best is not None]
    artifact = _pack_shared(base, sources, prompt, [teacher.digest for teacher in packed])
    return TrainedTask(artifact, packed, _describe_shared(base, [teachers, gang], artifact))


def _build_teacher_job(base: FrozenBase, sources: Sources, data: TaskData, store: ObjectStore) -> Job:
    """Return the job of one source's teacher: the source's rows under the shared prompt's recipe."""
    job = build_job(base, data, sources.declared.tune, store)
    return job._replace(name=f"{sources.name}/teacher of {data.task.name}")


def _adapt_recipe(job: Job) -> Tune:
    """Return the recipe of a student, without early stop: the shared prompt would drift away from one that stops."""
    return job.tune.model_copy(update={"method": "multitask", "patience": job.tune.steps})


def _require_sound(gang: Gang) -> Gang:
    for member in gang.members:
        if member.error is not None:
            raise member.error
    return gang


def _pack_shared(base: FrozenBase, sources: Sources, prompt: SoftPrompt, parents: list[str]) -> Artifact:
    """Return a teacher's artifact, or with teachers as parents the shared prompt's: neither answers, so no labels."""
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
        "training_key": compute_shared_key(sources, base.ref.fingerprint, digest_chat(base.chat)),
        "seed": tune.seed,
        "engine_version": ENGINE_VERSION,
        "parents": parents,
    }
    return pack(prompt, tune.store_dtype, fields)


def _describe_shared(base: FrozenBase, gangs: Sequence[Gang], artifact: Artifact) -> TunedPrompt:
    """Return the record of the first source's training, for all; the trials hold every source's dev metric.

    The cost is that of both gangs, the teachers' and the shared prompt's.
    """
    gang = gangs[-1]
    trials = [
        Trial(name=member.job.name, best_dev=member.best_dev, best_step=member.best_step, cost=member.cost)
        for member in gang.members
    ]
    mean = sum(member.best_dev for member in gang.members) / len(gang.members)
    return describe_tuning(base, gang, gang.members[0], artifact).model_copy(
        update={
            "trials": trials,
            "best_dev": mean,
            "cost": sum_costs([member.cost for own in gangs for member in own.members]),
        }
    )
