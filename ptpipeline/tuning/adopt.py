"""A prompt that something else trained becomes a candidate: every bound checked against task and base, then packed like
our own.

Nothing in such a file proves which base it was trained on or which rows it has seen: the gate decides what it is worth.
"""

import hashlib
from collections.abc import Sequence

import torch

from ptpipeline.data.rows import Row
from ptpipeline.errors import ArtifactError, BaseModelError, TrainingError
from ptpipeline.models.frozen import FrozenBase, KeyValues, SoftPrompt, count_virtual_tokens, list_tensors
from ptpipeline.prompts.parameterise import Direct
from ptpipeline.prompts.peft import ForeignPrompt
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import pack, round_to_stored
from ptpipeline.records import Scoring, Snapshot, TunedPrompt, digest_of
from ptpipeline.serving.answers import answer
from ptpipeline.task.recipe import Tune
from ptpipeline.task.task import Task
from ptpipeline.tuning.member import Job, Member, build_optimizer
from ptpipeline.tuning.start import Start
from ptpipeline.tuning.tune import TrainedTask, Work, build_manifest_fields, build_task_text


def adopt(base: FrozenBase, task: Task, snapshot: Snapshot, found: ForeignPrompt, dev: Sequence[Row]) -> TrainedTask:
    """The foreign prompt as an artifact of the task, with zero steps of training, measured on the task's dev rows.

    Raises BaseModelError where it does not fit the base, ContextError where it leaves no room for text, ArtifactError
    where the task's stored type cannot hold its values.
    """
    _check_base(base, found)
    recipe = _recipe(task.tune, found)
    text = build_task_text(base, task, recipe)
    stored = _stored(found.prompt, recipe.store_dtype)
    job = Job(task.name, task, recipe, stored, text, [], text.rows(dev))
    fields = build_manifest_fields(base, Work(task, snapshot, Start(None, None, []), [job], []), job)
    identity = {
        "kind": "import",
        "method": found.method,
        "store_dtype": recipe.store_dtype,
        "placement": recipe.placement,
        "template": task.template,
        "labels": task.labels,
        "generate": task.generate.model_dump(mode="json") if task.generate else None,
    } | ({"scoring": task.scoring.to_json()} if task.scoring != Scoring() else {})
    key = {
        "kind": "import",
        "task": task.name,
        "base": base.ref.fingerprint,
        "recipe": identity,
        "tensors": _digest(stored),
    }
    marks = {"method": found.method, "seed": 0, "recipe": digest_of(identity), "training_key": digest_of(key)}
    artifact = pack(stored, recipe.store_dtype, fields | marks)
    tuned = TunedPrompt(
        task=task.name,
        digest=artifact.digest,
        training_key=artifact.manifest.training_key,
        snapshot=snapshot.digest,
        bytes=len(artifact.tensors),
        steps=0,
        best_step=0,
        best_dev=_dev(base, job),
        stopped_early=False,
        seconds=0.0,
        tokens_per_second=0.0,
        compute_dtype=str(base.dtype).removeprefix("torch."),
        self_check={},
        curve=[],
        warnings=[*found.notes, _origin(base, found)],
    )
    return TrainedTask(artifact, [], tuned)


def _recipe(tune: Tune, found: ForeignPrompt) -> Tune:
    """The task's recipe as it would have made such a prompt."""
    shape = {
        "method": found.method,
        "num_virtual_tokens": count_virtual_tokens(found.prompt),
        "placement": found.placement or tune.placement,
    }
    return tune.model_copy(update=shape | {"ensemble": None, "search": None})


def _check_base(base: FrozenBase, found: ForeignPrompt) -> None:
    kind = bool(getattr(base.model.config, "is_encoder_decoder", False))
    if found.encoder_decoder is not None and found.encoder_decoder != kind:
        kinds = {True: "an encoder-decoder (SEQ_2_SEQ_LM)", False: "a causal model (CAUSAL_LM)"}
        raise BaseModelError(
            f"the adapter is for {kinds[found.encoder_decoder]}, base model {base.ref.name} is {kinds[kind]}; "
            "import it into a task on its own base"
        )
    if not isinstance(found.prompt, KeyValues) and found.prompt.shape[1] != base.ref.hidden_size:
        raise BaseModelError(
            f"the prompt is {found.prompt.shape[1]} wide, base model {base.ref.name} is {base.ref.hidden_size} "
            "wide; import it into a task on its own base"
        )
    with torch.inference_mode():
        base.compute_prefix([found.prompt])  # layers and heads are the model's to check


def _stored(prompt: SoftPrompt, dtype: str) -> SoftPrompt:
    try:
        return round_to_stored(prompt, dtype)
    except TrainingError:
        largest = max(float(tensor.abs().max()) for tensor in list_tensors(prompt))
        raise ArtifactError(
            f"the prompt has values up to {largest:.3g}, more than {dtype} holds; set tune.store_dtype: float32"
        ) from None


def _digest(prompt: SoftPrompt) -> str:
    digest = hashlib.sha256()
    for tensor in list_tensors(prompt):
        digest.update(str(list(tensor.shape)).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _dev(base: FrozenBase, job: Job) -> float:
    """The dev metric, as a member in training is judged."""
    parameterisation = Direct(job.initial)
    member = Member(job, parameterisation, build_optimizer(job.tune, list(parameterisation.parameters())), iter(()))
    with torch.inference_mode():
        cache = base.compute_prefix([place_prompt(base, job.initial, job.tune.placement)])
    return member.judge(job.initial, answer(base, cache, member.dev_queries(0)))


def _origin(base: FrozenBase, found: ForeignPrompt) -> str:
    named = f"its file names the base {found.named_base!r:.120}" if found.named_base else "its file names no base"
    return (
        f"imported: {named}, which proves nothing; that it was trained on {base.ref.name}, and on none of the test "
        "rows, is for whoever imports it to know"
    )
