"""Verbs of `ptp` over the registry: what is registered, and what an alias names and why."""

import re
import sys
from typing import Annotated, Any

import typer

from flows.cli.app import (
    NO,
    Alias,
    Json,
    OptionalTask,
    Reason,
    Reference,
    Reveal,
    TaskName,
    app,
    check_task,
    find_kept,
    find_version,
    name_cause,
    open_context,
    open_registry,
    spend_look,
)
from flows.cli.terminal import say
from ptpipeline.errors import PromotionRefused, SettingsError
from ptpipeline.records.versions import PRODUCTION, Promotion

Override = Annotated[bool, typer.Option("--override", help="Promote against the gate; the history keeps it forever.")]

releases = typer.Typer(
    name="release",
    help="Promote or roll back several tasks together.",
    no_args_is_help=True,
)
app.add_typer(releases)


@app.command()
def versions(
    task: OptionalTask = None,
    limit: Annotated[int, typer.Option(min=1, max=10**9, help="Show at most this many.")] = 100,
    offset: Annotated[int, typer.Option(min=0, max=10**9, help="Skip this many first.")] = 0,
    as_json: Json = False,
) -> None:
    """List the registered versions, newest first.

    Each is listed with its verdict and aliases.
    """
    from flows.cli.render import print_table

    registry = open_registry()
    task = check_task(registry, task)
    aliases: dict[tuple[str, int], list[str]] = {}
    for head in registry.ledger.heads(task):
        aliases.setdefault((head.task, head.version), []).append(head.alias)
    rows = [
        {
            "task": version.task,
            "version": version.number,
            "digest": version.digest if as_json else version.digest[:12],
            "verdict": {None: "not gated", True: "passed", False: "failed"}[version.passed],
            "bytes": "collected" if version.collected else "",
            "aliases": ", ".join(aliases.get((version.task, version.number), [])),
            "registered": version.registered_at,
        }
        for version in registry.ledger.versions(task, limit, offset)
    ]
    print_table(rows, as_json, "nothing is registered yet; `ptp run TASK` trains and registers a version")


@app.command()
def show(reference: Reference, reveal: Reveal = False, as_json: Json = False) -> None:
    """Show one version: manifest, training, report and verdict."""
    from flows.cli.render import VersionDetails, print_version
    from ptpipeline.prompts.artifact import read_artifact

    registry = open_registry(writing=reveal)
    task, number = find_version(registry, reference)
    version = find_kept(registry, task, number)
    if reveal:
        spend_look(version)
    report, verdict = registry.ledger.disclosed(task, version.digest)
    publication = registry.ledger.publication(task, version.digest)
    details = VersionDetails(
        version=version,
        manifest=read_artifact(registry.store, task, version.digest).manifest,
        training=publication.tuned if publication else None,
        report=report,
        verdict=verdict,
    )
    print_version(details, as_json)


@app.command()
def history(
    task: TaskName,
    alias: Annotated[str | None, typer.Option("--alias", help="Only this alias.")] = None,
    as_json: Json = False,
) -> None:
    """Show who moved an alias, when and why.

    Each move is listed with the previous version and the verdict that allowed it.
    """
    from flows.cli.render import print_table

    registry = open_registry()
    rows = [
        {
            "alias": promotion.alias,
            "seq": promotion.seq,
            "version": promotion.version,
            "previous": promotion.previous,
            "actor": promotion.actor,
            "at": promotion.at,
            "reason": promotion.reason,
            "verdict": promotion.verdict if as_json or promotion.verdict is None else promotion.verdict[:12],
            **_describe_beside(promotion, as_json),
            "override": promotion.override if as_json else "OVERRIDE" if promotion.override else "",
            "release": promotion.release if as_json else promotion.release or "",
        }
        for promotion in registry.ledger.history(str(check_task(registry, task)), alias)
    ]
    print_table(rows, as_json, "no alias has moved yet")


@app.command()
def promote(
    reference: Annotated[
        str,
        typer.Argument(metavar="TASK@N", help="The version to promote; TASK@ALIAS is the one that this alias names."),
    ],
    reason: Reason,
    alias: Alias = PRODUCTION,
    override: Override = False,
    canary: Annotated[
        str | None,
        typer.Option("--canary", metavar="PERCENT", help="Let it answer only this share of the requests, such as 10%."),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Let servers ask it too and only compare its answers; no gate is asked.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Let the version that stands beside the alias's own take its place.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let an alias name a version.

    `production` takes only a version that passed the gate against the current champion, unless
    --override is given. With --canary or --shadow the alias names a second version beside its own.
    """
    from flows.cli.render import print_record
    from flows.stages.promote import move

    beside = _read_share(canary, shadow, full)
    context = open_context()
    task, number = find_version(context.registry, reference)
    before = context.registry.ledger.head(task, alias)
    if full and (
        before is None or (before.version != number and (not before.beside or before.beside.version != number))
    ):
        raise PromotionRefused(
            f"{task}@{alias}: version {number} does not stand beside it; --full takes the version of --canary or "
            "--shadow, and any other is promoted without it"
        )
    promotion = move(context, task, alias, number, name_cause(context.registry, reason, override), beside)
    _warn_if_unmoved(before, promotion)
    print_record(promotion, as_json)


@app.command()
def rollback(
    task: TaskName,
    reason: Reason,
    to: Annotated[
        int | None,
        typer.Option(
            "--to", min=1, max=10**9, help="A version that the alias once named; by default the previous one."
        ),
    ] = None,
    alias: Alias = PRODUCTION,
    as_json: Json = False,
) -> None:
    """Let an alias name its previous version again."""
    from flows.cli.render import print_record
    from registry.versions.promotion import rollback as roll_back

    registry = open_registry(writing=True)
    check_task(registry, task)
    before = registry.ledger.head(task, alias)
    promotion = roll_back(registry, task, name_cause(registry, reason), to, alias)
    _warn_if_unmoved(before, promotion)
    print_record(promotion, as_json)


@app.command()
def sign(
    reference: Annotated[
        str, typer.Argument(metavar="TASK[@ALIAS|@N]", help="A task with all that is known of it, or one version.")
    ],
    as_json: Json = False,
) -> None:
    """Sign what bears no signature, or one of another key.

    Of a task all that the ledger knows: versions, history, pointers, snapshots and releases. Of a version its prompt,
    number and what lies beside the prompt. All bytes are first held against the ledger. PTP_SIGNING_KEY names the file
    of the key.
    """
    from flows.cli.render import print_table
    from ptpipeline.storage.signed import SignedStore
    from registry.versions.sign import sign_task, sign_version

    registry = open_registry(writing=True)
    if not isinstance(registry.store, SignedStore) or registry.store.key is None:
        raise SettingsError(
            "PTP_SIGNING_KEY is not set; set it to the PEM file of an Ed25519 private key (docs/signing.md)"
        )
    if "@" in reference:
        version = registry.ledger.version(*find_version(registry, reference))
        actions = sign_version(registry, registry.store, version)
    else:
        actions = sign_task(registry, registry.store, str(check_task(registry, reference)))
    print_table(actions, as_json)
    if not all(action.done for action in actions):
        raise typer.Exit(NO)


@releases.command("promote")
def promote_release(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for the release; no other release may have it.")],
    references: Annotated[list[str], typer.Argument(metavar="TASK@N", help="One version of each task.")],
    reason: Reason,
    override: Override = False,
    as_json: Json = False,
) -> None:
    """Let production of these tasks name these versions, all or none."""
    from flows.cli.render import print_table
    from flows.stages.promote import move_release

    context = open_context()
    named = [find_version(context.registry, reference) for reference in references]
    versions = dict(named)
    if len(versions) < len(named):
        raise PromotionRefused(
            f"release {name!r}: {', '.join(references)} name a task twice; a release holds one version of each"
        )
    cause = name_cause(context.registry, reason, override)
    print_table(move_release(context, name, versions, cause), as_json)


@releases.command("rollback")
def rollback_release(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the release.")],
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Let production name again what it named before the release."""
    from flows.cli.render import print_table
    from registry.versions.promotion import rollback_release as roll_back

    registry = open_registry(writing=True)
    print_table(roll_back(registry, name, name_cause(registry, reason)), as_json)


@releases.command("list")
def list_releases(as_json: Json = False) -> None:
    """List the releases, newest first."""
    from flows.cli.render import print_table

    rows = [
        {
            "release": release.name,
            "versions": release.versions
            if as_json
            else ", ".join(f"{task}@{number}" for task, number in release.versions.items()),
            "actor": release.actor,
            "at": release.at,
            "reason": release.reason,
        }
        for release in open_registry().ledger.releases()
    ]
    print_table(rows, as_json, "no releases yet")


def _describe_beside(promotion: Promotion, as_json: bool) -> dict[str, Any]:
    """Return which version stood beside the promoted one, as a field of the history; none if there was none."""
    beside = promotion.beside
    if beside is None:
        return {}
    words = f"{beside.version} as shadow" if beside.is_shadow else f"{beside.version} at {beside.percent}%"
    return {"beside": beside.to_json() if as_json else words}


def _read_share(canary: str | None, shadow: bool, full: bool) -> int | None:
    """Return the percent of the requests that the version is to answer; None for all of them, by its alias alone.

    Raises PromotionRefused if more than one way is given, or the share is no whole number from 1% to 99%.
    """
    if (canary is not None) + shadow + full > 1:
        raise PromotionRefused("--canary, --shadow and --full exclude each other; give one of them")
    if canary is None:
        return 0 if shadow else None
    share = re.fullmatch(r"([1-9][0-9]?)%?", canary)
    if share is None:
        raise PromotionRefused(f"--canary {canary[:40]!r}: expected a whole number from 1% to 99%, such as 10%")
    return int(share[1])


def _warn_if_unmoved(before: Promotion | None, promotion: Promotion) -> None:
    """Tell that the alias named the version already, so that the printed row is an older one with its own reason."""
    if before == promotion:
        say(
            f"{promotion.task}@{promotion.alias} names version {promotion.version} already, since the move printed "
            "below; nothing was added to the history",
            sys.stderr,
        )
