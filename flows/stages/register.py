"""The stage that makes a candidate a version; and what is kept of a version when it is judged again, or revealed."""

from typing import TYPE_CHECKING

from flows.stages.context import Context, checkout_commit
from flows.stages.judge import take_reveal
from ptpipeline.gate.disclosure import disclose, disclose_verdict, is_withheld
from ptpipeline.prompts.artifact import Artifact, read_artifact
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Reveal, Verdict
from ptpipeline.records.versions import PromptVersion
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.versions import publish
from registry.versions.content import is_sound

if TYPE_CHECKING:
    from ptpipeline.evaluation.mistakes import Mistakes
    from ptpipeline.prompts.interpretation import Neighbours


def register(context: Context, task: Task, tuned: TunedPrompt, report: Report, verdict: Verdict) -> PromptVersion:
    """Register the candidate as a numbered version, with verdict, figures and plots, whether it passed or not."""
    if not task.texts_in_reports:
        publish.withhold_texts(context.registry, task.name)
    return publish.register(context.registry, build_provenance(context, task, tuned, report, verdict))


def reveal(context: Context, task: Task, version: PromptVersion, by: str) -> Reveal | None:
    """Show the figures of a refused candidate from now on, for which the test rows serve a look.

    Returns the look and who asked for it, which every later view shows; None if nothing was withheld. Raises NotFound
    if the rows that judged are not stored any more.
    """
    registry = context.registry
    verdict, publication = (
        registry.ledger.latest_verdict(task.name, version.digest),
        registry.ledger.publication(task.name, version.digest),
    )
    report = registry.ledger.report(verdict.evaluation_key) if verdict else None
    if verdict is None or not is_withheld(verdict) or report is None or publication is None:
        return verdict.reveal if verdict else None
    asked = Reveal(by=by, look=take_reveal(context, task, report, verdict))
    revealed = verdict.model_copy(update={"reveal": asked})
    keep_verdict(context, task, version, build_provenance(context, task, publication.tuned, report, revealed))
    return asked


def keep_verdict(context: Context, task: Task, version: PromptVersion, provenance: Provenance) -> None:
    """Keep a new verdict on a version, and show it on the version's page."""
    registry = context.registry
    publish.keep_verdict(registry, provenance)
    publish.show_version(registry, publish.load_card(registry, task.name, version.digest), version)


def build_provenance(context: Context, task: Task, tuned: TunedPrompt, report: Report, verdict: Verdict) -> Provenance:
    """Return all that is registered of a candidate; plots are drawn unless they are stored and show this verdict."""
    from ptpipeline.evaluation.plots import draw_plots

    registry, shown = context.registry, disclose(report, verdict)
    known = registry.ledger.publication(task.name, tuned.digest)
    stored = (
        known is not None and bool(known.plots) and all(is_sound(registry.store, key) for key in known.plots.values())
    )
    drawn = stored and registry.ledger.latest_verdict(task.name, tuned.digest) == verdict
    return Provenance(
        tuned,
        report,
        verdict,
        {} if drawn else draw_plots(task, tuned, shown.report, disclose_verdict(verdict)),
        commit=checkout_commit(),
        neighbours=_find_new_neighbours(context, task.name, tuned.digest),
        mistakes=_find_mistakes(context, task, shown.report) if shown.report else None,
    )


def _find_mistakes(context: Context, task: Task, report: Report) -> "Mistakes | None":
    """Return the rows that the prompt gets wrong; None unless the task allows their texts in reports."""
    from ptpipeline.data.snapshot import load_split
    from ptpipeline.evaluation.mistakes import find_mistakes
    from ptpipeline.evaluation.results import Results

    if not task.texts_in_reports:
        return None
    store, snapshot = context.registry.store, context.snapshot(task.name, report.snapshot)
    return find_mistakes(task, Results.of(store, report), load_split(store, snapshot, report.split))


def _find_new_neighbours(context: Context, task: str, digest: str) -> "Neighbours | None":
    """Return the words near the virtual tokens; None if they are stored, or are those of an ensemble's members."""
    registry = context.registry
    known, artifact = registry.ledger.publication(task, digest), read_artifact(registry.store, task, digest)
    if (known and known.neighbours and is_sound(registry.store, known.neighbours)) or artifact.manifest.members:
        return None
    return find_neighbours(context, artifact)


def find_neighbours(context: Context, artifact: Artifact) -> "Neighbours":
    """Return the vocabulary tokens nearest to a prompt's virtual tokens."""
    from ptpipeline.prompts.neighbours import find_neighbours
    from ptpipeline.prompts.tensors import unpack

    base = context.engine(artifact.manifest.base_model.name).base
    return find_neighbours(base, unpack(artifact, *base.known))
