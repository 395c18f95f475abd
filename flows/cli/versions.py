"""The verbs of `ptp` over the registry: what is registered, what an alias names and why, what has to be mended."""

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import (
    NO,
    Alias,
    Json,
    Reason,
    Reference,
    SomeTask,
    TaskName,
    app,
    known_task,
    numbered,
    open_registry,
    open_stages,
    read_text,
    sound,
)
from ptpipeline.errors import NotFound, PromotionRefused, SettingsError
from ptpipeline.records import PRODUCTION, Promotion

if TYPE_CHECKING:
    from registry.repair.difference import Difference

Override = Annotated[
    bool, typer.Option("--override", help="Promote against the gate; it stands in the history for ever.")
]

releases = typer.Typer(
    name="release",
    help="Promote or roll back versions of several tasks together, all of them or none.",
    no_args_is_help=True,
)
app.add_typer(releases)


@app.command()
def versions(
    task: SomeTask = None,
    limit: Annotated[int, typer.Option(min=1, max=10**9, help="At most so many.")] = 100,
    offset: Annotated[int, typer.Option(min=0, max=10**9, help="Leave out the first ones.")] = 0,
    as_json: Json = False,
) -> None:
    """The registered versions, newest first, with verdict and aliases."""
    from flows.cli.render import show

    registry = open_registry()
    task = known_task(registry, task)
    aliases: dict[tuple[str, int], list[str]] = {}
    for head in registry.ledger.heads(task):
        aliases.setdefault((head.task, head.version), []).append(head.alias)
    show(
        [
            {
                "task": v.task,
                "version": v.number,
                "digest": v.digest if as_json else v.digest[:12],
                "verdict": _verdict(v.passed),
                "bytes": "collected" if v.collected else "",
                "aliases": ", ".join(aliases.get((v.task, v.number), [])),
                "registered": v.registered_at,
            }
            for v in registry.ledger.versions(task, limit, offset)
        ],
        as_json,
    )


@app.command()
def show(reference: Reference, as_json: Json = False) -> None:
    """One version: manifest, training, report and verdict, check by check."""
    from flows.cli.render import show_version
    from ptpipeline.prompts.artifact import read_artifact
    from registry.ledger.tombstone import collected_sentence

    registry = open_registry()
    task, number = numbered(registry, reference)
    version = registry.ledger.version(task, number)
    if version.collected:
        raise NotFound(collected_sentence(task, version.digest))
    manifest = read_artifact(registry.store, task, version.digest).manifest
    publication = registry.ledger.publication(task, version.digest)
    judged = registry.ledger.report_of(task, version.digest), registry.ledger.latest_verdict(task, version.digest)
    show_version(version, manifest, publication.tuned if publication else None, judged, as_json)


@app.command()
def history(
    task: TaskName,
    alias: Annotated[str | None, typer.Option("--alias", help="Only this alias.")] = None,
    as_json: Json = False,
) -> None:
    """Who moved an alias when, from what to what, why, and on which verdict."""
    from flows.cli.render import show

    registry = open_registry()
    rows = registry.ledger.history(str(known_task(registry, task)), alias)
    show(
        [
            {
                "alias": p.alias,
                "seq": p.seq,
                "version": p.version,
                "previous": p.previous,
                "actor": p.actor,
                "at": p.at,
                "reason": p.reason,
                "verdict": (p.verdict if as_json else p.verdict[:12]) if p.verdict else None,
                "override": p.override if as_json else "OVERRIDE" if p.override else "",
                "release": p.release if as_json else p.release or "",
            }
            for p in rows
        ],
        as_json,
    )


@app.command()
def promote(
    reference: Annotated[
        str, typer.Argument(metavar="TASK@N", help="The version to promote; TASK@ALIAS is the one that alias names.")
    ],
    reason: Reason,
    alias: Alias = PRODUCTION,
    override: Override = False,
    as_json: Json = False,
) -> None:
    """Let an alias name a version; `production` takes only what passed today's gate."""
    from flows.cli.render import show_record
    from flows.stages.release import move
    from registry.versions.promotion import Cause

    stages = open_stages()
    task, number = numbered(stages.registry, reference)
    before = stages.registry.ledger.head(task, alias)
    promotion = move(stages, task, alias, number, Cause(getpass.getuser(), reason, override))
    _say_unmoved(before, promotion)
    show_record(promotion, as_json)


@app.command()
def rollback(
    task: TaskName,
    reason: Reason,
    to: Annotated[
        int | None,
        typer.Option("--to", min=1, max=10**9, help="A version that the alias named once; the previous by default."),
    ] = None,
    alias: Alias = PRODUCTION,
    as_json: Json = False,
) -> None:
    """Let an alias name again what it named before."""
    from flows.cli.render import show_record
    from registry.versions.promotion import Cause
    from registry.versions.promotion import rollback as roll_back

    registry = open_registry(writing=True)
    before = registry.ledger.head(task, alias)
    promotion = roll_back(registry, task, Cause(getpass.getuser(), reason), to, alias)
    _say_unmoved(before, promotion)
    show_record(promotion, as_json)


@app.command()
def sign(reference: Reference, as_json: Json = False) -> None:
    """Sign a version that was registered without a signature, with PTP_SIGNING_KEY, after its bytes are verified."""
    from flows.cli.render import show
    from ptpipeline.prompts.signature import read_signing_key
    from ptpipeline.prompts.signature import sign as sign_prompt
    from ptpipeline.settings import load_settings

    settings, registry = load_settings(), open_registry(writing=True)
    if settings.signing_key is None:
        raise SettingsError("PTP_SIGNING_KEY is not set; name the PEM file of an Ed25519 private key (docs/signing.md)")
    task, number = numbered(registry, reference)
    digests = sign_prompt(
        registry.store, task, registry.ledger.version(task, number).digest, read_signing_key(settings.signing_key)
    )
    show([{"task": task, "version": number, "signed": digest} for digest in digests], as_json)


@releases.command("promote")
def promote_release(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for the set, unique for ever.")],
    references: Annotated[list[str], typer.Argument(metavar="TASK@N...", help="One version of each task.")],
    reason: Reason,
    override: Override = False,
    as_json: Json = False,
) -> None:
    """Let production of all these tasks name these versions, in one transaction."""
    from flows.cli.render import show
    from flows.stages.release import move_release
    from registry.versions.promotion import Cause

    stages = open_stages()
    named = [numbered(stages.registry, reference) for reference in references]
    versions = dict(named)
    if len(versions) < len(named):
        raise PromotionRefused(
            f"release {name!r}: {', '.join(references)} name a task twice; a release holds one version of each"
        )
    show(move_release(stages, name, versions, Cause(getpass.getuser(), reason, override)), as_json)


@releases.command("rollback")
def rollback_release(
    name: Annotated[str, typer.Argument(metavar="NAME")], reason: Reason, as_json: Json = False
) -> None:
    """Let production of every task of the release name again what it named before."""
    from flows.cli.render import show
    from registry.versions.promotion import Cause
    from registry.versions.promotion import rollback_release as roll_back

    show(roll_back(open_registry(writing=True), name, Cause(getpass.getuser(), reason)), as_json)


@releases.command("list")
def list_releases(as_json: Json = False) -> None:
    """The release sets, newest first."""
    from flows.cli.render import show

    show(
        [
            {
                "release": r.name,
                "versions": r.versions if as_json else ", ".join(f"{task}@{n}" for task, n in r.versions.items()),
                "actor": r.actor,
                "at": r.at,
                "reason": r.reason,
            }
            for r in open_registry().ledger.releases()
        ],
        as_json,
    )


@app.command()
def reconcile(task: SomeTask = None, as_json: Json = False) -> None:
    """Bring pointers and MLflow to what the ledger says."""
    from flows.cli.render import show
    from registry.repair.reconcile import reconcile as replay

    registry = open_registry(writing=True)
    show(replay(registry, sound(), known_task(registry, task)), as_json, "nothing to do")


@app.command()
def doctor(
    task: SomeTask = None,
    mend: Annotated[bool, typer.Option("--fix", help="Mend what needs no person.")] = False,
    rebuild_ledger: Annotated[
        bool,
        typer.Option("--rebuild-ledger", help="First add to the ledger what the store proves and it does not know."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare ledger, pointers, MLflow and stored bytes; each difference comes with the command that mends it."""
    from flows.cli.render import show
    from registry.repair.doctor import examine
    from registry.repair.mend import fix
    from registry.repair.rebuild import rebuild

    registry = open_registry(writing=mend or rebuild_ledger)
    actions = rebuild(registry) if rebuild_ledger else []
    found = examine(registry, task)
    if mend and found:
        actions += fix(registry, sound(), found)
        found = examine(registry, task)
    for action in actions:
        print(f"{action.task}: {action.what}", file=sys.stderr)
    show([item if as_json else _for_people(item) for item in found], as_json, "no differences")
    if found or not all(action.done for action in actions):
        raise typer.Exit(NO)


@app.command()
def lineage(
    reference: Annotated[
        str | None, typer.Argument(metavar="[TASK[@ALIAS|@N]]", help="From a version to what it was made from.")
    ] = None,
    row: Annotated[
        str | None,
        typer.Option("--row", metavar="ID", help="From a row, by its id, to every version that learnt from it."),
    ] = None,
    text_file: Annotated[
        Path | None,
        typer.Option("--text-file", metavar="FILE", help="The same by the row's text, which stands in a file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Where a version comes from, or what learnt from a row, and what to do when that row must go."""
    from flows.cli.render import show, show_lineage
    from registry.lineage.trace import plan_erasure, row_id, trace_row, trace_version

    if [reference, row, text_file].count(None) != 2:
        raise typer.BadParameter("give a version, or --row, or --text-file")
    registry = open_registry()
    if reference is not None:
        show_lineage(trace_version(registry, *numbered(registry, reference)), as_json)
        return
    found = trace_row(registry, row_id(read_text(text_file)) if text_file is not None else str(row))
    show(found, as_json, "nothing that is stored learnt from this row")
    for step in plan_erasure(found):
        print(step, file=sys.stderr)


@app.command()
def gc(
    task: SomeTask = None,
    keep: Annotated[
        int,
        typer.Option(
            "--keep", min=1, metavar="N", help="Keep so many newest versions of each task beside what is in use."
        ),
    ] = 10,
    grace: Annotated[float, typer.Option("--grace", min=0, metavar="HOURS", help="Keep what is younger.")] = 24,
    apply: Annotated[bool, typer.Option("--apply", help="Delete; without it only what would go is listed.")] = False,
    as_json: Json = False,
) -> None:
    """Collect what nothing needs: old candidates, orphans, snapshots and checkpoints; production's history stays."""
    from datetime import timedelta

    from flows.cli.render import show
    from registry.garbage.collect import collect
    from registry.garbage.roots import Retention

    registry = open_registry(writing=apply)
    found = collect(
        registry, Retention(candidates=keep, grace=timedelta(hours=grace)), apply, known_task(registry, task)
    )
    show(found, as_json, "nothing to collect")
    if not apply and found:
        print(
            f"{len(found)} would go, {sum(item.bytes for item in found):,} bytes; `--apply` deletes them",
            file=sys.stderr,
        )


def _say_unmoved(before: Promotion | None, promotion: Promotion) -> None:
    """The row shown is an older one, with another reason, where the alias named the version already."""
    if before == promotion:
        print(
            f"{promotion.task}@{promotion.alias} names version {promotion.version} already, by the row below; "
            "the history got no new one",
            file=sys.stderr,
        )


def _for_people(found: "Difference") -> dict[str, object]:
    shown: dict[str, object] = found.to_json()
    return {name: value for name, value in shown.items() if name != "safe"} | {"--fix mends it": found.safe}


def _verdict(passed: bool | None) -> str:
    return {None: "not gated", True: "passed", False: "failed"}[passed]
