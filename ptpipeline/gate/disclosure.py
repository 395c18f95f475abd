"""What people may see of a judged candidate: the one place that decides it, for every view.

With `gate.figures: quiet` a refused candidate shows no figure of the rows that judge: only which checks passed or
failed, and dev figures. Whoever composes the next candidate from what the refused ones show would otherwise find one
that passes by chance (Blum and Hardt 2015, the Ladder: reveal only what improves).

A view takes what `disclose` returns, never the ledger's own report and verdict. Store and ledger hold all of it,
because the gate decides by it, and a lost ledger is rebuilt from it: who can read them can read the figures.
"""

from typing import NamedTuple

from ptpipeline.gate.decide import APPROVAL, needs_a_person
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Check, Verdict

NOT_SHOWN = "not shown (gate.figures: quiet)"
# What compares answers with the true labels, the strictest first. After the first that failed the others are left out:
# each pass or fail at a threshold near the champion's figure is a bit of the candidate's own, and a hundred such bits
# compose a prompt as well as a hundred figures do.
QUALITY = ("champion", "anchor", "gain", "minimum", "slices", "privacy", "worst_label")

WITHOUT_TEST_ROWS = ("learning_curve", "token_norms")  # the plots of the training


class Disclosed(NamedTuple):
    """The report and the verdict as people may see them; None if there is none, or if it is withheld."""

    report: Report | None
    verdict: Verdict | None


def disclose(report: Report | None, verdict: Verdict | None) -> Disclosed:
    """Return what people may see of a candidate's report and verdict."""
    if verdict is None or not is_withheld(verdict):
        return Disclosed(report, verdict)
    return Disclosed(None, _redact(verdict))


def disclose_verdict(verdict: Verdict) -> Verdict:
    """Return the verdict as people may see it."""
    return _redact(verdict) if is_withheld(verdict) else verdict


def is_withheld(verdict: Verdict | None) -> bool:
    """Tell whether the candidate was refused quietly, and nobody spent a look to reveal its figures.

    One that passed without a comparison with the champion, because nothing compares, has shown no improvement either.
    """
    if verdict is None or verdict.figures == "open" or verdict.reveal is not None:
        return False
    return not verdict.passed or needs_a_person(verdict)


def describe_failures(verdict: Verdict) -> str:
    """Return why the verdict failed, as people may see it, in one sentence."""
    return "; ".join(
        f"{check.name}: {check.observed}, required {check.required}" for check in disclose_verdict(verdict).failures()
    )


def _redact(verdict: Verdict) -> Verdict:
    """Return the verdict with passes and failures alone; it is never stored, and its digest means nothing."""
    failed = {check.name for check in verdict.checks if not check.passed}
    first = next((place for place, name in enumerate(QUALITY) if name in failed), len(QUALITY))
    hidden = QUALITY[first + 1 :]
    return verdict.model_copy(
        update={
            "comparison": None,
            "baselines": {},
            "anchor": None,
            "slices": [],
            "measures": {},
            "checks": [_redact_check(check) for check in verdict.checks if check.name not in hidden],
        }
    )


def _redact_check(check: Check) -> Check:
    if check.required == APPROVAL:  # it says why nothing compares
        return check
    # how many rows would show a gain depends on how many of them the candidate answers differently
    required = "enough rows" if check.name == "test_rows" else check.required
    return check.model_copy(update={"observed": NOT_SHOWN, "required": required})
