"""How likely the true answer of a row is, behind the loaded prompt and on the bare base."""

from collections.abc import Callable, Sequence

from ptpipeline.data.batches import group_by_length
from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import FreeText, LabelTokens
from ptpipeline.errors import ContextError
from ptpipeline.evaluation.probes.queries import NOTHING, Known, cut_prompted, encode_bare, encode_prompted, score_rows
from ptpipeline.models.inputs import PrefixCache
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine
from ptpipeline.serving.ranking import Query, rank
from ptpipeline.task.template import Fields, read_template

TOKENS_PER_PASS = 512  # every target token needs logits over the whole vocabulary: 100 MB if that has 49,152


def prompted_likelihoods(
    engine: Engine, artifact: Artifact, rows: Sequence[Row], known: Known = NOTHING
) -> list[float]:
    """Return the log-likelihood of each row's label as it is served, or the mean over the tokens of its target."""
    if artifact.manifest.generate is not None:
        return _target_likelihoods(engine, artifact, rows, engine.find_cache(artifact.digest), encode_prompted)
    scores = score_rows(engine, artifact, rows, known)
    names = list(artifact.manifest.labels)
    return [float(score[names.index(row.label)]) for score, row in zip(scores, rows, strict=True)]


def bare_likelihoods(engine: Engine, artifact: Artifact, rows: Sequence[Row], known: Known = NOTHING) -> list[float]:
    """Return the same likelihoods on the base model without the prompt."""
    if artifact.manifest.generate is not None:
        return _target_likelihoods(engine, artifact, rows, None, encode_bare)
    labels = engine.load(artifact).labels
    asked = [row for row in rows if row.id not in known.bare]
    scores = iter(
        rank(engine.base, None, [Query(encode_bare(engine, artifact, row.fields), labels, 0) for row in asked])
    )
    own = [known.bare[row.id] if row.id in known.bare else next(scores) for row in rows]
    return [float(score[labels.names.index(row.label)]) for score, row in zip(own, rows, strict=True)]


def keep_within_limit(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose target the prompt can generate in full; all of them if it answers with labels."""
    if artifact.manifest.generate is None:
        return list(rows)
    return [row for row in rows if _target(engine, artifact, row)]


def _target_likelihoods(
    engine: Engine,
    artifact: Artifact,
    rows: Sequence[Row],
    cache: PrefixCache | None,
    encode: Callable[[Engine, Artifact, Fields], list[int]],
) -> list[float]:
    """The mean log-likelihood of each target's tokens; a row's target is ranked as if it were the only label."""
    targets = [_target(engine, artifact, row) or () for row in rows]
    queries = [
        Query(encode(engine, artifact, row.fields), LabelTokens(("target",), (target,)), 0)
        for row, target in zip(rows, targets, strict=True)
    ]
    means = [0.0] * len(rows)
    for group in group_by_length(
        range(len(rows)), lambda index: len(queries[index].ids) + len(targets[index]), TOKENS_PER_PASS
    ):
        for index, score in zip(group, rank(engine.base, cache, [queries[index] for index in group]), strict=True):
            means[index] = float(score[0]) / len(targets[index])
    return means


def _target(engine: Engine, artifact: Artifact, row: Row) -> tuple[int, ...] | None:
    """The token ids of a target without the end of text; None if it is longer than what may be generated."""
    manifest = artifact.manifest
    limit = manifest.generate.max_new_tokens if manifest.generate else 0
    what = f"task {manifest.task}, row {row.id}"
    try:
        rendered = read_template(manifest).render(cut_prompted(engine, artifact, row.fields), what)
        return FreeText(limit, 0).target(rendered, row.label, what, engine.base.encode)[:-1]
    except ContextError:
        return None
