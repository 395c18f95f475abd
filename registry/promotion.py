"""Promotion and rollback: the only ways to move an alias, all through the ledger."""

import logging
import re
from dataclasses import dataclass

from ptpipeline.errors import ArtifactError, NotFound, PromotionRefused, PtpError
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records import PRODUCTION, Promotion, PromptManifest, PromptVersion, Verdict, is_name
from ptpipeline.task import Task
from registry.ledger import Move
from registry.reconcile import settle
from registry.registry import Registry

GATED = (PRODUCTION,)
RESERVED = re.compile(r"latest|v?\d+")
PROJECTION_WAIT_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cause:
    """Who moves an alias, and why; both stand in the history for ever."""

    actor: str
    reason: str


def promote(registry: Registry, task: Task, version: int, cause: Cause, alias: str = PRODUCTION) -> Promotion:
    """Let `alias` name the version; promoting what it names already returns the head.

    Raises PromotionRefused where the alias is gated and the version has no passed verdict over today's policy and
    champion, or its bytes are missing or altered; PromotionConflict where somebody moved the alias meanwhile; NotFound.
    A store or MLflow that lags behind is logged: the promotion stands, `ptp reconcile` brings them up.
    """
    wanted = registry.ledger.version(task.name, version)
    head = registry.ledger.head(task.name, checked_alias(alias))
    if head is None or head.version != version:
        _check_base(task, _verified(registry, wanted))
        verdict = _gated(registry, task, wanted, head) if alias in GATED else registry.ledger.latest_verdict(task.name, wanted.digest)
        head = registry.ledger.append(_move(wanted, alias, cause, verdict), head.seq if head else 0)
    _follow(registry, head)
    return head


def point(registry: Registry, version: PromptVersion, cause: Cause, alias: str) -> Promotion:
    """Let an alias that no gate guards name the version: for what has no task, such as a shared prompt.

    Raises PromotionRefused for a gated alias, or bytes that are missing or altered; PromotionConflict.
    """
    if checked_alias(alias) in GATED:
        raise PromotionRefused(f"{version.task}@{alias}: this alias is gated, and {version.task} has no gate; take another alias")
    head = registry.ledger.head(version.task, alias)
    if head is None or head.version != version.number:
        _verified(registry, version)
        head = registry.ledger.append(_move(version, alias, cause, None), head.seq if head else 0)
    _follow(registry, head)
    return head


def rollback(registry: Registry, task: str, cause: Cause, to: int | None = None, alias: str = PRODUCTION) -> Promotion:
    """Let `alias` name again the version before the one that it names, or version `to`, which it named once.

    Repeated, it goes further back, never forth. Raises PromotionRefused where there is nothing to go back to, `to` never
    was what the alias named, or its bytes are missing or altered; PromotionConflict; NotFound where there is no such alias.
    """
    history = registry.ledger.history(task, checked_alias(alias))
    if not history:
        raise NotFound(f"{task}@{alias}: this alias was never promoted; there is nothing to roll back")
    head = history[-1]
    wanted = registry.ledger.version(task, _target(history, to))
    if wanted.number != head.version:
        _verified(registry, wanted)
        cited = next(row.verdict for row in reversed(history) if row.version == wanted.number)
        head = registry.ledger.append(_move(wanted, alias, cause, registry.ledger.verdict(cited) if cited else None), head.seq)
    _follow(registry, head)
    return head


def checked_alias(alias: str) -> str:
    """`alias` itself where it may be one; PromotionRefused where it is malformed, or means something else already."""
    if not is_name(alias) or RESERVED.fullmatch(alias):
        raise PromotionRefused(f"alias {alias!r}: expected lower-case letters, digits and dashes, and neither `latest` nor a number such as 3 or v3")
    return alias


def _target(history: list[Promotion], to: int | None) -> int:
    """The version to go back to: the alias's path so far, read as a stack, where a return to a version drops what followed."""
    head = history[-1]
    if to is not None:
        if to not in {row.version for row in history}:
            once = ", ".join(map(str, dict.fromkeys(row.version for row in history)))
            raise PromotionRefused(f"{head.task}@{head.alias}: version {to} was never promoted to it, only {once}; `ptp promote` gates a new one")
        return to
    path: list[int] = []
    for row in history:
        path = [*(path[: path.index(row.version)] if row.version in path else path), row.version]
    if len(path) < 2:
        raise PromotionRefused(f"{head.task}@{head.alias}: nothing was promoted before version {head.version}; name a version with --to")
    return path[-2]


def _verified(registry: Registry, version: PromptVersion) -> PromptManifest:
    try:
        return read_artifact(registry.store, version.task, version.digest).manifest
    except (ArtifactError, NotFound) as error:
        raise PromotionRefused(f"{version.task} version {version.number} cannot be served: {error}; `ptp doctor` shows what is damaged") from error


def _check_base(task: Task, manifest: PromptManifest) -> None:
    if manifest.base_model.name != task.base_model:
        raise PromotionRefused(f"{task.name}: the version was trained for base model {manifest.base_model.name}, the task file names {task.base_model}; train again: `ptp run {task.name}`")


def _gated(registry: Registry, task: Task, version: PromptVersion, head: Promotion | None) -> Verdict:
    """The newest verdict over today's policy and champion, which has to have passed."""
    champion, where = head.digest if head else None, f"{task.name} version {version.number}"
    verdicts = registry.ledger.verdicts(task.name, version.digest)
    current = [verdict for verdict in verdicts if verdict.policy == task.policy_digest() and verdict.champion == champion]
    if not verdicts:
        raise PromotionRefused(f"{where}: the gate has not judged it; gate first: `ptp run {task.name}`")
    if not current:
        changed = "the task's gate policy" if verdicts[0].policy != task.policy_digest() else "the champion"
        raise PromotionRefused(f"{where}: {changed} changed since it was judged; gate again first: `ptp run {task.name}`")
    if not current[0].passed:
        reasons = "; ".join(f"{check.name}: {check.observed}, required {check.required}" for check in current[0].failures())
        raise PromotionRefused(f"{where}: it failed the gate ({reasons})")
    return current[0]


def _move(version: PromptVersion, alias: str, cause: Cause, verdict: Verdict | None) -> Move:
    cited = verdict.verdict_digest() if verdict else None
    return Move(task=version.task, alias=alias, version=version.number, actor=cause.actor, reason=cause.reason, verdict=cited)


def _follow(registry: Registry, head: Promotion) -> None:
    """Project; the promotion is committed already, so a projection that fails is only late."""
    try:
        settle(registry, head, PROJECTION_WAIT_SECONDS)
    except PtpError as error:
        log.warning("%s@%s is version %d; not everything shows it yet (%s); `ptp reconcile` mends it", head.task, head.alias, head.version, error)
