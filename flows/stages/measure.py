"""A stored prompt measured on a split of a snapshot, and probed; each measurement is made once and kept."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.stages.context import Context
from flows.stages.lengths import check_lengths, read_text
from ptpipeline.gate.decide import metric_of
from ptpipeline.progress import phase
from ptpipeline.prompts.artifact import read_artifact, read_ensemble
from ptpipeline.records.data import Snapshot, Split
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.reports import Report
from ptpipeline.task.task import Task
from registry.lineage.descent import training_rows

if TYPE_CHECKING:
    from ptpipeline.data.rows import Row
    from ptpipeline.evaluation.probes.queries import Known
    from ptpipeline.serving.engine import Engine


def measure(
    context: Context, task: Task, digest: str, snapshot: Snapshot, split: Split = "test", dtype: str | None = None
) -> Report:
    """Return the report of a stored prompt on the rows of a split, measured once per digest, rows and compute type.

    dtype: the compute type of what it is to be compared with. Without it, a report in any type stands, because another
    machine may have made it; what nobody measured is measured in the type of this machine. If its stored results, or
    those of a baseline, are not those that were measured, it is measured again. Raises NotFound or ArtifactError if its
    bytes are missing or altered, ContextError if a row does not fit.
    """
    from ptpipeline.evaluation.baselines import Setup
    from ptpipeline.evaluation.evaluate import evaluate
    from ptpipeline.evaluation.key import list_keys, rows_identity

    ledger, store = context.registry.ledger, context.registry.store
    keys = list_keys(digest, rows_identity(snapshot.split(split)), dtype, task.hard_prompt)
    known = next((report for key in keys if (report := ledger.report(key)) is not None), None)
    if known is not None:
        flaw = _find_flaw(context, known)
        if flaw is None:
            context.report(f"{task.name}: {digest[:12]} was measured on these {known.rows} {split} rows before")
            return known
        context.report(f"{task.name}: {digest[:12]} is measured again on these {known.rows} {split} rows: {flaw}")
        dtype = known.compute_dtype  # verdicts name this report
    artifact = read_artifact(store, task.name, digest)
    generated: dict[str, str] = {}
    messages = task.chat.messages if task.chat else ()
    setup = Setup(
        split, task.data.slices, task.hard_prompt, ledger.report, ledger.save_report, generated.update, messages
    )
    engine = context.engine(artifact.manifest.base_model.name, dtype)
    check_lengths(context, task, snapshot, read_text(engine, task, artifact.manifest), [split])
    with phase(f"{split} rows"):
        report = evaluate(engine, artifact, snapshot, store, setup)
    if known is not None:  # probes depend on the prompt, not on these results
        report = report.model_copy(update={"measures": known.measures, "probed": known.probed})
    ledger.save_report(report)
    context.texts = {report.evaluation_key: generated}
    context.report(f"{task.name}: {digest[:12]} {_describe(task, report)}")
    return report


def _describe(task: Task, report: Report) -> str:
    if task.gate.figures == "quiet":  # whether it may show figures is known when the gate has decided
        return f"was measured on {report.rows} {report.split} rows"
    metric = task.gate.metric
    return (
        f"{report.split} {metric} {metric_of(report.prompt, metric):.4f}, zero-shot "
        f"{metric_of(report.zero_shot, metric):.4f}"
    )


def _find_flaw(context: Context, known: Report) -> str | None:
    """Say why nothing may be decided on a report, or on those of its baselines; None if all results are their own.

    The garbage collection deletes results, and a rebuilt ledger lacks baselines.
    """
    from ptpipeline.evaluation.results import find_flaw

    for kind, key in {"": known.evaluation_key, **known.baselines}.items():
        report = context.registry.ledger.report(key)
        flaw = find_flaw(context.registry.store, report) if report else f"the ledger lost the report of baseline {kind}"
        if flaw:
            return flaw
    return None


def probe(context: Context, task: Task, report: Report, snapshot: Snapshot) -> Report:
    """Return the report with what the probes of the task's policy measure; a prompt is probed once."""
    from ptpipeline.data.snapshot import load_split
    from ptpipeline.evaluation.probes.every import Subject, probes_digest, run_probes

    settings, store = probes_digest(task.gate.checks), context.registry.store
    if report.probed == settings:
        return report
    artifact = read_artifact(store, task.name, report.digest)
    subject = Subject(
        artifact,
        read_ensemble(store, artifact),
        train=training_rows(context.registry, task.name, report.digest),
        test=load_split(store, snapshot, report.split),
        known=read_known(context, report, artifact.manifest),
    )
    engine = context.engine(artifact.manifest.base_model.name, report.compute_dtype)
    measures = run_probes(engine, subject, task.gate.checks) | _count_cut(engine, task, artifact.manifest, subject.test)
    report = report.model_copy(update={"measures": measures, "probed": settings})
    context.registry.ledger.save_report(report)
    return report


def _count_cut(engine: "Engine", task: Task, manifest: PromptManifest, rows: "Sequence[Row]") -> dict[str, float]:
    """Return how many of the rows are cut; nothing if a text that is too long is refused."""
    from ptpipeline.data.tokens import is_cut

    if not is_cut(manifest.too_long):
        return {}
    return {"too_long.rows": len(read_text(engine, task, manifest).find_long(rows))}


def read_known(context: Context, report: Report, manifest: PromptManifest) -> "Known":
    """Return what is known of the report's rows: the stored scores of labels, behind the prompt and on the base without
    it; or the texts that this process has just generated, which are never stored.

    Those without the prompt are left out if labels are calibrated: probes calibrate the base by texts as they stand
    behind the prompt. Raises NotFound or ArtifactError if results are missing or altered.
    """
    from ptpipeline.evaluation.probes.queries import Known
    from ptpipeline.evaluation.results import Results

    names, registry = list(manifest.labels), context.registry
    if not names:
        return Known(texts=context.texts.get(report.evaluation_key, {}))
    prompted = Results.of(registry.store, report).label_scores(names)
    zero_shot = registry.ledger.report(report.baselines.get("zero_shot", ""))
    if zero_shot is None or manifest.scoring.calibrated:
        return Known(prompted)
    return Known(prompted, Results.of(registry.store, zero_shot).label_scores(names))
