"""Promotion and rollback: the only ways to move an alias, all through the ledger."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ptpipeline.errors import ArtifactError, NotFound, PromotionRefused, PtpError
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records import PRODUCTION, Promotion, PromptManifest, PromptVersion, Verdict, is_name
from ptpipeline.storage.keys import history_key, pointer_key, release_key
from ptpipeline.task.task import Task
from registry.failpoints import reached
from registry.ledger.ledger import Move, Release, held_otherwise
from registry.ledger.tombstone import collected_sentence
from registry.registry import Registry
from registry.versions.projection import pointer_in, settle
from registry.versions.provenance import write_release

GATED = (PRODUCTION,)
RESERVED = re.compile(r"latest|v?\d+")
PROJECTION_WAIT_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cause:
    """Who moves an alias, and why; both stand in the history for ever.

    `override` says that this person answers for a version that the gate refuses, or has not judged.
    """

    actor: str
    reason: str
    override: bool = False


def promote(registry: Registry, task: Task, version: int, cause: Cause, alias: str = PRODUCTION) -> Promotion:
    """Let `alias` name the version; promoting what it names already returns the head.

    Raises PromotionRefused where the alias is gated and the version has no passed verdict over today's policy and
    champion (unless the cause overrides the gate), or where it is of another base model or its bytes are missing or
    altered; PromotionConflict where somebody moved the alias meanwhile; NotFound.
    A store or MLflow that lags behind is logged: the promotion stands, `ptp reconcile` brings them up.
    """
    wanted = registry.ledger.version(task.name, version)
    head = registry.ledger.head(task.name, checked_alias(alias))
    if head is None or head.version != version:
        head = registry.ledger.append(checked_move(registry, task, (wanted, head), cause, alias))
        reached("promotion committed")
    _follow(registry, head)
    return head


def checked_move(
    registry: Registry, task: Task, step: tuple[PromptVersion, Promotion | None], cause: Cause, alias: str
) -> Move:
    """The move from the alias's head to the version, where it is allowed; raises as `promote` does."""
    wanted, head = step
    check_cause(cause)
    _check_ledger(registry, wanted.task, alias, head)
    _check_base(task, _verified(registry, wanted))
    verdict, override = registry.ledger.latest_verdict(task.name, wanted.digest), False
    if alias in GATED:
        try:
            verdict = _gated(registry, task, wanted, head)
        except PromotionRefused as refusal:
            if not cause.override:
                raise
            log.warning("%s: the gate is overridden by %s (%s)", refusal, cause.actor, cause.reason)
            override = True
    reached("promotion checked")
    return _move(wanted, head, alias, cause, verdict).model_copy(update={"override": override})


def point(registry: Registry, version: PromptVersion, cause: Cause, alias: str) -> Promotion:
    """Let an alias that no gate guards name the version: for what has no task, such as a shared prompt.

    Raises PromotionRefused for a gated alias, or bytes that are missing or altered; PromotionConflict.
    """
    check_cause(cause)
    if checked_alias(alias) in GATED:
        raise PromotionRefused(
            f"{version.task}@{alias}: this alias is gated, and {version.task} has no gate; take another alias"
        )
    head = registry.ledger.head(version.task, alias)
    if head is None or head.version != version.number:
        _check_ledger(registry, version.task, alias, head)
        _verified(registry, version)
        head = registry.ledger.append(_move(version, head, alias, cause, None))
    _follow(registry, head)
    return head


def rollback(registry: Registry, task: str, cause: Cause, to: int | None = None, alias: str = PRODUCTION) -> Promotion:
    """Let `alias` name again the version before the one that it names, or version `to`, which it named once.

    Repeated, it goes further back, never forth. Raises PromotionRefused where there is nothing to go back to, `to`
    never was what the alias named, or its bytes are missing or altered; PromotionConflict; NotFound where there is no
    such alias.
    """
    history = registry.ledger.history(task, checked_alias(alias))
    if not history:
        raise NotFound(f"{task}@{alias}: this alias was never promoted; there is nothing to roll back")
    head, number = history[-1], _target(history, to)
    if number != head.version:
        head = registry.ledger.append(_return(registry, history, number, cause))
        reached("promotion committed")
    _follow(registry, head)
    return head


def promote_release(registry: Registry, tasks: Mapping[str, Task], release: Release, cause: Cause) -> list[Promotion]:
    """Let production of every task of the release name its version there: all of them in one transaction, or none.

    What names it already is left alone. Raises as `promote` does for the first version that is refused or lost.
    """
    check_cause(cause)
    check_release(registry, release)
    ledger = registry.ledger
    steps = {
        task: (ledger.version(task, number), ledger.head(task, PRODUCTION))
        for task, number in sorted(release.versions.items())
    }
    changing = {task: step for task, step in steps.items() if step[1] is None or step[1].version != step[0].number}
    moves = [checked_move(registry, tasks[task], step, cause, PRODUCTION) for task, step in changing.items()]
    return _released(registry, release, moves)


def rollback_release(registry: Registry, name: str, cause: Cause) -> list[Promotion]:
    """Let production of every task of the release name again what it named before the release: all of them, or none.

    Tasks that moved on since are left alone. Raises NotFound where there is no such release, PromotionRefused where no
    task stands there any more, or one had no version before.
    """
    check_cause(cause)
    release = registry.ledger.release(name)
    if release is None:
        raise NotFound(f"no release {name!r}; `ptp release list` shows what there is")
    moves = []
    for task in sorted(release.versions):
        history = registry.ledger.history(task, PRODUCTION)
        if history and (history[-1].release, history[-1].version) == (
            name,
            release.versions[task],
        ):  # not its own rollback
            moves.append(_return(registry, history, _before(history, name), cause))
    if not moves:
        raise PromotionRefused(
            f"release {name!r}: no task's production comes from it any more; nothing was rolled back"
        )
    return _released(registry, release, moves)


def _released(registry: Registry, release: Release, moves: list[Move]) -> list[Promotion]:
    named = [move.model_copy(update={"release": release.name}) for move in moves]
    promotions = registry.ledger.append_release(release, named)
    reached("release committed")
    try:
        write_release(registry.store, release)
    except PtpError as error:
        log.warning("release %s is not in the store yet (%s); `ptp doctor --fix` mends it", release.name, error)
    for promotion in promotions:
        _follow(registry, promotion)
    return promotions


def _before(history: list[Promotion], release: str) -> int:
    """The version that the alias named before the newest promotion of that release, rollbacks of it left out."""
    head = history[-1]
    if head.previous is None:
        raise PromotionRefused(
            f"{head.task}@{head.alias}: it named nothing before release {release!r}; `ptp rollback {head.task} "
            "--to N` chooses a version"
        )
    return head.previous


def _return(registry: Registry, history: list[Promotion], number: int, cause: Cause) -> Move:
    """The move of an alias back to a version that it named once, on the verdict that it had then."""
    head, wanted = history[-1], registry.ledger.version(history[-1].task, number)
    check_cause(cause)
    _check_ledger(registry, head.task, head.alias, head)
    _verified(registry, wanted)
    then = next(row for row in reversed(history) if row.version == wanted.number)
    verdict = registry.ledger.verdict(then.verdict) if then.verdict else None
    return _move(wanted, head, head.alias, cause, verdict).model_copy(update={"override": then.override})


def checked_alias(alias: str) -> str:
    """`alias` itself where it may be one; PromotionRefused where it is malformed, or means something else already."""
    if not is_name(alias) or RESERVED.fullmatch(alias):
        raise PromotionRefused(
            f"alias {alias!r}: expected lower-case letters, digits and dashes, and neither `latest` nor a "
            "number such as 3 or v3"
        )
    return alias


def _target(history: list[Promotion], to: int | None) -> int:
    """The version to go back to: the one before on the alias's path."""
    head = history[-1]
    if to is not None:
        if to not in {row.version for row in history}:
            once = ", ".join(map(str, dict.fromkeys(row.version for row in history)))
            raise PromotionRefused(
                f"{head.task}@{head.alias}: version {to} was never promoted to it, only {once}; `ptp promote` "
                "gates a new one"
            )
        return to
    taken = path(history)
    if len(taken) < 2:
        raise PromotionRefused(
            f"{head.task}@{head.alias}: nothing was promoted before version {head.version} first was (a return "
            "to a version drops what followed it); name a version with --to"
        )
    return taken[-2].version


def path(history: list[Promotion]) -> list[Promotion]:
    """The way of an alias to where it is, one row per version: a return to a version drops what followed it."""
    found: list[Promotion] = []
    for row in history:
        before = next((place for place, other in enumerate(found) if other.version == row.version), len(found))
        found = [*found[:before], row]
    return found


def _verified(registry: Registry, version: PromptVersion) -> PromptManifest:
    if version.collected:
        raise PromotionRefused(collected_sentence(version.task, version.digest))
    try:
        return read_artifact(registry.store, version.task, version.digest).manifest
    except (ArtifactError, NotFound) as error:
        raise PromotionRefused(
            f"{version.task} version {version.number} cannot be served: {error}; `ptp doctor` shows what is damaged"
        ) from error


def _check_ledger(registry: Registry, task: str, alias: str, head: Promotion | None) -> None:
    """A ledger that was restored from an older backup would number promotions a second time: the store knows more than
    it.

    The history is written before the pointer, so a process killed between leaves the one without the other.
    """
    seq = head.seq if head else 0
    try:
        found = pointer_in(registry.store.read(pointer_key(task, alias)).body)
    except NotFound:
        found = None
    known = (
        found.seq
        if found and found.seq > seq
        else seq + 1
        if registry.store.exists(history_key(task, alias, seq + 1))
        else seq
    )
    if known > seq and registry.ledger.promotion(task, alias, known) is None:
        raise PromotionRefused(
            f"{task}@{alias}: the store knows promotion {known} of it, the ledger only {seq or 'none'}; was it "
            "restored from an older backup? `ptp doctor --rebuild-ledger` brings it up"
        )


def check_release(registry: Registry, release: Release) -> None:
    """Before anything is judged for it: PromotionRefused for a malformed name, or where an older copy of the ledger
    would give a name out again; PromotionConflict where the name stands for another set.
    """
    if not is_name(release.name):
        raise PromotionRefused(f"release {release.name!r}: expected lower-case letters, digits and dashes")
    known = registry.ledger.release(release.name)
    if known is None and registry.store.exists(release_key(release.name)):
        raise PromotionRefused(
            f"release {release.name!r}: the store holds it, the ledger does not; was it restored from an older "
            "backup? `ptp doctor --rebuild-ledger` brings it up"
        )
    if known is not None and known.versions != release.versions:
        raise held_otherwise(known)


def _check_base(task: Task, manifest: PromptManifest) -> None:
    if manifest.base_model.name != task.base_model:
        raise PromotionRefused(
            f"{task.name}: the version was trained for base model {manifest.base_model.name}, the task file "
            f"names {task.base_model}; train again: `ptp run {task.name}`"
        )


def _gated(registry: Registry, task: Task, version: PromptVersion, head: Promotion | None) -> Verdict:
    """The newest verdict over today's policy and champion, which has to have passed."""
    champion, where = head.digest if head else None, f"{task.name} version {version.number}"
    verdicts = registry.ledger.verdicts(task.name, version.digest)
    current = [
        verdict for verdict in verdicts if verdict.policy == task.policy_digest() and verdict.champion == champion
    ]
    if not verdicts:
        raise PromotionRefused(f"{where}: the gate has not judged it; gate first: `ptp run {task.name}`")
    if not current:
        changed = "the task's gate policy" if verdicts[0].policy != task.policy_digest() else "the champion"
        raise PromotionRefused(
            f"{where}: {changed} changed since it was judged; gate again first: `ptp run {task.name}`"
        )
    if not current[0].passed:
        reasons = "; ".join(
            f"{check.name}: {check.observed}, required {check.required}" for check in current[0].failures()
        )
        raise PromotionRefused(
            f"{where}: it failed the gate ({reasons}); mend data or recipe and `ptp run {task.name}`, or "
            "answer for it yourself with --override"
        )
    return current[0]


def _move(version: PromptVersion, head: Promotion | None, alias: str, cause: Cause, verdict: Verdict | None) -> Move:
    cited, expected = verdict.verdict_digest() if verdict else None, head.seq if head else 0
    return Move(
        task=version.task,
        alias=alias,
        version=version.number,
        actor=cause.actor,
        reason=cause.reason,
        expected=expected,
        verdict=cited,
    )


def check_cause(cause: Cause) -> None:
    """PromotionRefused where nobody, or no reason, is named, or they hold what no history can keep."""
    if not (cause.actor.strip() and cause.reason.strip()):
        raise PromotionRefused(
            "a promotion needs an actor and a reason, which stand in the history for ever; one of them is empty"
        )
    if re.search("[\0\ud800-\udfff]", cause.actor + cause.reason):
        raise PromotionRefused(
            "the actor or the reason holds a zero or bytes that are no UTF-8, which the history cannot keep; "
            "write it in plain text"
        )


def _follow(registry: Registry, head: Promotion) -> None:
    """Project; the promotion is committed already, so a projection that fails is only late."""
    try:
        settle(registry, head, PROJECTION_WAIT_SECONDS)
    except PtpError as error:
        log.warning(
            "%s@%s is version %d; not everything shows it yet (%s); `ptp reconcile` mends it",
            head.task,
            head.alias,
            head.version,
            error,
        )
