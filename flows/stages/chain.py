"""The stages as plain functions over records; the flows make them visible, `ptp run` calls them one after another.

Every stage is idempotent by content: it asks the ledger under its key first, and says so where nothing is to be done.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.stages.context import checkout_commit
from flows.stages.judge import Judging
from flows.stages.outcome import Candidate, Outcome, outcome_of
from flows.stages.train import MACHINE, Training
from ptpipeline.errors import TrainingError
from ptpipeline.gate.decide import needs_a_person
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records import PRODUCTION, Promotion, PromptVersion, Report, TunedPrompt, Verdict, now
from ptpipeline.task.task import Task, find_task, load_tasks, sound_tasks
from registry.ledger.ledger import Release
from registry.repair.reconcile import reconcile
from registry.versions.promotion import Cause, check_cause, check_release, promote, promote_release, rollback
from registry.versions.publish import Request, entry_of, register, remember, withhold_texts, write_page

if TYPE_CHECKING:
    from ptpipeline.evaluation.mistakes import Mistakes
    from ptpipeline.prompts.interpretation import Neighbours


class Stages(Training, Judging):
    """All stages over one set of settings."""

    def tasks(self, names: Sequence[str] | None = None) -> list[Task]:
        """The named tasks, or all; NotFound or TaskFileError before anything runs."""
        if names is None:
            return load_tasks(self.settings.tasks)
        return [find_task(self.settings.tasks, name) for name in dict.fromkeys(names)]

    def declared(self) -> tuple[list[Task], dict[str, str]]:
        """All tasks whose files are sound, and one sentence for each of the others."""
        return sound_tasks(self.settings.tasks)

    def register(self, task: Task, tuned: TunedPrompt, report: Report, verdict: Verdict) -> PromptVersion:
        """The candidate as a numbered version, with verdict, figures and plots, whether it passed or not."""
        if not task.texts_in_reports:
            withhold_texts(self.registry, task.name)
        return register(self.registry, self._request(task, tuned, report, verdict))

    def _request(self, task: Task, tuned: TunedPrompt, report: Report, verdict: Verdict) -> Request:
        from ptpipeline.evaluation.plots import every

        known = self.registry.ledger.publication(task.name, tuned.digest)
        stored = known is not None and bool(known.plots) and all(map(self.registry.store.exists, known.plots.values()))
        drawn = stored and self.registry.ledger.latest_verdict(task.name, tuned.digest) == verdict
        plots = {} if drawn else every(task, tuned, report, verdict)
        return Request(
            tuned,
            report,
            verdict,
            plots,
            commit=checkout_commit(),
            neighbours=self._neighbours(task.name, tuned.digest),
            mistakes=self._mistakes(task, report),
        )

    def _mistakes(self, task: Task, report: Report) -> "Mistakes | None":
        """The rows that it gets wrong, where the task lets their texts into reports."""
        from ptpipeline.data.snapshot import load_split
        from ptpipeline.evaluation.compare import Results
        from ptpipeline.evaluation.mistakes import mistakes

        if not task.texts_in_reports:
            return None
        return mistakes(
            task,
            Results.of(self.registry.store, report),
            load_split(self.registry.store, self.snapshot(task.name, report.snapshot), report.split),
        )

    def _neighbours(self, task: str, digest: str) -> "Neighbours | None":
        """The words near the prompt's virtual tokens; None where they are known, and of an ensemble, whose members have
        their own.
        """
        from ptpipeline.prompts.neighbours import find_neighbours
        from ptpipeline.prompts.tensors import unpack

        known, artifact = (
            self.registry.ledger.publication(task, digest),
            read_artifact(self.registry.store, task, digest),
        )
        if (known and known.neighbours and self.registry.store.exists(known.neighbours)) or artifact.manifest.members:
            return None
        base = self.engine(artifact.manifest.base_model.name).base
        return find_neighbours(base, unpack(artifact, base.ref))

    def promote(self, task: Task, version: PromptVersion, verdict: Verdict, actor: str = MACHINE) -> Promotion | None:
        """Promotion by the task's policy: `auto` promotes what passed, `manual` leaves it to a person.

        What production named before and names no more was rolled back by a person, and what could not be compared with
        the champion needs one to look at it: neither is promoted by a machine.
        """
        stood = version.number in {row.version for row in self.registry.ledger.history(task.name, PRODUCTION)}
        if not verdict.passed or task.promote == "manual" or stood or needs_a_person(verdict):
            return None
        return promote(self.registry, task, version.number, Cause(actor, f"passed the gate: {_summary(verdict)}"))

    def run(self, task: Task) -> Outcome:
        """All stages for one task, one after another."""
        if task.tune.shared is not None:
            self.share(task.tune.shared)
        plan = self.plan(task, self.ingest(task))
        tuned = self.train([plan])[task.name]
        if isinstance(tuned, str):
            raise TrainingError(tuned)
        return self._judged(task, tuned, plan.snapshot)

    def adopt(self, task: Task, path: Path, actor: str) -> Outcome:
        """A prompt that `actor` brings from elsewhere, through the stages of a candidate of our own; a repeat registers
        nothing new.

        Raises what `read_foreign` and `adopt` raise for one that is damaged or does not fit task or base.
        """
        from ptpipeline.data.snapshot import load_split
        from ptpipeline.prompts.peft import read_foreign
        from ptpipeline.tuning.adopt import adopt

        found, snapshot = read_foreign(path), self.ingest(task)
        trained = adopt(
            self.engine(task.base_model).base, task, snapshot, found, load_split(self.registry.store, snapshot, "dev")
        )
        for warning in trained.tuned.warnings:
            self.report(f"{task.name}: {warning}")
        tuned = self._held(task.name, trained.tuned.training_key) or self._kept(trained)
        return self._judged(task, tuned, snapshot.digest, actor)

    def _judged(self, task: Task, tuned: TunedPrompt, snapshot: str, actor: str = MACHINE) -> Outcome:
        """Evaluate, gate, register and promote a stored prompt."""
        report = self.evaluate(task, tuned, snapshot)
        verdict = self.gate(task, tuned, report)
        version = self.register(task, tuned, report, verdict)
        return outcome_of(
            self.registry, task, Candidate(tuned, report, verdict, version, self.promote(task, version, verdict, actor))
        )

    def move(self, task: str, alias: str, version: int, cause: Cause) -> Promotion:
        """A promotion that a person asks for; an outdated verdict is renewed first, and required all the same."""
        check_cause(cause)  # before the gate takes its time
        declared = find_task(self.settings.tasks, task)
        if alias == PRODUCTION:
            self._judge_again(declared, self.registry.ledger.version(task, version))
        return promote(self.registry, declared, version, cause, alias)

    def move_release(self, name: str, versions: Mapping[str, int], cause: Cause) -> list[Promotion]:
        """Production of all these tasks to these versions, together; outdated verdicts are renewed first."""
        release = Release(name=name, actor=cause.actor, reason=cause.reason, versions=dict(versions), at=now())
        check_cause(cause)
        check_release(self.registry, release)
        declared = {task: find_task(self.settings.tasks, task) for task in versions}
        for task, number in versions.items():
            self._judge_again(declared[task], self.registry.ledger.version(task, number))
        return promote_release(self.registry, declared, release, cause)

    def _judge_again(self, task: Task, version: PromptVersion) -> None:
        """Gate a version anew where policy or champion changed since; a version of other labels has to be
        trained anew.
        """
        ledger = self.registry.ledger
        head, publication = ledger.head(task.name, PRODUCTION), ledger.publication(task.name, version.digest)
        asked = (task.policy_digest(), head.digest if head else None)
        verdicts = ledger.verdicts(task.name, version.digest)
        judged = asked in [(verdict.policy, verdict.champion) for verdict in verdicts if not needs_a_person(verdict)]
        if (
            version.collected
            or not verdicts
            or judged
            or publication is None
            or (head and head.version == version.number)
        ):
            return
        manifest = read_artifact(self.registry.store, task.name, version.digest).manifest
        if manifest.labels == task.labels and manifest.base_model.name == task.base_model:
            report = self.evaluate(task, publication.tuned, self.ingest(task).digest)
            verdict = self.gate(task, publication.tuned, report)
            # the store first: a promotion may cite what the ledger holds, and a lost ledger is made anew from what the
            # store holds
            remember(self.registry, self._request(task, publication.tuned, report, verdict))
            ledger.save_verdict(verdict)
            write_page(self.registry, entry_of(self.registry, task.name, version.digest), version)

    def roll_back(self, task: str, alias: str, to: int | None, cause: Cause) -> Promotion:
        """Back to the previous version, or to the one named."""
        return rollback(self.registry, task, cause, to, alias)

    def reconcile(self, task: str | None = None) -> list[str]:
        """Replay the ledger's heads onto the store's pointers and MLflow's aliases; one sentence per action."""
        return [
            f"{action.task}: {action.what}"
            for action in reconcile(
                self.registry, {found.name: found for found in sound_tasks(self.settings.tasks)[0]}, task
            )
        ]


def _summary(verdict: Verdict) -> str:
    found = verdict.comparison
    against = f", {found.metric} {found.difference:+.4f} against the champion" if found else ", the first to do so"
    return f"{len(verdict.checks)} checks{against}"
