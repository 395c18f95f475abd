"""Promotion and rollback: the only ways to move an alias, all through the ledger."""

import logging
import re
from collections.abc import Mapping
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, NotFound, PromotionRefused, PtpError
from ptpipeline.gate.disclosure import describe_failures
from ptpipeline.prompts.artifact import read_artifact, read_ensemble
from ptpipeline.records.base import is_name
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import PRODUCTION, Promotion, PromptVersion
from ptpipeline.storage.keys import history_key, pointer_key, release_key
from ptpipeline.storage.signed import holds
from ptpipeline.task.task import Task
from registry.failpoints import reached
from registry.ledger.ledger import Move, Release, release_conflict
from registry.ledger.tombstone import collected_sentence
from registry.registry import Registry
from registry.versions.approval import check_order, check_people
from registry.versions.commit import Cause, check_cause, commit, write_release
from registry.versions.history import is_return, rollback_target, row_of, version_before
from registry.versions.projection import follow, pointer_in
from registry.versions.promoters import check_promoter, find_promoters

GATED = (PRODUCTION,)
RESERVED = re.compile(r"latest|v?\d+")

log = logging.getLogger(__name__)


class Transition(NamedTuple):
    """An alias's step from the promotion that is its head, None if it names nothing yet, to a version."""

    head: Promotion | None
    version: PromptVersion

    @property
    def changes(self) -> bool:
        """Whether the alias names another version afterwards."""
        return self.head is None or self.head.version != self.version.number


def promote(registry: Registry, task: Task, version: int, cause: Cause, alias: str = PRODUCTION) -> Promotion:
    """Let `alias` name the version; promoting what it names already returns the head.

    Raises PromotionRefused if the alias is gated and the version has no passed verdict over today's policy and
    champion (unless the cause overrides the gate), if people rejected it or too few approved it, if the task lets
    another alias name it first, if it is of another base model, or if its bytes are missing or altered;
    PromotionConflict if somebody moved the alias meanwhile; NotFound.
    A store or MLflow that lags behind is logged: the promotion stands, and `ptp reconcile` updates them.
    """
    transition = _find_transition(registry, task.name, version, alias)
    head = transition.head
    if head is None or transition.changes:
        [head] = commit(registry, [check_transition(registry, task, transition, cause, alias)])
        reached("promotion committed")
    follow(registry, head)
    return head


def _find_transition(registry: Registry, task: str, version: int, alias: str) -> Transition:
    """Return the step of an alias to that version. Raises NotFound if there is no such version, PromotionRefused if the
    alias names it already, but not for all requests.
    """
    wanted = registry.ledger.version(task, version)
    transition = Transition(registry.ledger.head(task, check_alias(alias)), wanted)
    head = transition.head
    if head and head.beside and not transition.changes:
        raise PromotionRefused(
            f"{task}@{alias}: it names version {version} already, with version {head.beside.version} beside it; "
            f"`ptp rollback {task} --alias {alias}` ends that"
        )
    return transition


def check_transition(registry: Registry, task: Task, transition: Transition, cause: Cause, alias: str) -> Move:
    """Return the move that the transition is, if it is allowed; raises as `promote` does."""
    head, wanted = transition
    check_cause(cause)
    check_ledger(registry, wanted.task, alias, head)
    check_order(registry, task, alias, wanted)
    check_base(task, check_bytes(registry, wanted))
    verdict, override = registry.ledger.latest_verdict(task.name, wanted.digest), False
    if alias in GATED:
        try:
            verdict = require_passed(registry, task, transition)
        except PromotionRefused as refusal:
            if not cause.override:
                raise
            log.warning("%s: the gate is overridden by %s (%s)", refusal, cause.actor, cause.reason)
            override = True
        check_people(registry, task, wanted, verdict, cause)
    move = _move(transition, alias, cause, verdict).model_copy(update={"override": override})
    if alias in GATED:
        check_promoter(task.promoters, f"{task.name}@{alias}", cause, override)
    reached("promotion checked")
    return move


def point(registry: Registry, version: PromptVersion, cause: Cause, alias: str) -> Promotion:
    """Let an alias without a gate name the version; for what has no task, such as a shared prompt.

    Raises PromotionRefused for a gated alias, or bytes that are missing or altered; PromotionConflict.
    """
    check_cause(cause)
    if check_alias(alias) in GATED:
        raise PromotionRefused(
            f"{version.task}@{alias}: this alias is gated, and {version.task} has no gate; take another alias"
        )
    transition = Transition(registry.ledger.head(version.task, alias), version)
    head = transition.head
    if head is None or transition.changes:
        check_ledger(registry, version.task, alias, head)
        check_bytes(registry, version)
        [head] = commit(registry, [_move(transition, alias, cause, None)])
    follow(registry, head)
    return head


def rollback(registry: Registry, task: str, cause: Cause, to: int | None = None, alias: str = PRODUCTION) -> Promotion:
    """Move `alias` back to the version before the one that it names, or to version `to`, which it named once.

    If a second version stands beside it, the alias names its own alone again. It never goes forward again. If the head
    is a rollback for the same cause, this only shows it to readers: nobody knows whether the one who asks saw that it
    ended, so only another cause, or `to`, goes further back. Raises
    PromotionRefused if there is nothing to go back to, if the alias never named `to`, or if its bytes are missing or
    altered; PromotionConflict; NotFound if there is no such alias.
    """
    history = registry.ledger.history(task, check_alias(alias))
    if not history:
        raise NotFound(f"{task}@{alias}: this alias was never promoted; there is nothing to roll back")
    head = history[-1]
    if to is None and head.beside is None and is_return(history) and _is_same_cause(head, cause):
        log.warning(
            "%s@%s: this rollback to version %d took place at %s (%s); another reason, or `--to N`, goes further back",
            task,
            alias,
            head.version,
            head.at,
            head.reason,
        )
        number = head.version
    else:
        number = head.version if head.beside and to is None else rollback_target(history, to)
    if number != head.version or head.beside:
        [head] = commit(registry, [_return_move(registry, history, number, cause)])
        reached("promotion committed")
    follow(registry, head)
    return head


def promote_release(registry: Registry, tasks: Mapping[str, Task], release: Release, cause: Cause) -> list[Promotion]:
    """Promote every version of the release to production: all of them in one transaction, or none.

    A version that production names already is left alone, and shown to readers if its promoter died before that; it is
    refused if another one stands beside it. Raises as `promote` does for the first version that is refused or lost.
    """
    check_cause(cause)
    check_release(registry, release)
    transitions = {
        task: _find_transition(registry, task, number, PRODUCTION) for task, number in sorted(release.versions.items())
    }
    moves = [
        check_transition(registry, tasks[task], transition, cause, PRODUCTION)
        for task, transition in transitions.items()
        if transition.changes
    ]
    return _append_release(registry, release, moves)


def rollback_release(registry: Registry, name: str, cause: Cause) -> list[Promotion]:
    """Move production of every task of the release back to what it named before the release: all of them, or none.

    Tasks whose production moved since are left alone. A repeat for the same cause finishes what was interrupted. Raises
    NotFound if there is no such release, PromotionRefused if no task's production comes from it any more, or if one
    named no version before.
    """
    check_cause(cause)
    release = registry.ledger.release(name)
    if release is None:
        raise NotFound(f"no release {name!r}; `ptp release list` shows all releases")
    moves, returned = [], []
    for task in sorted(release.versions):
        history = registry.ledger.history(task, PRODUCTION)
        # a rollback of the release bears its name too, but another version
        if history and (history[-1].release, history[-1].version) == (name, release.versions[task]):
            moves.append(_return_move(registry, history, version_before(history, name), cause))
        elif history and history[-1].release == name and _is_same_cause(history[-1], cause):
            returned.append(history[-1])
    if not (moves or returned):
        raise PromotionRefused(
            f"release {name!r}: no task's production comes from it any more; nothing was rolled back"
        )
    return _append_release(registry, release, moves) or returned


def _is_same_cause(row: Promotion, cause: Cause) -> bool:
    return (row.actor, row.reason) == (cause.actor, cause.reason)


def _append_release(registry: Registry, release: Release, moves: list[Move]) -> list[Promotion]:
    named = [move.model_copy(update={"release": release.name}) for move in moves]
    promotions = commit(registry, named, release)
    reached("release committed")
    try:
        write_release(registry.store, registry.ledger.release(release.name) or release)  # a repeat asks at another time
    except PtpError as error:
        log.warning("release %s is not in the store yet (%s); `ptp doctor --fix` mends it", release.name, error)
    for task in sorted(release.versions):
        if head := registry.ledger.head(task, PRODUCTION):
            follow(registry, head)
    return promotions


def _return_move(registry: Registry, history: list[Promotion], number: int, cause: Cause) -> Move:
    """Return the move of an alias back to a version that it named once, on the verdict that it had then."""
    head, wanted = history[-1], registry.ledger.version(history[-1].task, number)
    check_cause(cause)
    check_ledger(registry, head.task, head.alias, head)
    check_bytes(registry, wanted)
    earlier = row_of(history, number)
    verdict = registry.ledger.verdict(earlier.verdict) if earlier.verdict else None
    move = _move(Transition(head, wanted), head.alias, cause, verdict)
    move = move.model_copy(update={"override": earlier.override})
    if head.alias in GATED:
        check_promoter(find_promoters(registry, head.task), f"{head.task}@{head.alias}", cause, earlier.override)
    return move


def check_alias(alias: str) -> str:
    """Return `alias` itself; PromotionRefused if it is malformed, or means something else already."""
    if not is_name(alias) or RESERVED.fullmatch(alias):
        raise PromotionRefused(
            f"alias {alias!r}: expected lower-case letters, digits and dashes, and neither `latest` nor a "
            "number such as 3 or v3"
        )
    return alias


def check_bytes(registry: Registry, version: PromptVersion) -> PromptManifest:
    """Return the manifest of the version, all of whose bytes are intact, an ensemble's members too; else
    PromotionRefused.
    """
    if version.collected:
        raise PromotionRefused(collected_sentence(version.task, version.digest))
    try:
        artifact = read_artifact(registry.store, version.task, version.digest)
        read_ensemble(registry.store, artifact)
    except (ArtifactError, NotFound) as error:
        raise PromotionRefused(
            f"{version.task} version {version.number} cannot be served: {error}; `ptp doctor` shows what is damaged"
        ) from error
    return artifact.manifest


def check_ledger(registry: Registry, task: str, alias: str, head: Promotion | None) -> None:
    """Raise PromotionRefused if the store knows a promotion that the ledger does not: a ledger that was restored from
    an older backup would give its number to another promotion.

    The history is written before the pointer, so a process that was killed in between leaves the one without the other.
    """
    seq = head.seq if head else 0
    try:
        pointed = pointer_in(registry.store.read(pointer_key(task, alias)).body)
    except (NotFound, ArtifactError):  # nobody believes it
        pointed = None
    known = seq
    if pointed and pointed.seq > seq:
        known = pointed.seq
    elif holds(registry.store, history_key(task, alias, seq + 1)):
        known = seq + 1
    if known > seq and registry.ledger.promotion(task, alias, known) is None:
        raise PromotionRefused(
            f"{task}@{alias}: the store knows promotion {known} of it, the ledger only {seq or 'none'}; was it "
            "restored from an older backup? `ptp doctor --rebuild-ledger` adds what it lost"
        )


def check_release(registry: Registry, release: Release) -> None:
    """Check a release before anything is judged for it.

    Raises PromotionRefused if its name is malformed, or if the ledger lost a release of that name; PromotionConflict if
    the name stands for another set.
    """
    if not is_name(release.name):
        raise PromotionRefused(f"release {release.name!r}: expected lower-case letters, digits and dashes")
    known = registry.ledger.release(release.name)
    if known is None and holds(registry.store, release_key(release.name)):
        raise PromotionRefused(
            f"release {release.name!r}: the store holds it, the ledger does not; was it restored from an older "
            "backup? `ptp doctor --rebuild-ledger` adds what it lost"
        )
    if known is not None and known.versions != release.versions:
        raise release_conflict(known)


def check_base(task: Task, manifest: PromptManifest) -> None:
    if manifest.base_model.name != task.base_model:
        raise PromotionRefused(
            f"{task.name}: the version was trained for base model {manifest.base_model.name}, the task file "
            f"names {task.base_model}; train again: `ptp run {task.name}`"
        )


def require_passed(registry: Registry, task: Task, transition: Transition) -> Verdict:
    """Return the newest verdict over today's policy and champion; PromotionRefused unless it passed."""
    head, version = transition
    champion, where = head.digest if head else None, f"{task.name} version {version.number}"
    verdicts = registry.ledger.verdicts(task.name, version.digest)
    current = [
        verdict for verdict in verdicts if verdict.policy == task.policy_digest() and verdict.champion == champion
    ]
    if not verdicts:
        raise PromotionRefused(f"{where}: the gate has not judged it; judge it first: `ptp run {task.name}`")
    if not current:
        changed = "the task's gate policy" if verdicts[0].policy != task.policy_digest() else "the champion"
        raise PromotionRefused(
            f"{where}: {changed} changed since it was judged; judge it again first: `ptp run {task.name}`"
        )
    if not current[0].passed:
        raise PromotionRefused(
            f"{where}: it failed the gate ({describe_failures(current[0])}); correct data or recipe and `ptp run "
            f"{task.name}`, or promote anyway with --override (recorded permanently)"
        )
    return current[0]


def _move(transition: Transition, alias: str, cause: Cause, verdict: Verdict | None) -> Move:
    head, version = transition
    return Move(
        task=version.task,
        alias=alias,
        version=version.number,
        actor=cause.actor,
        reason=cause.reason,
        expected=head.seq if head else 0,
        verdict=verdict.verdict_digest() if verdict else None,
    )
