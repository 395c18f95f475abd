"""What tonight's candidate of a task has to do, before there is one: the rows that will judge, the look, the champion,
the checks.
"""

from collections.abc import Sequence

from flows.stages.evidence import INCOMPARABLE, Gathering
from ptpipeline.errors import DataError
from ptpipeline.gate.explain import Requirement, Rival, requirements
from ptpipeline.records import PRODUCTION, Look, Promotion, Record, Report, Snapshot, Split, title_of
from ptpipeline.task.task import Task
from registry.ledger.looks import coming, count

RECENT = 20  # versions among which the last comparison with the champion is sought


class Champion(Record):
    """What production points to: the gate's metric as it was measured last, on how many rows, and how many looks these
    served.

    `incomparable` says why no candidate can be compared with it.
    """

    version: int
    figure: float | None = None
    split: Split = "test"
    rows: int | None = None
    looks: int | None = None
    incomparable: str | None = None


class Judges(Record):
    """The rows that will judge: of which snapshot and split, how many, and how many of them compare with the champion.

    `served` is how many looks the test rows have had; at `limit` of them the reserve takes over, if there is one.
    """

    snapshot: str
    split: Split
    rows: int
    comparable: int
    served: int
    limit: int
    reserve: int | None


class Power(Record):
    """What the rows can show four times in five at the coming look: how many show `effect`, and what those that compare
    show.

    `discordant` is the share of rows on which two prompts differ, `measured` on the last candidate that was compared
    with the champion, else as is common.
    """

    effect: float
    rows_needed: int
    smallest_gain: float | None
    discordant: float
    measured: bool


class Explanation(Record):
    """All that is known before the night; what is None, or missing, is told by `unknown`."""

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


class Tonight(Gathering):
    """Reads ledger and row ids; trains nothing, measures nothing, takes no look."""

    def explain(self, task: Task) -> Explanation:
        """What a candidate with a new question would face now."""
        head, unknown = self.registry.ledger.head(task.name, PRODUCTION), list[str]()
        snapshot = self._snapshot(task, unknown)
        ids, split = self._judging(task, snapshot) if snapshot else ([], "test")
        champion = self._champion(task, head, ids) if head else None
        rival = head.digest if head and champion and not champion.incomparable else None
        judges = self._judges(task, snapshot, (ids, split), rival) if snapshot else None
        look = coming(self.registry.ledger, task.name, ids, task.gate.champion.budget) if snapshot else None
        margin = (
            self._margin(task, judges.comparable)
            if judges and task.gate.champion.rule == "non_inferiority"
            else task.gate.champion.margin
        )
        anchor = self._anchor(task) if rival and task.gate.champion.rule == "non_inferiority" else None
        before = self.registry.ledger.version_of(task.name, anchor).number if anchor and anchor != rival else None
        named = Rival(f"version {head.version}" if head else None, f"version {before}" if before else None, margin)
        return Explanation(
            task=task.name,
            metric=task.gate.metric,
            rule=task.gate.champion.rule,
            promote=task.promote,
            champion=champion,
            anchor=before,
            margin=margin,
            judges=judges,
            look=look,
            power=self._power(task, judges, look, (rival, margin)) if judges and look else None,
            requirements=requirements(task, named),
            unknown=unknown,
        )

    def _champion(self, task: Task, head: Promotion, ids: Sequence[str]) -> Champion:
        report, barred = self.registry.ledger.report_of(task.name, head.digest), self._incomparable(task, head.digest)
        fair = [] if barred else self._fair(task, ids, head.digest)
        found = Champion(version=head.version, incomparable=fair if isinstance(fair, str) else barred)
        if report is None:
            return found
        figure = report.prompt.figures().get(task.gate.metric)
        return found.model_copy(
            update={"figure": figure, "split": report.split, "rows": report.rows, "looks": self._looks(task, report)}
        )

    def _looks(self, task: Task, report: Report) -> int | None:
        try:
            return count(
                self.registry.ledger, task.name, self._ids(self.snapshot(task.name, report.snapshot), report.split)
            )
        except INCOMPARABLE:  # its rows were collected since: how often they were looked at is asked by their ids
            return None

    def _snapshot(self, task: Task, unknown: list[str]) -> Snapshot | None:
        """That of today's source, else the newest that judged a version; what stands in the way goes to `unknown`."""
        from ptpipeline.data.sources import source_key

        ledger = self.registry.ledger
        try:
            found = ledger.snapshot_for(task.name, source_key(task, self.settings.home))
        except DataError as error:
            found, said = None, str(error)
        else:
            said = f"today's rows are not ingested yet; `ptp ingest {task.name}` does"
        if found is not None and self.holds(found):
            return found
        newest = next(iter(ledger.versions(task.name, limit=1)), None)
        report = ledger.report_of(task.name, newest.digest) if newest else None
        before = ledger.snapshot(task.name, report.snapshot) if report else None
        before = before if before and self.holds(before) else None
        unknown.append(
            f"{said}; "
            + (
                f"what follows is by the last snapshot, {before.digest[:12]}"
                if before
                else "so which rows judge, and at which look, is not known"
            )
        )
        return before

    def _judging(self, task: Task, snapshot: Snapshot) -> tuple[list[str], Split]:
        """The ids of the rows that will judge, and the split that they are."""
        ids = self._ids(snapshot, "test")
        if snapshot.reserve is None or count(self.registry.ledger, task.name, ids) < task.gate.champion.looks:
            return ids, "test"
        return self._ids(snapshot, "reserve"), "reserve"

    def _judges(
        self, task: Task, snapshot: Snapshot, judging: tuple[Sequence[str], Split], rival: str | None
    ) -> Judges:
        ids, split = judging
        return Judges(
            snapshot=snapshot.digest,
            split=split,
            rows=len(ids),
            comparable=len(self._unseen(task, ids, rival)) if rival else len(ids),
            served=count(self.registry.ledger, task.name, self._ids(snapshot, "test")),
            limit=task.gate.champion.looks,
            reserve=snapshot.reserve.rows if snapshot.reserve else None,
        )

    def _power(self, task: Task, judges: Judges, look: Look, against: tuple[str | None, float | None]) -> Power:
        from ptpipeline.evaluation.power import expected_discordance, rows_needed, smallest_gain

        rival, margin = against
        measured = self._discordant(task, rival) if rival else None
        discordant = expected_discordance(measured)
        effect = margin if rival and margin else task.gate.checks.test_rows.effect
        return Power(
            effect=effect,
            rows_needed=rows_needed(effect, look.alpha, discordant),
            smallest_gain=smallest_gain(judges.comparable, look.alpha, discordant),
            discordant=discordant,
            measured=measured is not None,
        )

    def _discordant(self, task: Task, rival: str) -> float | None:
        """On what share of rows the last candidate differed that was compared with this champion."""
        ledger = self.registry.ledger
        for version in ledger.versions(task.name, limit=RECENT):
            verdict = ledger.latest_verdict(task.name, version.digest)
            if (
                verdict
                and verdict.champion == rival
                and verdict.comparison
                and verdict.comparison.discordant is not None
            ):
                return verdict.comparison.discordant
        return None


# ---------------------------------------------------------------- in words


def sentences(found: Explanation) -> list[str]:
    """The explanation for people, without the table of the checks."""
    judged = (
        [_rows(found.judges, found.metric), *_level(found.look), *_power(found), _reserve(found.judges)]
        if found.judges
        else []
    )
    return [
        *(f"not known: {what}" for what in found.unknown),
        _standing(found),
        *judged,
        *_margin(found),
        _passing(found),
    ]


def _rows(judges: Judges, metric: str) -> str:
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


def _standing(found: Explanation) -> str:
    champion = found.champion
    if champion is None:
        return "champion: none; the first candidate that passes the other checks takes the place"
    figure = (
        "not measured"
        if champion.figure is None
        else f"{title_of(found.metric)} {champion.figure:.4f} on {champion.rows} {champion.split} rows"
    )
    looks = (
        f", which were looked at {_times(champion.looks)}: where it was chosen by them, the figure flatters it"
        if champion.looks
        else ""
    )
    barred = (
        f"; nothing can be compared with it ({champion.incomparable}): a candidate that passes waits for a person"
        if champion.incomparable
        else ""
    )
    return f"champion: version {champion.version}, {figure}{looks}{barred}"


def _level(look: Look | None) -> Sequence[str]:
    if look is None:
        return []
    before = look.spent - look.alpha
    return [
        f"look: number {look.number} at test set {look.test_set}; each test passes at p of at most {look.alpha:.2g}. "
        f"Of the chance of error of {look.budget:g} for all looks at these rows together {before:.4f} is "
        f"spent, {look.spent:.4f} with this one"
    ]


def _power(found: Explanation) -> Sequence[str]:
    power, judges = found.power, found.judges
    if power is None or judges is None:
        return []
    what = "equal quality within" if found.champion and power.effect == found.margin else "a gain of"
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
        f"(where prompts differ on {power.discordant:.1%} of the rows, {differ})"
    ]


def _reserve(judges: Judges) -> str:
    if judges.split == "reserve":
        return (
            f"reserve: its {judges.rows} rows judge, because the test rows have served {judges.served} looks of "
            f"{judges.limit}"
        )
    if judges.reserve is None:
        return (
            f"reserve: none (data.split.reserve); after {judges.limit} looks, of which {judges.served} were taken, "
            "the same rows go on judging, at an ever smaller p"
        )
    return (
        f"reserve: {judges.reserve} rows take over when the test rows have served {judges.limit} looks; so far "
        f"{judges.served}"
    )


def _margin(found: Explanation) -> Sequence[str]:
    if found.rule != "non_inferiority":
        return []
    margin = f"{found.margin:.4f}" if found.margin is not None else "decided by the number of rows"
    anchor = (
        f"version {found.anchor}, the last that won by superiority, is compared too"
        if found.anchor
        else "no other version has to be compared"
    )
    return [f"non-inferiority: the margin is {margin}; {anchor}"]


def _passing(found: Explanation) -> str:
    if found.promote == "auto":
        return (
            f"when it passes: {found.task}@production moves to it at once; a candidate that equals one judged "
            "before takes no new look"
        )
    return (
        f"when it passes: it waits until a person runs `ptp promote {found.task}@N --reason ...`; a candidate that "
        "equals one judged before takes no new look"
    )


def _times(number: int | None) -> str:
    return "once" if number == 1 else f"{number} times"
