"""What is known of a task's next candidate before there is one, as a record and in words."""

from collections.abc import Sequence

from ptpipeline.gate.explain import Requirement
from ptpipeline.records.base import Record
from ptpipeline.records.data import Split
from ptpipeline.records.reports import title_of
from ptpipeline.records.verdicts import Look


class Champion(Record):
    """What production points to: the gate's metric as measured last, on how many rows, and the looks at these.

    `incomparable` says why no candidate can be compared with it.
    """

    version: int
    figure: float | None = None
    split: Split = "test"
    rows: int | None = None
    looks: int | None = None
    incomparable: str | None = None


class Judges(Record):
    """The rows that will judge: their snapshot and split, how many there are, and how many compare with the champion.

    `served` is how many looks the test rows have had; after `limit` of them the reserve takes over, if there is one.
    """

    snapshot: str
    split: Split
    rows: int
    comparable: int
    served: int
    limit: int
    reserve: int | None


class Power(Record):
    """What the rows show four times in five at the next look: the rows that show `effect`, and the smallest gain.

    `discordant` is the share of rows on which two prompts differ: as `measured` on the last candidate that was compared
    with the champion, else a common one.
    """

    effect: float
    rows_needed: int
    smallest_gain: float | None
    discordant: float
    measured: bool


class Explanation(Record):
    """All that is known before the run; `unknown` says why something is None or missing."""

    task: str
    metric: str
    rule: str
    promote: str
    champion: Champion | None
    anchor: int | None
    margin: float | None
    judges: Judges | None
    look: Look | None
    power: Power | None
    requirements: list[Requirement]
    unknown: list[str]


def describe(explanation: Explanation) -> list[str]:
    """Return the explanation for people, without the table of the checks."""
    lines = [f"not known: {what}" for what in explanation.unknown]
    lines.append(_describe_champion(explanation))
    if explanation.judges:
        lines.append(_describe_rows(explanation.judges, explanation.metric))
        lines += _describe_look(explanation.look)
        lines += _describe_power(explanation)
        lines.append(_describe_reserve(explanation.judges))
    return [*lines, *_describe_margin(explanation), _describe_promotion(explanation)]


def _describe_rows(judges: Judges, metric: str) -> str:
    whose = "reserve" if judges.split == "reserve" else "test"
    left = judges.rows - judges.comparable
    compared = (
        f"; {left} of them do not compare, because the champion, or what it descends from, was trained on them"
        if left
        else ""
    )
    return (
        f"rows: {title_of(metric)} is judged on {judges.rows} {whose} rows of snapshot {judges.snapshot[:12]}{compared}"
    )


def _describe_champion(explanation: Explanation) -> str:
    champion = explanation.champion
    if champion is None:
        return "champion: none; the first candidate that passes the other checks becomes it"
    figure = (
        "not measured"
        if champion.figure is None
        else f"{title_of(explanation.metric)} {champion.figure:.4f} on {champion.rows} {champion.split} rows"
    )
    looks = (
        f", which were looked at {_times(champion.looks)}; if it was chosen by them, the figure is too good"
        if champion.looks
        else ""
    )
    obstacle = (
        f"; nothing can be compared with it ({champion.incomparable}): a candidate that passes waits for a person"
        if champion.incomparable
        else ""
    )
    return f"champion: version {champion.version}, {figure}{looks}{obstacle}"


def _describe_look(look: Look | None) -> Sequence[str]:
    if look is None:
        return []
    before = look.spent - look.alpha
    return [
        f"look: number {look.number} at test set {look.test_set}; each test passes if p is at most {look.alpha:.2g}. "
        f"All looks at these rows together may err with a chance of {look.budget:g}: {before:.4f} of it is spent, "
        f"{look.spent:.4f} after this look"
    ]


def _describe_power(explanation: Explanation) -> Sequence[str]:
    power, judges = explanation.power, explanation.judges
    if power is None or judges is None:
        return []
    what = "equal quality within" if explanation.champion and power.effect == explanation.margin else "a gain of"
    differ = (
        "as the last candidate did from the champion"
        if power.measured
        else "which is common; no candidate was compared with this champion yet"
    )
    today = (
        f"show a gain of {power.smallest_gain:.4f}"
        if power.smallest_gain is not None
        else "are too few to show any gain"
    )
    return [
        f"power: {power.rows_needed} rows show {what} {power.effect:g} four times in five at this look, "
        f"today's {judges.comparable} {today} "
        f"(if prompts differ on {power.discordant:.1%} of the rows, {differ})"
    ]


def _describe_reserve(judges: Judges) -> str:
    if judges.split == "reserve":
        return (
            f"reserve: its {judges.rows} rows judge, because the test rows have served {judges.served} looks of "
            f"{judges.limit}"
        )
    if judges.reserve is None:
        return (
            f"reserve: none (data.split.reserve); after {judges.limit} looks, of which {judges.served} were taken, "
            "the same rows go on judging, and every look needs a smaller p"
        )
    return (
        f"reserve: {judges.reserve} rows take over when the test rows have served {judges.limit} looks; so far "
        f"{judges.served}"
    )


def _describe_margin(explanation: Explanation) -> Sequence[str]:
    if explanation.rule != "non_inferiority":
        return []
    margin = f"{explanation.margin:.4f}" if explanation.margin is not None else "decided by the number of rows"
    anchor = (
        f"version {explanation.anchor}, the anchor, is compared too"
        if explanation.anchor
        else "no other version has to be compared"
    )
    return [f"non-inferiority: the margin is {margin}; {anchor}"]


def _describe_promotion(explanation: Explanation) -> str:
    consequence = (
        f"{explanation.task}@production moves to it at once"
        if explanation.promote == "auto"
        else f"it waits for people: `ptp approve {explanation.task}@N`"
    )
    return f"when it passes: {consequence}; a candidate that equals one judged before takes no new look"


def _times(number: int | None) -> str:
    return "once" if number == 1 else f"{number} times"
