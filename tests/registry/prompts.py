"""Small valid prompts with all their records, made without torch."""

import hashlib
from typing import Literal

import numpy as np
from safetensors.numpy import save

from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records import (
    BaseModelRef,
    Check,
    CurvePoint,
    PairedDifference,
    PromptManifest,
    Report,
    Scores,
    Snapshot,
    SplitInfo,
    TensorInfo,
    TunedPrompt,
    Verdict,
    digest_of,
)
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.registry import Registry
from registry.versions.publish import register, stage

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000a49444154789c6300010000050001"
    "0d0a2db40000000049454e44ae426082"
)


def a_task(name: str = "mood", minimum: float = 0.8) -> Task:
    """A task whose gate asks for `minimum` accuracy."""
    return Task.model_validate(
        {
            "name": name,
            "base_model": "tiny",
            "data": {"source": {"path": "rows.csv", "format": "csv"}, "text": "text", "label": "label"},
            "template": "{text}\nMood:",
            "labels": {"bad": " bad", "good": " good"},
            "gate": {"metric": "accuracy", "minimum": minimum},
        }
    )


def a_snapshot(task: Task) -> Snapshot:
    """The snapshot that every prompt of the task was trained on."""

    def split(name: str, rows: int) -> SplitInfo:
        return SplitInfo(rows=rows, labels={"bad": rows // 2, "good": rows // 2}, digest=digest_of([task.name, name]))

    return Snapshot(
        task=task.name,
        digest=digest_of(task.name),
        source="rows.csv",
        source_key="key",
        train=split("train", 80),
        dev=split("dev", 10),
        test=split("test", 20),
        checks=[],
    )


def an_artifact(task: Task, seed: int = 0) -> Artifact:
    """Four virtual tokens of width 8; another seed is another prompt."""
    tensors = save({"embeddings": np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float16)})
    manifest = PromptManifest(
        task=task.name,
        method="prompt",
        num_virtual_tokens=4,
        placement="before_bos",
        base_model=BaseModelRef(
            name=task.base_model, fingerprint="f" * 64, tokenizer_fingerprint="e" * 64, hidden_size=8
        ),
        template=task.template,
        labels=task.labels,
        max_input_tokens=100,
        snapshot=a_snapshot(task).digest,
        recipe=task.recipe_digest(),
        training_key=digest_of([task.name, seed]),
        seed=seed,
        engine_version=1,
        tensors={"embeddings": TensorInfo(shape=[4, 8], dtype="float16")},
        tensor_sha256=hashlib.sha256(tensors).hexdigest(),
    )
    return Artifact(manifest, tensors)


def a_request(task: Task, seed: int = 0, champion: str | None = None, passed: bool = True) -> Provenance:
    """All records of the prompt with that seed, judged against `champion`."""
    artifact = an_artifact(task, seed)
    report = a_report(artifact, 0.9 if passed else 0.5)
    return Provenance(
        _tuned(artifact), report, a_verdict(task, report, champion, passed), {"learning-curve": PNG}, commit="c0ffee"
    )


def a_report(artifact: Artifact, accuracy: float) -> Report:
    """A measurement on the task's 20 test rows."""

    def scores(value: float) -> Scores:
        return Scores(accuracy=value, macro_f1=value, per_label={}, confusion={}, predicted={"bad": 10, "good": 10})

    return Report(
        task=artifact.manifest.task,
        digest=artifact.digest,
        evaluation_key=digest_of(["evaluation", artifact.digest]),
        snapshot=artifact.manifest.snapshot,
        test_digest=digest_of([artifact.manifest.task, "test"]),
        rows=20,
        rows_key=f"reports/{artifact.digest}.json",
        prompt=scores(accuracy),
        zero_shot=scores(0.6),
        majority=scores(0.5),
        interval={"accuracy": (accuracy - 0.1, accuracy + 0.1)},
        compute_dtype="float32",
        seconds=1.0,
    )


def a_verdict(task: Task, report: Report, champion: str | None, passed: bool = True) -> Verdict:
    """The gate's decision over the report under the task's policy."""
    pair = PairedDifference(
        metric="accuracy", difference=0.02, lower=-0.01, upper=0.05, confidence=0.95, rows=20, dropped=0
    )
    return Verdict(
        task=task.name,
        digest=report.digest,
        gate_key=digest_of(["gate", report.evaluation_key, task.policy_digest(), champion]),
        policy=task.policy_digest(),
        evaluation_key=report.evaluation_key,
        test_digest=report.test_digest,
        champion=champion,
        comparison=pair if champion else None,
        checks=[Check(name="minimum", passed=passed, observed=f"{report.prompt.accuracy:.2f}", required=">= 0.80")],
        passed=passed,
    )


def published(
    registry: Registry, task: Task, seed: int, champion: str | None = None, kind: Literal["passed", "failed"] = "passed"
) -> int:
    """Stage and register the prompt with that seed; its version number."""
    registry.ledger.save_snapshot(a_snapshot(task))
    stage(registry.ledger, registry.store, an_artifact(task, seed))
    return register(registry, a_request(task, seed, champion, kind == "passed")).number


def _tuned(artifact: Artifact) -> TunedPrompt:
    curve = [
        CurvePoint(step=step, loss=1 / (step + 1), learning_rate=0.01, dev=0.5 + step / 40, token_norms=[1.0, 3.0])
        for step in (0, 10)
    ]
    return TunedPrompt(
        task=artifact.manifest.task,
        digest=artifact.digest,
        training_key=artifact.manifest.training_key,
        snapshot=artifact.manifest.snapshot,
        bytes=len(artifact.tensors),
        steps=10,
        best_step=10,
        best_dev=0.75,
        stopped_early=False,
        seconds=2.0,
        tokens_per_second=100.0,
        compute_dtype="float32",
        self_check={},
        curve=curve,
    )
