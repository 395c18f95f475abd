"""From tasks and their snapshots to trained artifacts: encode, train one gang, pack the best checkpoints."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ptpipeline.data.snapshot import load_split
from ptpipeline.data.tokens import TaskText, label_tokens, max_input_tokens
from ptpipeline.errors import PtpError, Terminal
from ptpipeline.models.causal import CausalBase
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.tensors import pack
from ptpipeline.records import Snapshot, TunedPrompt
from ptpipeline.storage import ObjectStore
from ptpipeline.task import Task
from ptpipeline.tuning.key import ENGINE_VERSION, training_key
from ptpipeline.tuning.loop import Gang, run_gang
from ptpipeline.tuning.member import Job, Member
from ptpipeline.tuning.tracker import Tracker


class Trained(NamedTuple):
    """A gang member's outcome: the artifact to stage, and how it came about."""

    artifact: Artifact
    tuned: TunedPrompt


def task_text(base: CausalBase, task: Task) -> TaskText:
    """How the task's rows become tokens of this base; ContextError where the prompt leaves no room for text."""
    labels = label_tokens(task.name, task.labels, base.encode)
    limit = max_input_tokens(base.context, task.tune.num_virtual_tokens, labels)
    return TaskText(task.name, task.template, labels, limit, base.encode)


def tune(
    base: CausalBase, work: Sequence[tuple[Task, Snapshot]], store: ObjectStore, tracker: Tracker, report: Callable[[str], None]
) -> dict[str, Trained | PtpError]:
    """Train one gang; per task the trained artifact, or the error that ended this member alone.

    Nothing is written: staging the artifacts is the caller's. Raises BaseModelError where the base changed.
    """
    outcomes: dict[str, Trained | PtpError] = {}
    jobs = []
    for task, snapshot in work:
        try:
            jobs.append(_job(base, task, snapshot, store))
        except Terminal as error:
            outcomes[task.name] = error
    if jobs:
        gang = run_gang(base, jobs, tracker, report)
        outcomes |= {member.job.task.name: _outcome(base, member, gang) for member in gang.members}
    return outcomes


def _job(base: CausalBase, task: Task, snapshot: Snapshot, store: ObjectStore) -> Job:
    text = task_text(base, task)
    train, dev = (text.rows(load_split(store, snapshot, split)) for split in ("train", "dev"))
    return Job(task, snapshot, text, train, dev)


def _outcome(base: CausalBase, member: Member, gang: Gang) -> Trained | PtpError:
    if member.error is not None or member.best is None:
        return member.error or PtpError(f"task {member.job.task.name}: nothing was trained")
    task, snapshot, key = member.job.task, member.job.snapshot, training_key(member.job.task, member.job.snapshot, base.ref.fingerprint)
    fields = {
        "task": task.name,
        "method": task.tune.method,
        "placement": "before_bos",
        "base_model": base.ref,
        "template": task.template,
        "labels": task.labels,
        "max_input_tokens": member.job.text.limit,
        "snapshot": snapshot.digest,
        "recipe": task.recipe_digest(),
        "training_key": key,
        "seed": task.tune.seed,
        "engine_version": ENGINE_VERSION,
    }
    artifact = pack(member.best, task.tune.store_dtype, fields)
    return Trained(artifact, _tuned(base, member, gang, artifact))


def _tuned(base: CausalBase, member: Member, gang: Gang, artifact: Artifact) -> TunedPrompt:
    return TunedPrompt(
        task=artifact.manifest.task,
        digest=artifact.digest,
        training_key=artifact.manifest.training_key,
        snapshot=artifact.manifest.snapshot,
        bytes=len(artifact.tensors),
        steps=member.step,
        best_step=member.best_step,
        best_dev=member.best_dev,
        stopped_early=member.stopped_early,
        seconds=round(gang.clock.elapsed, 2),
        tokens_per_second=round(gang.clock.tokens_per_second, 1),
        compute_dtype=str(base.dtype).removeprefix("torch."),
        self_check=gang.check.figures,
        curve=member.curve,
        tracking_run=member.run,
    )
