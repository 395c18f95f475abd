"""How many answers change when only white space or case of the input changes, in all fields or the named ones."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ptpipeline.data.rows import Row
from ptpipeline.data.sample import sample_rows
from ptpipeline.evaluation.probes.queries import NOTHING, Known, answer_rows, ask, change_fields, fits
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine
from ptpipeline.task.template import Fields

ROWS = 100

Change = Callable[[str], str]


def measure_robustness(
    engine: Engine, artifact: Artifact, rows: Sequence[Row], known: Known = NOTHING, fields: Sequence[str] = ()
) -> dict[str, float]:
    """Return the share of answers that flip for each variant, and the worst share of white space and of case.

    Up to 100 rows are probed; `fields` are those that are changed, all if there is none. A text that a variant does not
    change counts as not flipped. A text that no longer fits is left out of that variant (`left_out` counts these).
    Generated texts flip if they differ in more than case and white space. A share of no rows is left out.
    """
    probed = sample_rows(rows, ROWS)
    texts = [row.fields for row in probed]
    answers = answer_rows(engine, artifact, probed, known)
    measures: dict[str, float] = {"robustness.rows": len(probed)}
    left_out = 0
    for kind, variants in VARIANTS.items():
        shares = {}
        for name, change in variants.items():
            changed = [
                _Changed(change_fields(text, change, fields), text, answer)
                for text, answer in zip(texts, answers, strict=True)
            ]
            flips = _count_flips(engine, artifact, changed)
            left_out += len(probed) - flips.rows
            if flips.rows:
                shares[f"robustness.{name}"] = flips.flipped / flips.rows
        measures |= shares | ({f"robustness.{kind}": max(shares.values())} if shares else {})
    return measures | {"robustness.left_out": left_out}


class _Changed(NamedTuple):
    """A changed text, the text before, and the answer to the text before."""

    text: Fields
    before: Fields
    answer: str


class _Flips(NamedTuple):
    """How many answers flipped, and how many rows count."""

    flipped: int
    rows: int


def _count_flips(engine: Engine, artifact: Artifact, changed: Sequence[_Changed]) -> _Flips:
    same = sum(one.text == one.before for one in changed)
    fitting = [one for one in changed if one.text != one.before and fits(engine, artifact, one.text)]
    answers = ask(engine, artifact, [one.text for one in fitting])
    flipped = sum(answer != one.answer for answer, one in zip(answers, fitting, strict=True))
    return _Flips(flipped, same + len(fitting))


def _title(text: str) -> str:
    """Every word with a capital and small letters; str.title would write Don'T."""
    return re.sub(r"\S+", lambda word: word[0].capitalize(), text)


VARIANTS: Mapping[str, Mapping[str, Change]] = {
    "white_space": {
        "leading_blanks": lambda text: "  " + text,
        "trailing_blanks": lambda text: text + "  ",
        "doubled_blanks": lambda text: text.replace(" ", "  "),
        "trailing_newline": lambda text: text + "\n",
    },
    "case": {"lower": str.lower, "upper": str.upper, "title": _title},
}
