"""From tasks and their snapshots to trained artifacts: encode, train one gang, pack the best prompts."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch

from ptpipeline.data.sample import choose_dev_rows
from ptpipeline.data.snapshot import load_split
from ptpipeline.data.tokens import FreeText, TaskText, apply_scoring, is_cut, label_tokens, max_input_tokens
from ptpipeline.errors import BaseModelError, PtpError, TaskFileError, Terminal, TrainingError
from ptpipeline.evaluation.metrics import measure
from ptpipeline.models.chat import digest_chat, write_chat
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import SoftPrompt, count_virtual_tokens
from ptpipeline.prompts.artifact import MAX_TENSOR_BYTES, Artifact, compute_file_bytes
from ptpipeline.prompts.initialise import make_initial_prompt
from ptpipeline.prompts.placement import build_text_encoder, count_extra_tokens, place_prompt
from ptpipeline.prompts.tensors import name_tensors, pack, pack_ensemble
from ptpipeline.records.data import Snapshot
from ptpipeline.records.prompts import Cost, Trial, TunedPrompt
from ptpipeline.serving.combine import combine
from ptpipeline.serving.ranking import Query, rank
from ptpipeline.storage import ObjectStore
from ptpipeline.task.chat import read_fields
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Task
from ptpipeline.task.template import parse_chat, show_chat
from ptpipeline.tuning.advice import advise
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.key import ENGINE_VERSION, compute_training_key
from ptpipeline.tuning.loop import Gang, run_gang
from ptpipeline.tuning.member import Job, Member
from ptpipeline.tuning.passes import describe_failure
from ptpipeline.tuning.ranks import ALONE, Ranks
from ptpipeline.tuning.start import Start, load_start
from ptpipeline.tuning.tracker import Tracker


class TaskData(NamedTuple):
    """A task and the snapshot of its rows to train on."""

    task: Task
    snapshot: Snapshot


class TrainedTask(NamedTuple):
    """One task's outcome: the artifact to stage, an ensemble's own artifacts, and how the training went."""

    artifact: Artifact
    members: list[Artifact]
    tuned: TunedPrompt


class Work(NamedTuple):
    """One task of the gang: its snapshot, what it starts from, its jobs, and the warnings about its recipe."""

    task: Task
    snapshot: Snapshot
    start: Start
    jobs: list[Job]
    warnings: list[str]


def tune(
    base: FrozenBase,
    tasks: Sequence[TaskData],
    checkpoints: Checkpoints,
    tracker: Tracker,
    progress: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> dict[str, TrainedTask | PtpError]:
    """Train the tasks as one gang on all `ranks`; return each task's trained artifact, or the error that ended it.

    Reads from the store of the checkpoints and writes only checkpoints there: the caller stages the artifacts, and
    clears the checkpoints after that. Raises BaseModelError if the base changed.
    """
    outcomes: dict[str, TrainedTask | PtpError] = {}
    works = []
    for data in tasks:
        task = data.task
        try:
            works.append(_prepare_work(base, data, checkpoints.store, progress))
        except Terminal as error:
            outcomes[task.name] = error
        except (RuntimeError, ValueError, IndexError) as error:  # a defect in one task ends no other's training
            reason = describe_failure(error)
            outcomes[task.name] = TrainingError(f"task {task.name}: it could not be prepared: {reason}")
    ranks.agree(" ".join(work.task.name for work in works))
    if works:
        gang = run_gang(base, [job for work in works for job in work.jobs], tracker, progress, checkpoints, ranks)
        members = iter(gang.members)
        for work in works:
            finished = _Finished(base, work, [next(members) for _ in work.jobs], gang)
            outcomes[work.task.name] = _pack_outcome(finished)
    return outcomes


def build_task_text(base: FrozenBase, task: Task, tune: Tune) -> TaskText:
    """Return how the task's rows become tokens of this base.

    Raises ContextError if the prompt leaves no room for text.
    """
    labels = label_tokens(task.name, task.labels, base.encode)
    free = FreeText(task.generate.max_new_tokens, choose_end_token(base)) if task.generate else None
    prompt_tokens = tune.num_virtual_tokens + count_extra_tokens(tune.placement)
    limit = max_input_tokens(base.context, prompt_tokens, free or labels)
    encode = build_text_encoder(base, tune.placement)
    chat = write_chat(base.ref.name, base.chat, task.chat.messages) if task.chat else None
    template = parse_chat(chat.parts) if chat else read_fields(task.template)
    labels = apply_scoring(labels, task.scoring, template, limit, encode)
    return TaskText(task.name, template, labels, limit, encode, free, task.data.too_long, chat)


def choose_end_token(base: FrozenBase) -> int:
    """Return the token that targets end with: the tokenizer's end of text if decoding stops at it, else the lowest.

    Raises BaseModelError if the base states none.
    """
    if not base.end_tokens:
        raise BaseModelError(
            f"base model {base.ref.name}: neither tokenizer nor generation_config.json states an end-of-text token, "
            "which generation needs; add eos_token_id to generation_config.json"
        )
    own = base.tokenizer.eos_token_id
    return own if own in base.end_tokens else min(base.end_tokens)


def _prepare_work(base: FrozenBase, data: TaskData, store: ObjectStore, progress: Callable[[str], None]) -> Work:
    task = data.task
    start, variants = load_start(base, task, store, progress), task.tune.variants()
    longest = max(variants, key=lambda variant: variant.num_virtual_tokens)
    first = build_job(base, data, longest, store, start.prompt)
    prompts = [make_initial_prompt(base, variant, task.labels, start.prompt) for variant in variants]
    check_bytes(task, prompts)
    warnings = advise(longest, base, data.snapshot.train.rows)
    for warning in warnings:
        progress(f"{task.name}: {warning}")
    jobs = [
        first._replace(name=_name_trial(task, variant), tune=variant, initial=prompt, rungs=task.tune.rungs())
        for variant, prompt in zip(variants, prompts, strict=True)
    ]
    return Work(task, data.snapshot, start, jobs, warnings)


class _Limit(NamedTuple):
    """A limit of bytes: what needs how many, who sets the limit, the limit, and how to raise it."""

    needed: int
    owner: str
    bytes: int
    remedy: str


def check_bytes(task: Task, prompts: Sequence[SoftPrompt]) -> None:
    """Raise TaskFileError if what the recipe is to store exceeds a limit of bytes.

    `prompts` are the trials' first prompts, which have the shapes that are stored.
    """
    tune, largest = task.tune, MAX_TENSOR_BYTES
    shapes = [{name: tensor.shape for name, tensor in name_tensors(prompt).items()} for prompt in prompts]
    sizes = [compute_file_bytes(named, tune.store_dtype) for named in shapes]
    total, what = (sum(sizes), f"{len(sizes)} prompts") if tune.ensemble else (max(sizes), "a prompt")
    field = "gate.checks.bytes.max_bytes"
    limits = (
        _Limit(max(sizes), "an artifact holds at most", largest, ""),
        _Limit(total, f"{field} allows", task.byte_limit(), f", or raise {field}"),
    )
    for limit in limits:
        if limit.needed > limit.bytes:
            tokens = max(map(count_virtual_tokens, prompts))
            at = f"task {task.name}: tune.num_virtual_tokens: {what} of {tokens} virtual tokens in {tune.store_dtype}"
            halving = tune.store_dtype == "float32" and limit.needed <= 2 * limit.bytes
            halved = ", or store_dtype: float16" if halving else ""
            raise TaskFileError(
                f"{at} needs {limit.needed} bytes, {limit.owner} {limit.bytes}; take fewer{halved}{limit.remedy}"
            )


def build_job(base: FrozenBase, data: TaskData, tune: Tune, store: ObjectStore, given: SoftPrompt | None = None) -> Job:
    """Return the job of the task's rows under a recipe, from the `given` prompt or else the recipe's own start."""
    task, text = data.task, build_task_text(base, data.task, tune)
    train = text.rows(load_split(store, data.snapshot, "train"))
    dev = text.rows(choose_dev_rows(load_split(store, data.snapshot, "dev"), tune.dev_rows))
    return Job(task.name, task, tune, make_initial_prompt(base, tune, task.labels, given), text, train, dev)


def _name_trial(task: Task, variant: Tune) -> str:
    """Return a job's name: the task's own; for a trial also how it differs from the others."""
    if variant is task.tune:
        return task.name
    return f"{task.name}/{variant.num_virtual_tokens} tokens, rate {variant.learning_rate!r}, seed {variant.seed}"


class _Finished(NamedTuple):
    """One task after training: its work, its own members, and the gang that they trained in."""

    base: FrozenBase
    work: Work
    members: list[Member]
    gang: Gang


def _pack_outcome(finished: _Finished) -> TrainedTask | PtpError:
    tune = finished.work.task.tune
    try:
        if tune.method == "ensemble":
            return _pack_as_ensemble(finished)
        best = choose_member(tune, finished.members)
        artifact = _pack_member(finished.base, finished.work, best)
        return TrainedTask(artifact, [], _describe_outcome(finished, best, artifact))
    except Terminal as error:
        return error


def choose_member(tune: Tune, members: list[Member]) -> Member:
    """Return the member that is best on dev, the first of equals.

    `grow` stops at the first length that the next length does not improve on. Raises the first member's error if none
    trained.
    """
    sound = [member for member in members if member.error is None and member.best is not None]
    if not sound:
        members[0].require_best()
    if tune.search is None or tune.search.length != "grow":
        return max(sound, key=lambda member: member.best_dev)
    grown = None
    for length in tune.search.lengths or []:
        rivals = [member for member in sound if member.job.tune.num_virtual_tokens == length]
        best = max(rivals, key=lambda member: member.best_dev, default=None)
        if best is None or (grown is not None and best.best_dev <= grown.best_dev):
            break
        grown = best
    return grown or max(sound, key=lambda member: member.best_dev)


def _pack_member(base: FrozenBase, work: Work, member: Member) -> Artifact:
    best, tune = member.require_best(), member.job.tune
    fields = build_manifest_fields(base, work, member.job) | {"method": tune.method, "seed": tune.seed}
    return pack(best, tune.store_dtype, fields)


def build_manifest_fields(base: FrozenBase, work: Work, job: Job) -> dict[str, Any]:
    """Return the identity fields of the manifest that all prompts of a task share."""
    return {
        "task": work.task.name,
        "placement": job.tune.placement,
        "base_model": base.ref,
        "template": show_chat(job.text.chat.parts) if job.text.chat else work.task.template,
        "chat": job.text.chat,
        "labels": work.task.labels,
        "generate": work.task.generate,
        "scoring": work.task.scoring,
        "too_long": work.task.data.too_long if is_cut(work.task.data.too_long) else "block",
        "max_input_tokens": job.text.limit,
        "snapshot": work.snapshot.digest,
        "recipe": work.task.recipe_digest(),
        "training_key": compute_training_key(
            work.task, work.snapshot, base.ref.fingerprint, work.start.key, digest_chat(base.chat)
        ),
        "engine_version": ENGINE_VERSION,
        "parents": work.start.parents,
    }


def _pack_as_ensemble(finished: _Finished) -> TrainedTask:
    """Return all members as one version; raise the error of the first that failed: an ensemble is complete or none."""
    base, work, members, _ = finished
    artifacts = [_pack_member(base, work, member) for member in members]
    fields = build_manifest_fields(base, work, members[0].job) | {"method": "ensemble", "seed": work.task.tune.seed}
    how = work.task.tune.ensemble.combine if work.task.tune.ensemble else "average"
    artifact = pack_ensemble(artifacts, how, fields)
    tuned = _describe_outcome(finished, max(members, key=lambda member: member.best_dev), artifact)
    whole = {"bytes": sum(len(own.tensors) for own in artifacts), "best_dev": _measure_ensemble(base, members, how)}
    return TrainedTask(artifact, artifacts, tuned.model_copy(update=whole))


def _measure_ensemble(base: FrozenBase, members: list[Member], how: Literal["average", "vote"]) -> float:
    """Return the dev metric of the members' combined answers."""
    prompts = [place_prompt(base, member.require_best(), member.job.tune.placement) for member in members]
    with torch.inference_mode():
        cache = base.compute_prefix(prompts)
    job, count = members[0].job, len(members[0].job.dev)
    queries = [Query(row.ids, job.text.labels, prompt) for prompt in range(len(members)) for row in job.dev]
    scores = rank(base, cache, queries)  # of all rows behind the first prompt, then behind the second, ...
    answers = [int(combine(torch.stack(scores[row::count]), how).argmax()) for row in range(count)]
    names = job.text.labels.names
    return measure(job.task.gate.metric, [row.label for row in job.dev], [names[best] for best in answers], names)


def _describe_outcome(finished: _Finished, member: Member, artifact: Artifact) -> TunedPrompt:
    trials = [_describe_trial(trial) for trial in finished.members] if len(finished.members) > 1 else []
    tuned = describe_tuning(finished.base, finished.gang, member, artifact)
    whole = {
        "trials": trials,
        "warnings": finished.work.warnings,
        "rule": _describe_rule(finished.work.task.tune),
        "cost": sum_costs([trial.cost for trial in finished.members]),
    }
    return tuned.model_copy(update=whole)


def _describe_rule(tune: Tune) -> str | None:
    """Return by which rule the search ends trials early, in a sentence; None if it does not."""
    if tune.search is None or not tune.rungs():
        return None
    rungs = ", ".join(f"{rung.keep} after step {rung.step}" for rung in tune.rungs())
    return (
        f"halving: {tune.search.halving}: of {tune.search.size} trials the best on dev so far go on, with those that "
        f"tie: {rungs}"
    )


def sum_costs(costs: Sequence[Cost]) -> Cost:
    """Return what several members took together."""
    return Cost(
        tokens=sum(cost.tokens for cost in costs),
        seconds=round(sum(cost.seconds for cost in costs), 3),
        processor_seconds=round(sum(cost.processor_seconds for cost in costs), 3),
    )


def describe_tuning(base: FrozenBase, gang: Gang, member: Member, artifact: Artifact) -> TunedPrompt:
    """Return the record of how a member of a gang became the artifact."""
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
        cost=member.cost,
    )


def _describe_trial(member: Member) -> Trial:
    best = None if member.error or member.best is None else member.best_dev
    error = str(member.error) if member.error else None
    name, at = member.job.name, member.best_step
    return Trial(name=name, best_dev=best, best_step=at, error=error, dropped=member.dropped, cost=member.cost)
