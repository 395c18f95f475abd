"""The stages that measure and judge: a report over the test rows, and a verdict against what production points to."""

from flows.stages.evidence import Gathering
from ptpipeline.gate.decide import decide, gate_key, metric_of, needs_a_person
from ptpipeline.prompts.artifact import read_artifact, read_ensemble
from ptpipeline.records import PRODUCTION, Report, Snapshot, Split, TunedPrompt, Verdict
from ptpipeline.task.task import Task
from registry.ledger.looks import count, taken


class Judging(Gathering):
    """Each question is asked once: reports and verdicts are kept under what they depend on."""

    def evaluate(self, task: Task, tuned: TunedPrompt, snapshot: str) -> Report:
        """The candidate measured and probed on the test rows of today's snapshot (its digest), from its stored bytes.

        They may be others than those of the snapshot that it was trained on: test rows change nothing in training.
        Where they have served their looks, the reserve takes their place.
        """
        found = self.snapshot(task.name, snapshot)
        report = self.measured(task, tuned.digest, found, self._split(task, tuned.digest, found))
        return self._probed(task, report, found)

    def gate(self, task: Task, tuned: TunedPrompt, report: Report) -> Verdict:
        """The verdict over the candidate against what production points to now; an equal question is not asked
        twice.
        """
        head = self.registry.ledger.head(task.name, PRODUCTION)
        champion = head.digest if head else None
        verdict = self.registry.ledger.verdict_for(gate_key(task, report, champion))
        if verdict is None or needs_a_person(verdict):  # what could not be compared may be mended by now
            verdict = decide(task, self.evidence(task, tuned, report, champion))
        for check in verdict.checks:
            result = "pass" if check.passed else "FAIL" if check.blocks else "warning:"
            self.report(f"{task.name}: {result} {check.name}: {check.observed}; required {check.required}")
        return verdict

    def measured(self, task: Task, digest: str, snapshot: Snapshot, split: Split = "test") -> Report:
        """The report of a stored prompt on the rows of a split, measured once per digest, rows and compute type.

        Raises NotFound or ArtifactError for bytes that are missing or altered, ContextError for a row that does not
        fit.
        """
        from ptpipeline.evaluation.baselines import Setup
        from ptpipeline.evaluation.evaluate import evaluate
        from ptpipeline.evaluation.key import evaluation_key, rows_identity
        from ptpipeline.models.load import choose_dtype

        ledger, store = self.registry.ledger, self.registry.store
        known = ledger.report(
            evaluation_key(
                digest, rows_identity(snapshot.split(split)), choose_dtype(self.settings.dtype), task.hard_prompt
            )
        )
        if known is not None and all(self._stands(key) for key in (known.evaluation_key, *known.baselines.values())):
            self.report(f"{task.name}: {digest[:12]} was measured on these {known.rows} {split} rows before")
            return known
        artifact = read_artifact(store, task.name, digest)
        setup = Setup(split, task.data.slices, task.hard_prompt, ledger.report, ledger.save_report)
        report = evaluate(self.engine(artifact.manifest.base_model.name), artifact, snapshot, store, setup)
        ledger.save_report(report)
        metric = task.gate.metric
        self.report(
            f"{task.name}: {digest[:12]} {split} {metric} {metric_of(report.prompt, metric):.4f}, zero-shot "
            f"{metric_of(report.zero_shot, metric):.4f}"
        )
        return report

    def _stands(self, key: str) -> bool:
        """Whether that report and its rows' results are still there: rows are collected, and a rebuilt ledger lacks
        baselines.
        """
        report = self.registry.ledger.report(key)
        return report is not None and self.registry.store.exists(report.rows_key)

    def _split(self, task: Task, digest: str, snapshot: Snapshot) -> Split:
        """Which rows judge: the test split, or the reserve once the test rows are spent and do not answer this question
        already.
        """
        ledger, head = self.registry.ledger, self.registry.ledger.head(task.name, PRODUCTION)
        if snapshot.reserve is None or (head and head.digest == digest):
            return "test"
        looks = count(ledger, task.name, self._ids(snapshot, "test"))
        answered = taken(
            ledger, task.name, self.question(task, digest, head.digest if head else None, snapshot.test.digest)
        )
        if looks < task.gate.champion.looks or answered:
            return "test"
        self.report(
            f"{task.name}: the test rows have served {looks} looks; the reserve of {snapshot.reserve.rows} rows judges"
        )
        return "reserve"

    def _probed(self, task: Task, report: Report, snapshot: Snapshot) -> Report:
        """The report with what the policy's probes find; a prompt is probed once."""
        from ptpipeline.data.snapshot import load_split
        from ptpipeline.evaluation.probes.every import Subject, asked, probed
        from registry.lineage.descent import training_rows

        settings, store = asked(task.gate.checks), self.registry.store
        if report.probed == settings:
            return report
        artifact = read_artifact(store, task.name, report.digest)
        rows = [training_rows(self.registry, task.name, report.digest), load_split(store, snapshot, report.split)]
        found = probed(
            self.engine(artifact.manifest.base_model.name),
            Subject(artifact, read_ensemble(store, artifact), *rows),
            task.gate.checks,
        )
        report = report.model_copy(update={"measures": found, "probed": settings})
        self.registry.ledger.save_report(report)
        return report
