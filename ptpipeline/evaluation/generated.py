"""A generation prompt measured on the test rows: texts decoded behind it, behind no prompt, and the commonest target.

Neither texts nor targets leave this file: what is kept of a row is its metrics.
"""

from collections.abc import Mapping, Sequence

from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import encode_text
from ptpipeline.evaluation.measurement import Measurement
from ptpipeline.evaluation.metrics import majority
from ptpipeline.evaluation.texts import TextRows, text_scores
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.placement import extra_tokens
from ptpipeline.records import TEXT_METRICS, Generation
from ptpipeline.serving.answers import Opening, generate
from ptpipeline.serving.engine import Engine, Question


def generated(engine: Engine, artifact: Artifact, rows: Sequence[Row], train_targets: Mapping[str, int]) -> Measurement:
    """The loaded prompt over these rows; `train_targets` counts the training rows of each target."""
    targets = [row.label for row in rows]
    answers = {
        "prompt": engine.generate([Question(artifact.digest, row.text) for row in rows]),
        "zero_shot": _unprompted(engine, artifact, rows),
        "majority": [majority(train_targets)] * len(rows),
    }
    measured = {name: TextRows.of(targets, given) for name, given in answers.items()}
    return Measurement(
        **{name: text_scores(measured[name], given) for name, given in answers.items()},
        interval={metric: measured["prompt"].interval(metric) for metric in TEXT_METRICS},
        columns={metric: measured["prompt"].values[metric].tolist() for metric in TEXT_METRICS}
        | {f"zero_shot.{metric}": measured["zero_shot"].values[metric].tolist() for metric in TEXT_METRICS},
    )


def _unprompted(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> list[str]:
    """Zero-shot: the same template on the bare base model."""
    manifest = artifact.manifest
    what, tokens = f"test rows of {manifest.task}", (manifest.generate or Generation()).max_new_tokens
    limit = manifest.max_input_tokens + extra_tokens(manifest.placement)
    openings = [Opening(encode_text(manifest.template, row.text, limit, what, engine.base.encode), tokens, 0) for row in rows]
    return generate(engine.base, None, openings)
