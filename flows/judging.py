"""The stages that measure and judge: a report over the test rows, and a verdict against what production points to."""

from flows.context import Context
from ptpipeline.errors import ArtifactError, BaseModelError, ContextError, DataError, NotFound
from ptpipeline.gate import decide, gate_key, metric_of
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records import PRODUCTION, PairedDifference, Report, Snapshot, TunedPrompt, Verdict
from ptpipeline.task import Task


class Judging(Context):
    """Each question is asked once: reports and verdicts are kept under what they depend on."""

    def evaluate(self, task: Task, tuned: TunedPrompt, snapshot: str) -> Report:
        """The candidate measured on the test rows of today's snapshot (its digest), from its stored bytes.

        They may be others than those of the snapshot that it was trained on: test rows change nothing in training.
        """
        return self.measured(task, tuned.digest, self.snapshot(task.name, snapshot))

    def gate(self, task: Task, tuned: TunedPrompt, report: Report) -> Verdict:
        """The verdict over the candidate against what production points to now; an equal question is not asked twice."""
        head = self.registry.ledger.head(task.name, PRODUCTION)
        champion = head.digest if head else None
        verdict = self.registry.ledger.verdict_for(gate_key(task, report, champion))
        if verdict is None:
            comparison = self._compared(task, report, champion) if champion and champion != tuned.digest else None
            verdict = decide(task, report, tuned.bytes, champion, comparison)
        for check in verdict.checks:
            self.report(f"{task.name}: {'pass' if check.passed else 'FAIL'} {check.name}: {check.observed}; required {check.required}")
        return verdict

    def measured(self, task: Task, digest: str, snapshot: Snapshot) -> Report:
        """The report of a stored prompt on the snapshot's test rows, measured once per digest, rows and compute type.

        Raises NotFound or ArtifactError for bytes that are missing or altered, ContextError for a row that does not fit.
        """
        from ptpipeline.evaluation.evaluate import evaluate
        from ptpipeline.evaluation.key import evaluation_key
        from ptpipeline.models.load import compute_dtype

        known = self.registry.ledger.report(evaluation_key(digest, snapshot.test.digest, compute_dtype(self.settings.dtype)))
        if known is not None and self.registry.store.exists(known.rows_key):  # else its version was collected since
            self.report(f"{task.name}: {digest[:12]} was measured on these {known.rows} test rows before")
            return known
        artifact = read_artifact(self.registry.store, task.name, digest)
        report = evaluate(self.engine(artifact.manifest.base_model.name), artifact, snapshot, self.registry.store)
        self.registry.ledger.save_report(report)
        metric = task.gate.metric
        self.report(f"{task.name}: {digest[:12]} test {metric} {metric_of(report.prompt, metric):.4f}, zero-shot {metric_of(report.zero_shot, metric):.4f}")
        return report

    def _compared(self, task: Task, report: Report, champion: str) -> PairedDifference | str:
        """Challenger minus champion on the present test rows, less those that the champion was trained on.

        A sentence where the champion cannot be measured: it answers other labels, a row does not fit it, or it or its base is lost.
        """
        try:
            return self._difference(task, report, champion)
        except (ArtifactError, BaseModelError, ContextError, DataError, NotFound) as error:
            return str(error)

    def _difference(self, task: Task, report: Report, champion: str) -> PairedDifference:
        from ptpipeline.data.snapshot import load_split
        from ptpipeline.evaluation.compare import compared, row_ids

        manifest = read_artifact(self.registry.store, task.name, champion).manifest
        if set(manifest.labels) != set(task.labels):
            now = f"has {', '.join(task.labels)}" if task.labels else "asks for free text"
            raise DataError(f"it answers {'the ' if manifest.labels else ''}{manifest.answers}, the task now {now}")
        theirs = self.measured(task, champion, self.snapshot(task.name, report.snapshot))
        seen = {row.id for row in load_split(self.registry.store, self.snapshot(task.name, manifest.snapshot), "train")}
        measured = row_ids(self.registry.store, report)
        rows = [row for row in measured if row not in seen]
        if len(rows) < 2:
            raise NotFound(f"task {task.name}: the champion {champion[:12]} was trained on all of today's test rows; nothing is left to compare on")
        found = compared(self.registry.store, task, (report, theirs), rows)
        return found.model_copy(update={"dropped": len(measured) - len(rows)})
