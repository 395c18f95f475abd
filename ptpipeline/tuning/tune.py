"""From tasks and their snapshots to trained artifacts: encode, train one gang, pack the best checkpoints."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ptpipeline.data.snapshot import load_split
from ptpipeline.data.tokens import FreeText, TaskText, label_tokens, max_input_tokens, scored
from ptpipeline.errors import BaseModelError, PtpError, TaskFileError, Terminal, TrainingError
from ptpipeline.evaluation.metrics import measure
from ptpipeline.models.frozen import FrozenBase, SoftPrompt, count_virtual_tokens
from ptpipeline.prompts.artifact import MAX_TENSOR_BYTES, Artifact, compute_file_bytes
from ptpipeline.prompts.initialise import make_initial_prompt
from ptpipeline.prompts.placement import build_text_encoder, count_extra_tokens, place_prompt
from ptpipeline.prompts.tensors import name_tensors, pack, pack_ensemble
from ptpipeline.records import Snapshot, Trial, TunedPrompt
from ptpipeline.serving.combine import combine
from ptpipeline.serving.ranking import Query, rank
from ptpipeline.storage import ObjectStore
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Task
from ptpipeline.tuning.advice import advise
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.key import ENGINE_VERSION, compute_training_key
from ptpipeline.tuning.loop import Gang, describe_failure, run_gang
from ptpipeline.tuning.member import Job, Member
from ptpipeline.tuning.start import Start, load_start
from ptpipeline.tuning.tracker import Tracker


class TrainedTask(NamedTuple):
    """One task's outcome: the artifact to stage, those of its members where it is an ensemble, and how it came
    about.
    """

    artifact: Artifact
    members: list[Artifact]
    tuned: TunedPrompt


class Work(NamedTuple):
    """One task of the gang: its snapshot, what it starts from, its jobs, and what its recipe was told."""

    task: Task
    snapshot: Snapshot
    start: Start
    jobs: list[Job]
    warnings: list[str]


def tune(
    base: FrozenBase,
    wanted: Sequence[tuple[Task, Snapshot]],
    checkpoints: Checkpoints,
    tracker: Tracker,
    report: Callable[[str], None],
) -> dict[str, TrainedTask | PtpError]:
    """Train one gang; per task the trained artifact, or the error that ended it alone.

    Reads from the store of the checkpoints, and writes nothing else there: staging the artifacts, and clearing the
    checkpoints after that, is the caller's. Raises BaseModelError where the base changed.
    """
    outcomes: dict[str, TrainedTask | PtpError] = {}
    works = []
    for task, snapshot in wanted:
        try:
            works.append(_work(base, task, snapshot, checkpoints.store, report))
        except Terminal as error:
            outcomes[task.name] = error
        except (
            RuntimeError,
            ValueError,
            IndexError,
        ) as error:  # a defect in one task's preparation ends no other's training
            outcomes[task.name] = TrainingError(
                f"task {task.name}: it could not be prepared: {describe_failure(error)}"
            )
    if works:
        gang = run_gang(base, [job for work in works for job in work.jobs], tracker, report, checkpoints)
        members = iter(gang.members)
        for work in works:
            outcomes[work.task.name] = _outcome(base, work, [next(members) for _ in work.jobs], gang)
    return outcomes


def build_task_text(base: FrozenBase, task: Task, tune: Tune) -> TaskText:
    """How the task's rows become tokens of this base; ContextError where the prompt leaves no room for text."""
    labels = label_tokens(task.name, task.labels, base.encode)
    free = FreeText(task.generate.max_new_tokens, end_token(base)) if task.generate else None
    limit = max_input_tokens(base.context, tune.num_virtual_tokens + count_extra_tokens(tune.placement), free or labels)
    encode = build_text_encoder(base, tune.placement)
    return TaskText(
        task.name, task.template, scored(labels, task.scoring, task.template, limit, encode), limit, encode, free
    )


def end_token(base: FrozenBase) -> int:
    """The token that targets end with: the tokenizer's own end of text where decoding stops at it, else the first that
    it stops at.

    Raises BaseModelError where the base states none.
    """
    if not base.end_tokens:
        raise BaseModelError(
            f"base model {base.ref.name}: neither tokenizer nor generation_config.json states an end-of-text "
            "token; generation needs one"
        )
    own = base.tokenizer.eos_token_id
    return own if own in base.end_tokens else min(base.end_tokens)


def _work(base: FrozenBase, task: Task, snapshot: Snapshot, store: ObjectStore, report: Callable[[str], None]) -> Work:
    start, variants = load_start(base, task, store, report), task.tune.variants()
    longest = max(variants, key=lambda variant: variant.num_virtual_tokens)
    first = build_job(base, task, longest, snapshot, store, start.prompt)
    starts = [make_initial_prompt(base, variant, task.labels, start.prompt) for variant in variants]
    check_bytes(task, starts)
    warnings = advise(longest, base)
    for warning in warnings:
        report(f"{task.name}: {warning}")
    jobs = [
        first._replace(name=_trial(task, variant), tune=variant, initial=prompt)
        for variant, prompt in zip(variants, starts, strict=True)
    ]
    return Work(task, snapshot, start, jobs, warnings)


def check_bytes(task: Task, prompts: Sequence[SoftPrompt]) -> None:
    """TaskFileError where what the recipe is to store, from first prompts of the shape that each trial keeps, is over a
    limit of bytes.
    """
    tune = task.tune
    sizes = [
        compute_file_bytes({name: tensor.shape for name, tensor in name_tensors(prompt).items()}, tune.store_dtype)
        for prompt in prompts
    ]
    stored, what = (sum(sizes), f"{len(sizes)} prompts") if tune.ensemble else (max(sizes), "a prompt")
    limits = (
        (max(sizes), "an artifact holds at most", MAX_TENSOR_BYTES, ""),
        (stored, "gate.checks.bytes.max_bytes allows", task.byte_limit(), ", or raise gate.checks.bytes.max_bytes"),
    )
    for needed, who, limit, raised in limits:
        if needed > limit:
            where = (
                f"task {task.name}: tune.num_virtual_tokens: {what} of {max(map(count_virtual_tokens, prompts))} "
                f"virtual tokens in {tune.store_dtype}"
            )
            halved = ", or store_dtype: float16" if tune.store_dtype == "float32" and needed <= 2 * limit else ""
            raise TaskFileError(f"{where} needs {needed} bytes, {who} {limit}; take fewer{halved}{raised}")


def build_job(
    base: FrozenBase, task: Task, tune: Tune, snapshot: Snapshot, store: ObjectStore, given: SoftPrompt | None = None
) -> Job:
    """The task's rows of that snapshot under a recipe, from the prompt that is given or from the recipe's own start."""
    text = build_task_text(base, task, tune)
    train, dev = (text.rows(load_split(store, snapshot, split)) for split in ("train", "dev"))
    return Job(task.name, task, tune, make_initial_prompt(base, tune, task.labels, given), text, train, dev)


def _trial(task: Task, variant: Tune) -> str:
    """A job's name: the task's own, or with what tells its trials apart."""
    if variant is task.tune:
        return task.name
    return f"{task.name}/{variant.num_virtual_tokens} tokens, rate {variant.learning_rate!r}, seed {variant.seed}"


def _outcome(base: FrozenBase, work: Work, members: list[Member], gang: Gang) -> TrainedTask | PtpError:
    try:
        if work.task.tune.method == "ensemble":
            return _ensemble(base, work, members, gang)
        best = choose_member(work.task.tune, members)
        artifact = _packed(base, work, best)
        return TrainedTask(artifact, [], _tuned(base, work, best, artifact, gang, members))
    except PtpError as error:
        return error


def choose_member(tune: Tune, members: list[Member]) -> Member:
    """The member that is best on dev, the first of equals. `grow` stops at the length that the next does not better."""
    sound = [member for member in members if member.error is None and member.best is not None]
    if not sound:
        raise members[0].error or TrainingError(f"task {members[0].job.name}: nothing was trained")
    if tune.search is None or tune.search.length != "grow":
        return max(sound, key=lambda member: member.best_dev)
    kept = None
    for length in tune.search.lengths or []:
        rivals = [member for member in sound if member.job.tune.num_virtual_tokens == length]
        best = max(rivals, key=lambda member: member.best_dev, default=None)
        if best is None or (kept is not None and best.best_dev <= kept.best_dev):
            break
        kept = best
    return kept or max(sound, key=lambda member: member.best_dev)


def _packed(base: FrozenBase, work: Work, member: Member) -> Artifact:
    if member.error is not None or member.best is None:
        raise member.error or TrainingError(f"task {member.job.name}: nothing was trained")
    fields = build_manifest_fields(base, work, member.job) | {
        "method": member.job.tune.method,
        "seed": member.job.tune.seed,
    }
    return pack(member.best, member.job.tune.store_dtype, fields)


def build_manifest_fields(base: FrozenBase, work: Work, job: Job) -> dict[str, Any]:
    """Identity fields of the manifest that all prompts of a task share."""
    return {
        "task": work.task.name,
        "placement": job.tune.placement,
        "base_model": base.ref,
        "template": work.task.template,
        "labels": work.task.labels,
        "generate": work.task.generate,
        "scoring": work.task.scoring,
        "max_input_tokens": job.text.limit,
        "snapshot": work.snapshot.digest,
        "recipe": work.task.recipe_digest(),
        "training_key": compute_training_key(work.task, work.snapshot, base.ref.fingerprint, work.start.key),
        "engine_version": ENGINE_VERSION,
        "parents": work.start.parents,
    }


def _ensemble(base: FrozenBase, work: Work, members: list[Member], gang: Gang) -> TrainedTask:
    """All members as one version; the error of the first that failed, since an ensemble is complete or none."""
    artifacts = [_packed(base, work, member) for member in members]
    fields = build_manifest_fields(base, work, members[0].job) | {"method": "ensemble", "seed": work.task.tune.seed}
    how = work.task.tune.ensemble.combine if work.task.tune.ensemble else "average"
    artifact = pack_ensemble(artifacts, how, fields)
    tuned = _tuned(base, work, max(members, key=lambda member: member.best_dev), artifact, gang, members)
    size = sum(len(member.tensors) for member in artifacts)
    return TrainedTask(
        artifact, artifacts, tuned.model_copy(update={"bytes": size, "best_dev": _dev_of_ensemble(base, members, how)})
    )


def _dev_of_ensemble(base: FrozenBase, members: list[Member], how: Any) -> float:
    """The dev metric of the members' combined answers."""
    with torch.inference_mode():
        cache = base.compute_prefix(
            [place_prompt(base, m.best, m.job.tune.placement) for m in members if m.best is not None]
        )
    job, size = members[0].job, len(members[0].job.dev)
    scores = rank(
        base, cache, [Query(row.ids, job.text.labels, index) for index in range(len(members)) for row in job.dev]
    )
    answers = [combine(torch.stack(scores[row::size]), how).argmax() for row in range(size)]
    names = job.text.labels.names
    return measure(
        job.task.gate.metric, [row.label for row in job.dev], [names[int(answer)] for answer in answers], names
    )


def _tuned(
    base: FrozenBase, work: Work, member: Member, artifact: Artifact, gang: Gang, trials: list[Member]
) -> TunedPrompt:
    listed = [_trial_of(trial) for trial in trials] if len(trials) > 1 else []
    return describe_tuning(base, gang, member, artifact).model_copy(
        update={"trials": listed, "warnings": work.warnings}
    )


def describe_tuning(base: FrozenBase, gang: Gang, member: Member, artifact: Artifact) -> TunedPrompt:
    """How a member of a gang became the artifact."""
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


def _trial_of(member: Member) -> Trial:
    best = None if member.error or member.best is None else member.best_dev
    return Trial(
        name=member.job.name,
        best_dev=best,
        best_step=member.best_step,
        error=str(member.error) if member.error else None,
    )
