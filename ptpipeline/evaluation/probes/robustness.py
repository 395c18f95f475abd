"""How many answers flip when only white space or case of the input changes."""

import re
from collections.abc import Callable, Mapping, Sequence

from ptpipeline.data.rows import Row
from ptpipeline.evaluation.probes.asking import fits, replies, sampled
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine

ROWS = 100

Change = Callable[[str], str]


def robustness(engine: Engine, artifact: Artifact, rows: Sequence[Row]) -> dict[str, float]:
    """Per variant the share of answers that flip, and the worst variant's share of white space and of case.

    Of up to 100 rows. A text that a variant leaves as it is keeps its answer and counts as one that did not flip; a
    text that no longer fits is left out of that variant (`left_out` counts these). Generated texts flip where they
    differ in more than case and white space. A share of no rows is left out.
    """
    probed = sampled(rows, ROWS)
    before = replies(engine, artifact, [row.text for row in probed])
    found: dict[str, float] = {"robustness.rows": len(probed)}
    left_out = 0
    for kind, variants in VARIANTS.items():
        shares = {}
        for name, change in variants.items():
            flips, asked = _flips(
                engine,
                artifact,
                [(change(row.text), row.text, answer) for row, answer in zip(probed, before, strict=True)],
            )
            left_out += len(probed) - asked
            if asked:
                shares[f"robustness.{name}"] = flips / asked
        found |= shares | ({f"robustness.{kind}": max(shares.values())} if shares else {})
    return found | {"robustness.left_out": left_out}


def _flips(engine: Engine, artifact: Artifact, changed: Sequence[tuple[str, str, str]]) -> tuple[int, int]:
    """Flipped answers and rows asked, of (text now, text before, answer before)."""
    same = sum(now == text for now, text, _ in changed)
    fitting = [(now, answer) for now, text, answer in changed if now != text and fits(engine, artifact, now)]
    after = replies(engine, artifact, [now for now, _ in fitting])
    return sum(now != answer for now, (_, answer) in zip(after, fitting, strict=True)), same + len(fitting)


def _titled(text: str) -> str:
    """Every word with a capital and small letters; str.title would write Don'T."""
    return re.sub(r"\S+", lambda word: word[0].capitalize(), text)


VARIANTS: Mapping[str, Mapping[str, Change]] = {
    "white_space": {
        "leading_blanks": lambda text: "  " + text,
        "trailing_blanks": lambda text: text + "  ",
        "doubled_blanks": lambda text: text.replace(" ", "  "),
        "trailing_newline": lambda text: text + "\n",
    },
    "case": {"lower": str.lower, "upper": str.upper, "title": _titled},
}
