"""What a verdict is decided on, gathered from the store and the ledger: comparisons on rows that neither side was
trained on.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.stages.context import Context
from ptpipeline.errors import ArtifactError, BaseModelError, ContextError, DataError, NotFound
from ptpipeline.gate.decide import Evidence
from ptpipeline.gate.looks import question
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records import PRODUCTION, Look, PairedDifference, PromptManifest, Report, Snapshot, Split, TunedPrompt
from ptpipeline.task.task import Task
from registry.ledger.looks import take
from registry.lineage.descent import learnt_rows, training_rows
from registry.versions.promotion import path

if TYPE_CHECKING:
    from ptpipeline.evaluation.compare import Pair, Results

INCOMPARABLE = (ArtifactError, BaseModelError, ContextError, DataError, NotFound)


class Gathering(Context):
    """Comparisons and measures of one candidate; a look is noted before anything is compared."""

    def measured(self, task: Task, digest: str, snapshot: Snapshot, split: Split = "test") -> Report:
        """The report of a stored prompt on a split of the snapshot."""
        raise NotImplementedError

    def evidence(self, task: Task, tuned: TunedPrompt, report: Report, champion: str | None) -> Evidence:
        """All that the verdict over the candidate is decided on, `champion` being the digest of what production points
        to.
        """
        from ptpipeline.evaluation.compare import Results, sliced

        ours, rival = Results.of(self.registry.store, report), champion if champion != tuned.digest else None
        mine = self._unseen(task, ours.ids, tuned.digest)
        theirs, rows = self._against(task, report, mine, rival) if rival else (None, mine)
        look = (
            take(
                self.registry.ledger,
                task.name,
                self.question(task, tuned.digest, champion, report.test_digest),
                ours.ids,
                task.gate.champion.budget,
            )
            if champion != tuned.digest
            else None
        )
        margin = self._margin(task, len(rows))
        comparison = self._compared(task, (ours, theirs), rows, margin) if rival else None
        against = isinstance(comparison, PairedDifference)
        parts = (
            sliced(task, _pair(ours, theirs, rows), task.gate.checks.slices.min_rows)
            if against and task.gate.checks.slices.policy != "off"
            else []
        )
        return Evidence(
            report=report,
            stored_bytes=tuned.bytes,
            champion=champion,
            look=look,
            comparison=comparison,
            superior=isinstance(comparison, PairedDifference)
            and self._superior(task, comparison, _pair(ours, theirs, rows), look),
            anchor=self._anchored(task, report, (ours, rows), {tuned.digest, rival}) if against and margin else None,
            baselines=self._baselines(task, report, (ours, mine)) if len(mine) > 1 else {},
            slices=parts,
            measures=report.measures
            | _finite(ours)
            | self._leakage(task, tuned, report)
            | (self._drift(task, tuned, rival) if rival and against else {}),
            rows_needed=_needed(task, look, comparison),
        )

    def question(self, task: Task, digest: str, champion: str | None, test_digest: str) -> str:
        """What a look answers: about this candidate against this champion on these rows, under today's policy."""
        return question((digest, champion), test_digest, task.policy_digest())

    def _results(self, task: Task, report: Report, digest: str) -> "Results | str":
        """What another version answers on the rows of the report; a sentence where it cannot be measured there."""
        from ptpipeline.evaluation.compare import Results

        barred = self._incomparable(task, digest)
        if barred:
            return barred
        try:
            return Results.of(
                self.registry.store,
                self.measured(task, digest, self.snapshot(task.name, report.snapshot), report.split),
            )
        except INCOMPARABLE as error:
            return str(error)

    def _against(
        self, task: Task, report: Report, rows: Sequence[str], digest: str
    ) -> "tuple[Results | str, Sequence[str]]":
        """What another version answers, and on which of these rows the two compare; a sentence, and all of them, where
        they do not.
        """
        theirs = self._results(task, report, digest)
        if isinstance(theirs, str):
            return theirs, rows
        fair = self._fair(task, rows, digest)
        return (fair, rows) if isinstance(fair, str) else (theirs, fair)

    def _incomparable(self, task: Task, digest: str) -> str | None:
        """Why nothing can be compared with that version: it is gone, answers other labels, or nobody knows what it has
        seen.
        """
        try:
            manifest = self._manifest(task, digest)
            training_rows(self.registry, task.name, digest)
        except INCOMPARABLE as error:
            return str(error)
        if set(manifest.labels) == set(task.labels):
            return None
        now = f"has {', '.join(task.labels)}" if task.labels else "asks for free text"
        return f"it answers {'the ' if manifest.labels else ''}{manifest.answers}, the task now {now}"

    def _fair(self, task: Task, rows: Sequence[str], digest: str) -> list[str] | str:
        """Those rows that the other version has not seen either; a sentence where it has seen most of them, as of a
        reserve that was cut out later.
        """
        left = self._unseen(task, rows, digest)
        if 2 * len(left) < len(rows):
            return (
                f"it, or what it descends from, was trained on {len(rows) - len(left)} of the {len(rows)} rows "
                "that judge"
            )
        return left

    def _unseen(self, task: Task, rows: Sequence[str], digest: str) -> list[str]:
        """Those rows that neither this version, nor what it descends from, was trained on."""
        seen = {row.id[:16] for row in learnt_rows(self.registry, task.name, digest)}
        return [row for row in rows if row[:16] not in seen]

    def _manifest(self, task: Task, digest: str) -> PromptManifest:
        return read_artifact(self.registry.store, task.name, digest).manifest

    # ------------------------------------------------------------ comparisons

    def _margin(self, task: Task, rows: int) -> float:
        from ptpipeline.evaluation.power import default_margin

        policy = task.gate.champion
        if policy.rule == "superiority":
            return 0.0
        return policy.margin if policy.margin is not None else default_margin(rows, policy.budget)

    def _compared(
        self, task: Task, sides: "tuple[Results, Results | str | None]", rows: Sequence[str], margin: float
    ) -> PairedDifference | str:
        from ptpipeline.evaluation.compare import compared
        from ptpipeline.evaluation.paired import Asked

        ours, theirs = sides
        if isinstance(theirs, str):
            return theirs
        if len(rows) < 2:
            return f"{len(rows)} of today's test rows were in nobody's training rows; a comparison needs two"
        found = compared(
            task, _pair(ours, theirs, rows), Asked(task.gate.metric, task.gate.champion.confidence, margin)
        )
        return found.model_copy(update={"dropped": len(ours.ids) - len(rows)})

    def _superior(self, task: Task, comparison: PairedDifference, pair: "Pair", look: Look | None) -> bool:
        """Whether the challenger is better, and not only no worse: without a margin the comparison says it."""
        from ptpipeline.evaluation.compare import compared
        from ptpipeline.evaluation.paired import Asked

        found = (compared(task, pair, Asked(task.gate.metric)) if comparison.margin else comparison).p_value
        return found is not None and look is not None and found <= look.alpha

    def _baselines(
        self, task: Task, report: Report, ours: "tuple[Results, Sequence[str]]"
    ) -> dict[str, PairedDifference]:
        from ptpipeline.evaluation.compare import Results

        found = {}
        for kind, key in report.baselines.items():
            baseline = self.registry.ledger.report(key)
            if baseline is None:
                raise NotFound(
                    f"{task.name}: the ledger lost the report of baseline {kind} ({key[:12]}); `ptp run "
                    f"{task.name}` measures it again"
                )
            against = self._compared(task, (ours[0], Results.of(self.registry.store, baseline)), ours[1], 0.0)
            if isinstance(against, PairedDifference):
                found[kind] = against
        return found

    def _anchored(
        self, task: Task, report: Report, ours: "tuple[Results, Sequence[str]]", others: set[str | None]
    ) -> PairedDifference | str | None:
        """Challenger minus the last version that won by superiority; None where that is the champion, or the
        challenger.
        """
        anchor = self._anchor(task)
        if anchor is None or anchor in others:
            return None
        theirs, rows = self._against(task, report, ours[1], anchor)
        return self._compared(task, (ours[0], theirs), rows, self._margin(task, len(ours[1])))

    def _anchor(self, task: Task) -> str | None:
        """The digest of the last version that was promoted for more than being no worse: as better, as the first, or by
        a person's word.

        What a person rolled back from is none.
        """
        for row in reversed(path(self.registry.ledger.history(task.name, PRODUCTION))):
            verdict = self.registry.ledger.verdict(row.verdict) if row.verdict else None
            if row.override or verdict is None or verdict.won != "not inferior":
                return row.digest
        return None

    # ------------------------------------------------------------ measures of the data

    def _leakage(self, task: Task, tuned: TunedPrompt, report: Report) -> dict[str, float]:
        """How many of the test rows stand, or nearly stand, among its training rows; and how many its ancestors have
        seen besides.

        Those are left out of comparisons, and do not block: a row may change its split between two nights.
        """
        from ptpipeline.data.snapshot import load_split
        from ptpipeline.evaluation.leakage import leakage

        if task.gate.checks.leakage.policy == "off":
            return {}
        if tuned.steps == 0:  # imported: what it was trained on is not known
            return {"leakage.unknown": 1}
        test, own = (
            load_split(self.registry.store, self.snapshot(task.name, report.snapshot), report.split),
            training_rows(self.registry, task.name, tuned.digest),
        )
        inherited = {row.id[:16] for row in learnt_rows(self.registry, task.name, tuned.digest)} - {
            row.id[:16] for row in own
        }
        return leakage(test, own) | {"leakage.inherited": sum(row.id[:16] in inherited for row in test) / len(test)}

    def _drift(self, task: Task, tuned: TunedPrompt, champion: str) -> dict[str, float]:
        """How far the candidate's training rows are from the champion's."""
        from ptpipeline.evaluation.drift import drift

        if task.gate.checks.drift.policy == "off":
            return {}
        champions, ours = (training_rows(self.registry, task.name, digest) for digest in (champion, tuned.digest))
        return (
            drift(champions, ours, labelled=task.generate is None) if champions and ours else {}
        )  # of an imported one they are not known

    def _ids(self, snapshot: Snapshot, split: Split) -> list[str]:
        from ptpipeline.data.snapshot import load_split

        return [row.id for row in load_split(self.registry.store, snapshot, split)]


def _pair(ours: "Results", theirs: "Results | str | None", rows: Sequence[str]) -> "Pair":
    from ptpipeline.evaluation.compare import Pair, Results

    if not isinstance(theirs, Results):
        raise TypeError("nothing to compare with")
    return Pair(ours, theirs, rows)


def _finite(ours: "Results") -> dict[str, float]:
    """How many rows have a likelihood that is no number."""
    columns = [values for name, values in ours.columns.items() if name.startswith("log_likelihood.")]
    return {"finite.bad": sum(not all(math.isfinite(column[row]) for column in columns) for row in ours.ids)}


def _needed(task: Task, look: Look | None, comparison: PairedDifference | str | None) -> int | None:
    from ptpipeline.evaluation.power import expected_discordance, rows_needed

    if task.gate.checks.test_rows.policy == "off":
        return None
    found = comparison if isinstance(comparison, PairedDifference) else None
    effect = found.margin if found and found.margin else task.gate.checks.test_rows.effect
    return rows_needed(
        effect,
        look.alpha if look else task.gate.champion.budget,
        expected_discordance((found.discordant or 0.0) if found else None),
    )
