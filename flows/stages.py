"""The stages as plain functions over records; the flows make them visible, `ptp run` calls them one after another.

Every stage is idempotent by content: it asks the ledger under its key first, and says so where nothing is to be done.
"""

import logging
import subprocess
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import stamina

from ptpipeline.errors import (
    ArtifactError,
    BaseModelError,
    DataError,
    NotFound,
    PtpError,
    TaskFileError,
    Terminal,
    TrainingError,
    Transient,
)
from ptpipeline.gate import decide, gate_key, metric_of
from ptpipeline.models.base import prepare_base
from ptpipeline.prompts.artifact import MANIFEST_FILE as PROMPT_MANIFEST
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records import (
    PRODUCTION,
    PairedDifference,
    Promotion,
    PromptVersion,
    Record,
    Report,
    Scores,
    Snapshot,
    TunedPrompt,
    Verdict,
    prompt_prefix,
)
from ptpipeline.settings import Settings
from ptpipeline.task import CURRENT, Task, find_shared_prompt, find_task, load_task, task_files
from ptpipeline.tuning.key import start_digest, training_key
from ptpipeline.tuning.tracker import NoTracker, Tracker
from registry.promotion import Cause, point, promote, rollback
from registry.publish import Request, register, stage
from registry.reconcile import reconcile
from registry.registry import Registry, open_registry

if TYPE_CHECKING:
    from ptpipeline.serving.engine import Engine
    from ptpipeline.tuning.checkpoint import Checkpoints
    from ptpipeline.tuning.tune import Trained

log = logging.getLogger("ptpipeline.stages")


class Plan(Record):
    """Whether a task has to train tonight, and why."""

    task: str
    base_model: str
    snapshot: str
    training_key: str
    trained: bool
    reason: str


class Outcome(Record):
    """One line of the night's table. Figures are the task's gate metric on the test split."""

    task: str
    metric: str
    status: str
    zero_shot: float
    candidate: float
    champion: float | None
    delta: float | None
    lower: float | None
    upper: float | None
    verdict: str
    version: int
    bytes: int
    reason: str
    page: str | None


class Stages:
    """All stages over one set of settings; heavy imports and the base model come with the first stage that needs them."""

    def __init__(self, settings: Settings, registry: Registry, report: Callable[[str], None] = log.info) -> None:
        self.settings = settings
        self.registry = registry
        self.report = report
        self._engines: dict[str, Engine] = {}

    @classmethod
    def open(cls, settings: Settings) -> "Stages":
        """The stages over the registry that the settings name."""
        return cls(settings, open_registry(settings))

    def tasks(self, names: Sequence[str] | None = None) -> list[Task]:
        """The named tasks, or all; NotFound or TaskFileError before anything runs."""
        if names is None:
            return [load_task(path) for path in task_files(self.settings.tasks)]
        return [find_task(self.settings.tasks, name) for name in dict.fromkeys(names)]

    def declared(self) -> tuple[list[Task], dict[str, str]]:
        """All tasks whose files are sound, and one sentence for each of the others: a typo in one stops no other."""
        found, broken = [], {}
        for path in task_files(self.settings.tasks):
            try:
                found.append(load_task(path))
            except TaskFileError as error:
                broken[path.stem] = str(error)
        return found, broken

    def ingest(self, task: Task) -> Snapshot:
        """The task's snapshot; an unchanged source makes no new one."""
        from ptpipeline.data.snapshot import MANIFEST_FILE, ingest, snapshot_prefix
        from ptpipeline.data.sources import source_key

        key = source_key(task, self.settings.home)
        known = self.registry.ledger.snapshot_for(task.name, key)
        if known is not None and self.registry.store.exists(f"{snapshot_prefix(task.name, known.digest)}/{MANIFEST_FILE}"):
            self.report(f"{task.name}: source unchanged, snapshot {known.digest[:12]} stands")
            return known
        snapshot = ingest(task, self.registry.store, self.settings.home)
        self.registry.ledger.save_snapshot(snapshot)
        noticed = ", ".join(f"{check.name} {check.count}" for check in snapshot.checks if check.outcome == "warned")
        rows = ", ".join(f"{name} {snapshot.split(name).rows}" for name in ("train", "dev", "test"))
        self.report(f"{task.name}: snapshot {snapshot.digest[:12]}, rows: {rows}; left out: {noticed or 'none'}")
        return snapshot

    def plan(self, task: Task, snapshot: Snapshot) -> Plan:
        """Whether anything that training depends on changed since it last ran."""
        base = prepare_base(task.base_model, self.settings)
        key = training_key(task, snapshot, base.ref.fingerprint, start_digest(task, self.registry.store))
        trained = self._tuned(task.name, key) is not None
        reason = "rows, recipe, base model and engine are unchanged: nothing to train" if trained else "not trained yet with these rows, recipe, base model and engine"
        self.report(f"{task.name}: {reason}")
        return Plan(task=task.name, base_model=task.base_model, snapshot=snapshot.digest, training_key=key, trained=trained, reason=reason)

    def share(self, name: str) -> Promotion:
        """The shared prompt's current version; trained anew where its sources' rows, its recipe, base or the engine changed.

        A version that a person moved the alias away from is left there.
        """
        from ptpipeline.tuning.multitask import Sources, shared_key, train_shared

        declared = find_shared_prompt(self.settings.tasks, name)
        tasks = [find_task(self.settings.tasks, source) for source in declared.sources]
        sources = Sources(name, declared, [(task, self.ingest(task)) for task in tasks])
        key = shared_key(sources, prepare_base(declared.base_model, self.settings).ref.fingerprint)
        tuned = self._tuned(name, key)
        if tuned is None:
            base = self._engine(declared.base_model).base
            checkpoints = self._checkpoints()
            tuned = self._kept(train_shared(base, sources, checkpoints, self.tracker, self.report))
            checkpoints.clear()
        version = register(self.registry, Request(tuned=tuned, report=None, verdict=None, commit=_commit()))
        history = self.registry.ledger.history(name, CURRENT)
        if version.number in {row.version for row in history}:
            return history[-1]
        return point(self.registry, version, Cause(actor="nightly", reason="its sources were trained"), CURRENT)

    def train(self, plans: Sequence[Plan]) -> dict[str, TunedPrompt | str]:
        """One gang out of all plans of one base that are not trained yet; a member's own error comes back as a sentence."""
        known = {plan.task: self._tuned(plan.task, plan.training_key) for plan in plans}
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
                work.append((find_task(self.settings.tasks, plan.task), self._snapshot(plan.task, plan.snapshot)))
            except Terminal as error:
                results[plan.task] = str(error)
        checkpoints = self._checkpoints()
        outcomes = tune(self._engine(plans[0].base_model).base, work, checkpoints, self.tracker, self.report)
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
        kept = tuned is not None and self.registry.store.exists(f"{prompt_prefix(task, tuned.digest)}/{PROMPT_MANIFEST}")
        return tuned if kept else None

    def _checkpoints(self) -> "Checkpoints":
        from ptpipeline.tuning.checkpoint import Checkpoints

        return Checkpoints(self.registry.store, self.settings.checkpoint_seconds)

    def _kept(self, trained: "Trained") -> TunedPrompt:
        tuned = self._staged(trained)
        self._remember(tuned)
        return tuned

    @stamina.retry(on=Transient, attempts=8, timeout=120)
    def _staged(self, trained: "Trained") -> TunedPrompt:
        """Minutes of training are not thrown away over a store that is away for a moment."""
        stage(self.registry.ledger, self.registry.store, trained.artifact, trained.members)
        return trained.tuned

    @stamina.retry(on=Transient, attempts=8, timeout=120)
    def _remember(self, *tuned: TunedPrompt) -> None:
        """The prompts of a gang at once: killed between two, the next run would train the rest as another gang, to other bits."""
        self.registry.ledger.save_tuned(*tuned)

    def evaluate(self, task: Task, tuned: TunedPrompt, snapshot: str) -> Report:
        """The candidate measured on the test rows of today's snapshot (its digest), from its stored bytes.

        They may be others than those of the snapshot that it was trained on: test rows change nothing in training.
        """
        return self._report(task, tuned.digest, self._snapshot(task.name, snapshot))

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

    def register(self, task: Task, tuned: TunedPrompt, report: Report, verdict: Verdict) -> PromptVersion:
        """The candidate as a numbered version, with verdict, figures and plots, whether it passed or not."""
        from ptpipeline.evaluation.plots import confusion, learning_curve, token_heat

        plots = {"confusion": confusion(report.prompt, report)} if isinstance(report.prompt, Scores) else {}
        if tuned.curve:  # an imported prompt has none
            plots |= {"learning_curve": learning_curve(tuned, task.gate.metric), "token_norms": token_heat(tuned)}
        return register(self.registry, Request(tuned=tuned, report=report, verdict=verdict, plots=plots, commit=_commit()))

    def promote(self, task: Task, version: PromptVersion, verdict: Verdict) -> Promotion | None:
        """Promotion by the task's policy: `auto` promotes what passed, `manual` leaves it to a person.

        What production named before and names no more was rolled back by a person, and what could not be compared with
        the champion needs one to look at it: neither is promoted by a machine.
        """
        stood = version.number in {row.version for row in self.registry.ledger.history(task.name, PRODUCTION)}
        if not verdict.passed or task.promote == "manual" or stood or _incomparable(verdict):
            return None
        return promote(self.registry, task, version.number, Cause(actor="nightly", reason=f"passed the gate: {_summary(verdict)}"))

    def outcome(
        self, task: Task, tuned: TunedPrompt, report: Report, verdict: Verdict, version: PromptVersion, promotion: Promotion | None
    ) -> Outcome:
        """The task's line of the night's table."""
        metric, comparison = task.gate.metric, verdict.comparison
        candidate = metric_of(report.prompt, metric)
        status, reason = self._status(task, verdict, version, promotion)
        return Outcome(
            task=task.name,
            metric=metric,
            status=status,
            zero_shot=metric_of(report.zero_shot, metric),
            candidate=candidate,
            champion=candidate - comparison.difference if comparison else None,
            delta=comparison.difference if comparison else None,
            lower=comparison.lower if comparison else None,
            upper=comparison.upper if comparison else None,
            verdict="passed" if verdict.passed else "failed: " + ", ".join(check.name for check in verdict.failures()),
            version=version.number,
            bytes=tuned.bytes,
            reason=reason,
            page=self._page(task.name, tuned.digest),
        )

    def run(self, task: Task) -> Outcome:
        """All stages for one task, one after another."""
        if task.tune.shared is not None:
            self.share(task.tune.shared)
        plan = self.plan(task, self.ingest(task))
        tuned = self.train([plan])[task.name]
        if isinstance(tuned, str):
            raise TrainingError(tuned)
        return self._judged(task, tuned, plan.snapshot)

    def adopt(self, task: Task, path: Path) -> Outcome:
        """A prompt that something else trained, through the stages of a candidate of our own; a repeat registers nothing new.

        Raises what `read_foreign` and `adopt` raise for one that is damaged or does not fit task or base.
        """
        from ptpipeline.data.snapshot import load_split
        from ptpipeline.prompts.peft import read_foreign
        from ptpipeline.tuning.adopt import adopt

        found, snapshot = read_foreign(path), self.ingest(task)
        trained = adopt(self._engine(task.base_model).base, task, snapshot, found, load_split(self.registry.store, snapshot, "dev"))
        for warning in trained.tuned.warnings:
            self.report(f"{task.name}: {warning}")
        tuned = self._tuned(task.name, trained.tuned.training_key) or self._kept(trained)
        return self._judged(task, tuned, snapshot.digest)

    def _judged(self, task: Task, tuned: TunedPrompt, snapshot: str) -> Outcome:
        """Evaluate, gate, register and promote a stored prompt."""
        report = self.evaluate(task, tuned, snapshot)
        verdict = self.gate(task, tuned, report)
        version = self.register(task, tuned, report, verdict)
        return self.outcome(task, tuned, report, verdict, version, self.promote(task, version, verdict))

    def move(self, task: str, alias: str, version: int, actor: str, reason: str) -> Promotion:
        """A promotion that a person asks for; an outdated verdict is renewed first, and required all the same."""
        declared = find_task(self.settings.tasks, task)
        if alias == PRODUCTION:
            self._judge_again(declared, self.registry.ledger.version(task, version))
        return promote(self.registry, declared, version, Cause(actor, reason), alias)

    def _judge_again(self, task: Task, version: PromptVersion) -> None:
        """Gate a version anew where policy or champion changed since; a version of other labels has to be trained anew."""
        ledger = self.registry.ledger
        head, publication = ledger.head(task.name, PRODUCTION), ledger.publication(task.name, version.digest)
        asked = (task.policy_digest(), head.digest if head else None)
        judged = [(verdict.policy, verdict.champion) for verdict in ledger.verdicts(task.name, version.digest)]
        if not judged or asked in judged or publication is None or (head and head.version == version.number):
            return
        manifest = read_artifact(self.registry.store, task.name, version.digest).manifest
        if manifest.labels == task.labels and manifest.base_model.name == task.base_model:
            report = self._report(task, version.digest, self.ingest(task))
            ledger.save_verdict(self.gate(task, publication.tuned, report))

    def roll_back(self, task: str, alias: str, to: int | None, actor: str, reason: str) -> Promotion:
        """Back to the previous version, or to the one named."""
        return rollback(self.registry, task, Cause(actor, reason), to, alias)

    def reconcile(self, task: str | None = None) -> list[str]:
        """Replay the ledger's heads onto the store's pointers and MLflow's aliases; one sentence per action."""
        return [f"{action.task}: {action.what}" for action in reconcile(self.registry, task)]

    @cached_property
    def tracker(self) -> Tracker:
        """Where training is followed: MLflow where there is one."""
        if self.settings.mlflow is None:
            return NoTracker()
        from registry.tracking import Tracking

        return Tracking(self.settings.mlflow)

    def _engine(self, base_model: str) -> "Engine":
        from ptpipeline.models.load import load_base
        from ptpipeline.serving.engine import Engine

        if base_model not in self._engines:
            self._engines[base_model] = Engine(load_base(prepare_base(base_model, self.settings), self.settings.dtype))
        return self._engines[base_model]

    def _snapshot(self, task: str, digest: str) -> Snapshot:
        from ptpipeline.data.snapshot import read_snapshot

        return read_snapshot(self.registry.store, task, digest)

    def _report(self, task: Task, digest: str, snapshot: Snapshot) -> Report:
        from ptpipeline.evaluation.evaluate import evaluate
        from ptpipeline.evaluation.key import evaluation_key
        from ptpipeline.models.load import compute_dtype

        known = self.registry.ledger.report(evaluation_key(digest, snapshot.test.digest, compute_dtype(self.settings.dtype)))
        if known is not None:
            self.report(f"{task.name}: {digest[:12]} was measured on these {known.rows} test rows before")
            return known
        artifact = read_artifact(self.registry.store, task.name, digest)
        report = evaluate(self._engine(artifact.manifest.base_model.name), artifact, snapshot, self.registry.store)
        self.registry.ledger.save_report(report)
        metric = task.gate.metric
        self.report(f"{task.name}: {digest[:12]} test {metric} {metric_of(report.prompt, metric):.4f}, zero-shot {metric_of(report.zero_shot, metric):.4f}")
        return report

    def _compared(self, task: Task, report: Report, champion: str) -> PairedDifference | str:
        """Challenger minus champion on the present test rows, less those that the champion was trained on.

        A sentence where the champion cannot be measured: it answers other labels, or it or its base is lost.
        """
        try:
            return self._difference(task, report, champion)
        except (ArtifactError, BaseModelError, DataError, NotFound) as error:
            return str(error)

    def _difference(self, task: Task, report: Report, champion: str) -> PairedDifference:
        from ptpipeline.data.snapshot import load_split
        from ptpipeline.evaluation.compare import compared, row_ids

        manifest = read_artifact(self.registry.store, task.name, champion).manifest
        if set(manifest.labels) != set(task.labels):
            now = f"has {', '.join(task.labels)}" if task.labels else "asks for free text"
            raise DataError(f"it answers {'the ' if manifest.labels else ''}{manifest.answers}, the task now {now}")
        theirs = self._report(task, champion, self._snapshot(task.name, report.snapshot))
        seen = {row.id for row in load_split(self.registry.store, self._snapshot(task.name, manifest.snapshot), "train")}
        measured = row_ids(self.registry.store, report)
        rows = [row for row in measured if row not in seen]
        if len(rows) < 2:
            raise NotFound(f"task {task.name}: the champion {champion[:12]} was trained on all of today's test rows; nothing is left to compare on")
        found = compared(self.registry.store, task, (report, theirs), rows)
        return found.model_copy(update={"dropped": len(measured) - len(rows)})

    def _status(self, task: Task, verdict: Verdict, version: PromptVersion, promotion: Promotion | None) -> tuple[str, str]:
        head = self.registry.ledger.head(task.name, PRODUCTION)
        if promotion is not None:
            return "promoted", f"{task.name}@{PRODUCTION} is version {version.number}"
        if head and head.version == version.number:
            return "unchanged", "rows, recipe, base model and engine are unchanged: nothing was trained, production stands"
        if version.number in {row.version for row in self.registry.ledger.history(task.name, PRODUCTION)}:
            return "rolled back", f"{task.name}@{PRODUCTION} was moved away from version {version.number}; `ptp promote {task.name}@{version.number} --reason ...` takes it back"
        if not verdict.passed:
            return "gate failed", "; ".join(f"{check.name}: {check.observed}, required {check.required}" for check in verdict.failures())
        return "awaiting approval", f"`ptp promote {task.name}@{version.number} --reason ...` takes it to production"

    def _page(self, task: str, digest: str) -> str | None:
        if self.registry.mlflow is None:
            return None
        try:
            number = self.registry.mlflow.find(task, digest)
        except PtpError as error:  # the promotion stands; only the link is missing
            log.warning("%s: no link to its page: %s", task, error)
            return None
        return self.registry.mlflow.page(task, number) if number else None


def _incomparable(verdict: Verdict) -> bool:
    return verdict.champion not in (None, verdict.digest) and verdict.comparison is None


def _summary(verdict: Verdict) -> str:
    found = verdict.comparison
    against = f", {found.metric} {found.difference:+.4f} against the champion" if found else ", the first to do so"
    return f"{len(verdict.checks)} checks{against}"


def _commit() -> str | None:
    """The commit of the project's checkout, None outside of one."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path.cwd(), check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
