"""A classification prompt measured on the test rows: labels ranked behind it, behind no prompt, and the majority."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import encode_text
from ptpipeline.evaluation.measurement import Measurement
from ptpipeline.evaluation.metrics import majority, scores
from ptpipeline.evaluation.paired import RESAMPLED, interval
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.placement import extra_tokens
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.ranking import Query, rank


class Measured(NamedTuple):
    """Log-likelihoods of one set of predictions: per row a tensor [labels]."""

    names: tuple[str, ...]
    log_likelihoods: list[Tensor]

    @property
    def predicted(self) -> list[str]:
        """The most likely label of each row."""
        return [self.names[int(row.argmax())] for row in self.log_likelihoods]


def ranked(engine: Engine, artifact: Artifact, rows: Sequence[Row], train_labels: Mapping[str, int]) -> Measurement:
    """The loaded prompt over these rows; `train_labels` counts the training rows of each label."""
    prompt, zero_shot = _prompted(engine, artifact, rows), _unprompted(engine, artifact, rows)
    truth, names = [row.label for row in rows], prompt.names
    return Measurement(
        prompt=scores(truth, prompt.predicted, names),
        zero_shot=scores(truth, zero_shot.predicted, names),
        majority=scores(truth, [majority(train_labels)] * len(truth), names),
        interval={metric: interval(metric, truth, prompt.predicted, names) for metric in RESAMPLED},
        columns={"label": truth, "predicted": prompt.predicted, "zero_shot": zero_shot.predicted}
        | {f"log_likelihood.{name}": [float(row[i]) for row in prompt.log_likelihoods] for i, name in enumerate(names)},
    )


def _prompted(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> Measured:
    loaded = engine.load(artifact)
    return Measured(loaded.labels.names, engine.log_likelihoods([Question(artifact.digest, row.text) for row in rows]))


def _unprompted(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> Measured:
    """Zero-shot: the same template and labels on the bare base model."""
    manifest, labels = artifact.manifest, engine.load(artifact).labels
    what = f"test rows of {manifest.task}"
    limit = manifest.max_input_tokens + extra_tokens(manifest.placement)
    queries = [Query(encode_text(manifest.template, row.text, limit, what, engine.base.encode), labels, 0) for row in rows]
    return Measured(labels.names, rank(engine.base, None, queries))
