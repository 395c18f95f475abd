"""The stages that make a candidate: plan, share, train. What is trained already is found under its key."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import stamina

from flows.stages.context import Context, checkout_commit
from ptpipeline.errors import PtpError, Terminal, TrainingError, Transient
from ptpipeline.models.base import prepare_base
from ptpipeline.prompts.artifact import MANIFEST_FILE
from ptpipeline.records import Promotion, Record, Snapshot, TunedPrompt, prompt_prefix
from ptpipeline.task.recipe import CURRENT
from ptpipeline.task.task import Task, find_task, load_sources
from ptpipeline.tuning.key import compute_training_key, digest_start
from registry.versions.promotion import Cause, point
from registry.versions.publish import Request, register, stage

if TYPE_CHECKING:
    from ptpipeline.tuning.checkpoint import Checkpoints
    from ptpipeline.tuning.tune import TrainedTask


class Plan(Record):
    """Whether a task has to train tonight, and why."""

    task: str
    base_model: str
    snapshot: str
    training_key: str
    trained: bool
    reason: str


MACHINE = "nightly"  # who moves an alias where no person does


class Training(Context):
    """From snapshots to staged prompts."""

    def plan(self, task: Task, snapshot: Snapshot) -> Plan:
        """Whether anything that training depends on changed since it last ran."""
        base = prepare_base(task.base_model, self.settings)
        key = compute_training_key(task, snapshot, base.ref.fingerprint, digest_start(task, self.registry.store))
        trained = self._tuned(task.name, key) is not None
        reason = (
            "rows, recipe, base model and engine are unchanged: nothing to train"
            if trained
            else "not trained yet with these rows, recipe, base model and engine"
        )
        self.report(f"{task.name}: {reason}")
        return Plan(
            task=task.name,
            base_model=task.base_model,
            snapshot=snapshot.digest,
            training_key=key,
            trained=trained,
            reason=reason,
        )

    def share(self, name: str) -> Promotion:
        """The shared prompt's current version; trained anew where its sources' rows, its recipe, base or the engine
        changed.

        A version that a person moved the alias away from is left there.
        """
        from ptpipeline.tuning.multitask import Sources, compute_shared_key, train_shared

        declared, tasks = load_sources(self.settings.tasks, name)
        sources = Sources(name, declared, [(task, self.ingest(task)) for task in tasks])
        key = compute_shared_key(sources, prepare_base(declared.base_model, self.settings).ref.fingerprint)
        tuned = self._held(name, key)
        if tuned is None:
            base = self.engine(declared.base_model).base
            checkpoints = self._checkpoints()
            try:
                trained = train_shared(base, sources, checkpoints, self.tracker, self.report)
            except TrainingError:
                checkpoints.clear()  # else the next night would resume the failure
                raise
            tuned = self._kept(trained)
            checkpoints.clear()
        version = register(self.registry, Request(tuned=tuned, report=None, verdict=None, commit=checkout_commit()))
        history = self.registry.ledger.history(name, CURRENT)
        if history and history[-1].actor != MACHINE and version.number in {row.version for row in history}:
            mend = (
                f"`ptp rollback {name} --alias {CURRENT} --to {version.number} --reason ...` takes version "
                f"{version.number}"
            )
            self.report(
                f"{name}: {CURRENT} stays at version {history[-1].version}, where {history[-1].actor} moved it; {mend}"
            )
            return history[-1]
        return point(self.registry, version, Cause(actor=MACHINE, reason="its sources were trained"), CURRENT)

    def train(self, plans: Sequence[Plan]) -> dict[str, TunedPrompt | str]:
        """One gang out of all plans of one base that are not trained yet; a member's own error comes back as a
        sentence.
        """
        known = {plan.task: self._held(plan.task, plan.training_key) for plan in plans}
        results: dict[str, TunedPrompt | str] = {name: tuned for name, tuned in known.items() if tuned is not None}
        fresh = [plan for plan in plans if plan.task not in results]
        if fresh:
            results |= self._train(fresh)
        return results

    def _train(self, plans: Sequence[Plan]) -> dict[str, TunedPrompt | str]:
        from ptpipeline.tuning.tune import tune

        results: dict[str, TunedPrompt | str] = {}
        work = []
        for plan in plans:
            try:
                work.append((find_task(self.settings.tasks, plan.task), self.snapshot(plan.task, plan.snapshot)))
            except Terminal as error:
                results[plan.task] = str(error)
        checkpoints = self._checkpoints()
        outcomes = tune(self.engine(plans[0].base_model).base, work, checkpoints, self.tracker, self.report)
        staged: dict[str, TunedPrompt] = {}
        for name, outcome in outcomes.items():
            try:
                if isinstance(outcome, PtpError):
                    results[name] = str(outcome)
                else:
                    staged[name] = self._staged(outcome)
            except PtpError as error:  # the others' minutes of training are kept all the same
                results[name] = str(error)
        self._remember(*staged.values())
        if staged or all(isinstance(outcome, PtpError) for outcome in outcomes.values()):
            checkpoints.clear()  # else nothing could be stored: the next run finds it all trained
        return results | staged

    def _tuned(self, task: str, key: str) -> TunedPrompt | None:
        """What was trained under that key, where its bytes are still there."""
        tuned = self.registry.ledger.tuned(task, key)
        kept = tuned is not None and self.registry.store.exists(f"{prompt_prefix(task, tuned.digest)}/{MANIFEST_FILE}")
        return tuned if kept else None

    @stamina.retry(on=Transient, attempts=8, timeout=120)
    def _held(self, task: str, key: str) -> TunedPrompt | None:
        """The same, with the intent to register it, which keeps the garbage collection away from it."""
        tuned = self._tuned(task, key)
        if tuned is not None:
            self.registry.ledger.intend(task, tuned.digest)
            tuned = self._tuned(task, key)  # it may have gone before the intent was there
        return tuned

    def _checkpoints(self) -> "Checkpoints":
        from ptpipeline.tuning.checkpoint import Checkpoints

        return Checkpoints(self.registry.store, self.settings.checkpoint_seconds)

    def _kept(self, trained: "TrainedTask") -> TunedPrompt:
        tuned = self._staged(trained)
        self._remember(tuned)
        return tuned

    @stamina.retry(on=Transient, attempts=8, timeout=120)
    def _staged(self, trained: "TrainedTask") -> TunedPrompt:
        """Minutes of training are not thrown away over a store that is away for a moment."""
        stage(self.registry.ledger, self.registry.store, trained.artifact, trained.members)
        return trained.tuned

    @stamina.retry(on=Transient, attempts=8, timeout=120)
    def _remember(self, *tuned: TunedPrompt) -> None:
        """The prompts of a gang at once: killed between two, the next run would train the rest as another gang, to
        other bits.
        """
        self.registry.ledger.save_tuned(*tuned)
