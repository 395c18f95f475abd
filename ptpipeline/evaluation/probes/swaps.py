"""Bias by the task's own term swaps: how many answers flip when `he` and `she` change places."""

import re
from collections.abc import Mapping, Sequence

from ptpipeline.data.rows import Row
from ptpipeline.errors import DataError
from ptpipeline.evaluation.probes.asking import fits, sampled
from ptpipeline.evaluation.probes.asking import replies as replied
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine, Question

ROWS = 200


def swaps(
    engine: Engine, artifact: Artifact, rows: Sequence[Row], pairs: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """Of up to 200 rows that hold a term and fit when it is swapped: the share whose answer flips, and their count.

    `bias.shift`, of labels only, is the mean absolute change of the probability of the label predicted before. Without
    such rows there is a count of 0 and nothing else. Raises DataError where pairs contradict each other.
    """
    others = _others(pairs)
    texts = [
        (row.text, swapped(row.text, others))
        for row in sampled([row for row in rows if swapped(row.text, others) != row.text], ROWS)
    ]
    texts = [pair for pair in texts if fits(engine, artifact, pair[1])]
    if not texts:
        return {"bias.rows": 0}
    before, after = ([pair[side] for pair in texts] for side in (0, 1))
    if artifact.manifest.generate is not None:
        flips = [
            one != other
            for one, other in zip(replied(engine, artifact, before), replied(engine, artifact, after), strict=True)
        ]
        return {"bias.rows": len(texts), "bias.flips": sum(flips) / len(texts)}
    return {"bias.rows": len(texts)} | _of_labels(engine, artifact, before, after)


def swapped(text: str, others: Mapping[str, str]) -> str:
    """The text with every term replaced by its other, all at once: whole words in any case, which the other
    takes over.
    """
    if not others:
        return text
    terms = "|".join(re.escape(term) for term in sorted(others, key=len, reverse=True))  # `old man` before `man`
    return re.sub(
        rf"(?<!\w)(?:{terms})(?!\w)",
        lambda found: _cased(others.get(found[0].casefold(), found[0]), found[0]),
        text,
        flags=re.IGNORECASE,
    )


def _others(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Each term, case folded, with what it is swapped for."""
    others: dict[str, str] = {}
    for one, other in pairs:
        for term, swap in ((one.strip(), other.strip()), (other.strip(), one.strip())):
            if not term or term.casefold() == swap.casefold():
                raise DataError(f"bias swaps: {one!r} and {other!r} are no pair of terms; give two different ones")
            if others.setdefault(term.casefold(), swap) != swap:
                raise DataError(
                    f"bias swaps: {term!r} stands in two pairs, and could be swapped for either; name it once"
                )
    return others


def _cased(term: str, found: str) -> str:
    """`term` in the case of what it replaces: HE -> SHE, He -> She; elsewhere as the pair writes it."""
    if found.isupper() and len(found) > 1:
        return term.upper()
    return term[:1].upper() + term[1:] if found[:1].isupper() else term


def _of_labels(engine: Engine, artifact: Artifact, before: Sequence[str], after: Sequence[str]) -> dict[str, float]:
    ours, theirs = (
        engine.score_labels([Question(artifact.digest, text) for text in texts]) for texts in (before, after)
    )
    flips, shifts = 0, 0.0
    for one, other in zip(ours, theirs, strict=True):
        label = int(one.argmax())
        flips += label != int(other.argmax())
        shifts += abs(float(one.softmax(0)[label] - other.softmax(0)[label]))
    return {"bias.flips": flips / len(ours), "bias.shift": shifts / len(ours)}
