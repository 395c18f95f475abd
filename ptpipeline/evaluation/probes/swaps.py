"""Bias by the task's own term swaps: how many answers change when, say, `he` and `she` change places."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from ptpipeline.data.rows import Row
from ptpipeline.data.sample import sample_rows
from ptpipeline.errors import DataError
from ptpipeline.evaluation.probes.queries import (
    NOTHING,
    Known,
    answer_rows,
    ask,
    build_questions,
    change_fields,
    fits,
    score_rows,
)
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine

ROWS = 200


def measure_swaps(
    engine: Engine,
    artifact: Artifact,
    rows: Sequence[Row],
    pairs: Sequence[tuple[str, str]],
    known: Known = NOTHING,
) -> dict[str, float]:
    """Return the share of rows whose answer flips when terms are swapped, and the number of these rows.

    Up to 200 rows count that hold a term and still fit when it is swapped. `bias.shift`, for labels only, is the mean
    absolute change of the probability of the label predicted before. If there are no such rows, only the count 0 is
    returned. Raises DataError if pairs contradict each other.
    """
    replacements = _replacements(pairs)
    changed = [(row, change_fields(row.fields, lambda text: swap_terms(text, replacements))) for row in rows]
    concerned = {row.id: fields for row, fields in changed if fields != row.fields}
    swapped = [(row, concerned[row.id]) for row in sample_rows([row for row in rows if row.id in concerned], ROWS)]
    swapped = [(row, changed) for row, changed in swapped if fits(engine, artifact, changed)]
    if not swapped:
        return {"bias.rows": 0}
    before, after = [row for row, _ in swapped], [changed for _, changed in swapped]
    if artifact.manifest.generate is not None:
        plain = answer_rows(engine, artifact, before, known)
        flips = [one != other for one, other in zip(plain, ask(engine, artifact, after), strict=True)]
        return {"bias.rows": len(swapped), "bias.flips": sum(flips) / len(swapped)}
    ours = score_rows(engine, artifact, before, known)
    theirs = engine.score_labels(build_questions(artifact, after))
    return {"bias.rows": len(swapped)} | _compare_scores(ours, theirs)


def swap_terms(text: str, replacements: Mapping[str, str]) -> str:
    """Return the text with all terms replaced at once: whole words in any case, which the replacement keeps."""
    if not replacements:
        return text
    terms = "|".join(re.escape(term) for term in sorted(replacements, key=len, reverse=True))  # `old man` before `man`
    return re.sub(
        rf"(?<!\w)(?:{terms})(?!\w)",
        lambda match: _match_case(replacements.get(match[0].casefold(), match[0]), match[0]),
        text,
        flags=re.IGNORECASE,
    )


def _replacements(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Each term, case folded, with the term that replaces it."""
    replacements: dict[str, str] = {}
    for one, other in pairs:
        for term, swap in ((one.strip(), other.strip()), (other.strip(), one.strip())):
            if not term or term.casefold() == swap.casefold():
                raise DataError(f"bias swaps: {one!r} and {other!r} are not a pair of terms; give two different ones")
            if replacements.setdefault(term.casefold(), swap) != swap:
                raise DataError(
                    f"bias swaps: {term!r} stands in two pairs, so its replacement is unclear; name it in one pair"
                )
    return replacements


def _match_case(term: str, replaced: str) -> str:
    """`term` in the case of the word it replaces: HE -> SHE, He -> She; otherwise as the pair writes it."""
    if replaced.isupper() and len(replaced) > 1:
        return term.upper()
    return term[:1].upper() + term[1:] if replaced[:1].isupper() else term


def _compare_scores(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict[str, float]:
    flips, shifts = 0, 0.0
    for one, other in zip(ours, theirs, strict=True):
        label = int(one.argmax())
        flips += label != int(other.argmax())
        shifts += abs(float(one.softmax(0)[label] - other.softmax(0)[label]))
    return {"bias.flips": flips / len(ours), "bias.shift": shifts / len(ours)}
