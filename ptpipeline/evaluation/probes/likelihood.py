"""How likely the true answer of a row is, behind the loaded prompt and on the bare base."""

from collections.abc import Callable, Sequence

from ptpipeline.data.batches import by_length
from ptpipeline.data.rows import Row
from ptpipeline.data.template import render
from ptpipeline.data.tokens import FreeText, LabelTokens
from ptpipeline.errors import ContextError
from ptpipeline.evaluation.probes.asking import bare_ids, prompted_ids
from ptpipeline.models.frozen import PrefixCache
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.ranking import Query, rank

TOKENS_PER_PASS = 512  # every token of a target takes logits over the whole vocabulary: 100 MB where that has 49,152


def prompted(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> list[float]:
    """Log-likelihood of each row's label as it is served, or of its target text as the mean over the target's
    tokens.
    """
    if artifact.manifest.generate is not None:
        return _targets(engine, artifact, rows, (engine.load(artifact).cache, prompted_ids))
    scores = engine.score_labels([Question(artifact.digest, row.text) for row in rows])
    names = list(artifact.manifest.labels)
    return [float(score[names.index(row.label)]) for score, row in zip(scores, rows, strict=True)]


def bare(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> list[float]:
    """The same on the base model without the prompt."""
    if artifact.manifest.generate is not None:
        return _targets(engine, artifact, rows, (None, bare_ids))
    labels = engine.load(artifact).labels
    scores = rank(engine.base, None, [Query(bare_ids(engine, artifact, row.text), labels, 0) for row in rows])
    return [float(score[labels.names.index(row.label)]) for score, row in zip(scores, rows, strict=True)]


def within_limit(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> list[Row]:
    """The rows whose target the prompt can generate in full; all of them where it answers with labels."""
    if artifact.manifest.generate is None:
        return list(rows)
    return [row for row in rows if _target(engine, artifact, row)]


def _targets(
    engine: Engine,
    artifact: Artifact,
    rows: Sequence[Row],
    behind: tuple[PrefixCache | None, Callable[[Engine, Artifact, str], list[int]]],
) -> list[float]:
    """Mean log-likelihood of the target's tokens, each row's target ranked as if it were the only label."""
    cache, encode = behind
    targets = [_target(engine, artifact, row) or () for row in rows]
    queries = [
        Query(encode(engine, artifact, row.text), LabelTokens(("target",), (target,)), 0)
        for row, target in zip(rows, targets, strict=True)
    ]
    found = [0.0] * len(rows)
    for group in by_length(
        range(len(rows)), lambda index: len(queries[index].ids) + len(targets[index]), TOKENS_PER_PASS
    ):
        for index, score in zip(group, rank(engine.base, cache, [queries[index] for index in group]), strict=True):
            found[index] = float(score[0]) / len(targets[index])
    return found


def _target(engine: Engine, artifact: Artifact, row: Row) -> tuple[int, ...] | None:
    """Token ids of a target without the end of text; None where it is longer than what is ever generated."""
    manifest = artifact.manifest
    limit = manifest.generate.max_new_tokens if manifest.generate else 0
    try:
        return FreeText(limit, 0).target(
            render(manifest.template, row.text), row.label, f"task {manifest.task}, row {row.id}", engine.base.encode
        )[:-1]
    except ContextError:
        return None
