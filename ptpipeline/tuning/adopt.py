"""A prompt that something else trained becomes a candidate: checked against task and base, then packed like our own.

Nothing in such a file proves which base it was trained on or which rows it has seen: the gate decides what it is worth.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import is_cut
from ptpipeline.errors import ArtifactError, BaseModelError, TrainingError
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import KeyValues, SoftPrompt, count_virtual_tokens, list_tensors
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.parameterise import Direct
from ptpipeline.prompts.peft import ForeignPrompt
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import pack, round_to_stored
from ptpipeline.records.base import digest_of
from ptpipeline.records.data import Snapshot
from ptpipeline.records.prompts import BaseModelRef, Scoring, TunedPrompt
from ptpipeline.serving.answers import answer
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Task
from ptpipeline.tuning.member import Job, Member, build_optimizer
from ptpipeline.tuning.start import Start
from ptpipeline.tuning.tune import TrainedTask, Work, build_manifest_fields, build_task_text


class Adopted(NamedTuple):
    """What was taken in, and the training keys under which the same prompt may have been taken in before."""

    trained: TrainedTask
    keys: list[str]


def adopt(base: FrozenBase, task: Task, snapshot: Snapshot, foreign: ForeignPrompt, dev: Sequence[Row]) -> Adopted:
    """Return the foreign prompt as an artifact of the task, after zero steps, measured on the task's dev rows.

    Raises BaseModelError if it does not fit the base, ContextError if it leaves no room for text, ArtifactError if the
    task's stored type cannot hold its values.
    """
    _check_base(base, foreign)
    recipe = _adapt_recipe(task.tune, foreign)
    text = build_task_text(base, task, recipe)
    stored = _round_to_stored(foreign.prompt, recipe.store_dtype)
    job = Job(task.name, task, recipe, stored, text, [], text.rows(dev))
    work = Work(task, snapshot, Start(None, None, []), [job], [])
    artifact = pack(stored, recipe.store_dtype, build_manifest_fields(base, work, job) | _identify(base, job))
    warnings = [*foreign.notes, _describe_origin(base, foreign)]
    keys = [_import_key(ref, job) for ref in base.known]
    return Adopted(TrainedTask(artifact, [], _describe_adoption(base, job, artifact, warnings)), keys)


def _identify(base: FrozenBase, job: Job) -> dict[str, Any]:
    """Return the manifest's fields that say how the prompt came about, with a training key of the import."""
    recipe = digest_of(_describe_recipe(job))
    return {"method": job.tune.method, "seed": 0, "recipe": recipe, "training_key": _import_key(base.ref, job)}


def _describe_recipe(job: Job) -> dict[str, Any]:
    task, recipe = job.task, job.tune
    return {
        "kind": "import",
        "method": recipe.method,
        "store_dtype": recipe.store_dtype,
        "placement": recipe.placement,
        "template": task.template_json,
        "labels": task.labels,
        "generate": task.generate.model_dump(mode="json") if task.generate else None,
        **({"chat": job.text.chat.to_json()} if job.text.chat else {}),
        **({"too_long": task.data.too_long} if is_cut(task.data.too_long) else {}),
    } | ({"scoring": task.scoring.to_json()} if task.scoring != Scoring() else {})


def _import_key(base: BaseModelRef, job: Job) -> str:
    """Return the training key of the import, for the base by one of its fingerprints."""
    parts = {
        "kind": "import",
        "task": job.task.name,
        "base": base.fingerprint,
        "recipe": _describe_recipe(job),
        "tensors": _digest_tensors(job.initial),
    }
    return digest_of(parts)


def _describe_adoption(base: FrozenBase, job: Job, artifact: Artifact, warnings: list[str]) -> TunedPrompt:
    return TunedPrompt(
        task=artifact.manifest.task,
        digest=artifact.digest,
        training_key=artifact.manifest.training_key,
        snapshot=artifact.manifest.snapshot,
        bytes=len(artifact.tensors),
        steps=0,
        best_step=0,
        best_dev=_measure_dev(base, job),
        stopped_early=False,
        seconds=0.0,
        tokens_per_second=0.0,
        compute_dtype=str(base.dtype).removeprefix("torch."),
        self_check={},
        curve=[],
        warnings=warnings,
    )


def _adapt_recipe(tune: Tune, foreign: ForeignPrompt) -> Tune:
    """Return the task's recipe as it would have made such a prompt."""
    shape = {
        "method": foreign.method,
        "num_virtual_tokens": count_virtual_tokens(foreign.prompt),
        "placement": foreign.placement or tune.placement,
    }
    return tune.model_copy(update=shape | {"ensemble": None, "search": None})


def _check_base(base: FrozenBase, foreign: ForeignPrompt) -> None:
    own_kind = bool(getattr(base.model.config, "is_encoder_decoder", False))
    if foreign.encoder_decoder is not None and foreign.encoder_decoder != own_kind:
        kinds = {True: "an encoder-decoder (SEQ_2_SEQ_LM)", False: "a causal model (CAUSAL_LM)"}
        raise BaseModelError(
            f"the adapter is for {kinds[foreign.encoder_decoder]}, base model {base.ref.name} is {kinds[own_kind]}; "
            "import it into a task on its own base"
        )
    if not isinstance(foreign.prompt, KeyValues) and foreign.prompt.shape[1] != base.ref.hidden_size:
        raise BaseModelError(
            f"the prompt is {foreign.prompt.shape[1]} wide, base model {base.ref.name} is {base.ref.hidden_size} "
            "wide; import it into a task on its own base"
        )
    with torch.inference_mode():
        base.compute_prefix([foreign.prompt])  # the model checks layers and heads


def _round_to_stored(prompt: SoftPrompt, dtype: str) -> SoftPrompt:
    try:
        return round_to_stored(prompt, dtype)
    except TrainingError:
        largest = max(float(tensor.abs().max()) for tensor in list_tensors(prompt))
        raise ArtifactError(
            f"the prompt has values up to {largest:.3g}, more than {dtype} holds; set tune.store_dtype: float32"
        ) from None


def _digest_tensors(prompt: SoftPrompt) -> str:
    digest = hashlib.sha256()
    for tensor in list_tensors(prompt):
        digest.update(str(list(tensor.shape)).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _measure_dev(base: FrozenBase, job: Job) -> float:
    """Return the dev metric, as a member in training is judged."""
    parameterisation = Direct(job.initial)
    member = Member(job, parameterisation, build_optimizer(job.tune, list(parameterisation.parameters())), iter(()))
    with torch.inference_mode():
        cache = base.compute_prefix([place_prompt(base, job.initial, job.tune.placement)])
    return member.judge(job.initial, answer(base, cache, member.build_dev_requests(0)))


def _describe_origin(base: FrozenBase, foreign: ForeignPrompt) -> str:
    named = f"the base {foreign.named_base!r:.120}" if foreign.named_base else "no base"
    return (
        f"imported: its file names {named}, which proves nothing; whoever imports it must know that it was trained on "
        f"{base.ref.name} and on none of the test rows"
    )
