"""Traces a version to its rows, and a row to every version that learnt from it: itself, or through what it descends
from.

A row is known by its id, the hash of its normalised text; no text is ever part of an answer.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Literal, NamedTuple

from ptpipeline.data.rows import normalise_fields
from ptpipeline.data.snapshot import load_split
from ptpipeline.errors import ArtifactError, DataError, NotFound
from ptpipeline.records.base import Record
from ptpipeline.records.data import Snapshot, Split
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import Promotion
from ptpipeline.task.template import Fields
from registry.ledger.usage import Name
from registry.lineage.ancestry import Relation, is_shared
from registry.lineage.graph import Graph, read_graph
from registry.listing import ask_all
from registry.registry import Registry

Seen = Literal["train", "dev", "unknown"]

SEEN: tuple[Seen, ...] = ("train", "dev", "unknown")  # what is certain before what cannot be ruled out
LEARNT_FROM: tuple[Split, ...] = ("train", "dev")

_ROW = re.compile(r"([0-9a-f]{16})(-[1-9]\d*)?")


class Origin(Record):
    """What a prompt was made from.

    `snapshots` are those of its own rows: one, or those of its sources if it is a shared prompt; none if they are not
    known any more. `parents` are what it descends from or consists of: digest -> what it is to this prompt.
    """

    task: str
    digest: str
    version: int | None
    manifest: PromptManifest | None
    snapshots: list[Snapshot]
    run: str | None
    commit: str | None
    parents: dict[str, Relation]


class Lineage(Record):
    """Where a version comes from, how it was measured and judged (as people may see it), and its promotions.

    `origins` begin with its own; each prompt that it descends from follows once.
    """

    origins: list[Origin]
    report: Report | None
    verdict: Verdict | None
    promotions: list[Promotion]


class Exposure(Record):
    """A version that learnt from a row.

    `seen` is `train` if it was trained on the row, `dev` if its checkpoint was chosen on it, `unknown` if it cannot be
    ruled out, because the rows that it saw are not stored any more or cannot be read. `via` is the way from the version
    to the prompt that saw the row, as `relation task@number`; empty if it saw the row itself. `aliases` and `releases`
    are those that name it now. `source` is where its rows came from; a `shared` prompt has the rows of its source
    tasks.
    """

    task: str
    version: int | None
    digest: str
    seen: Seen
    via: list[str]
    aliases: list[str]
    releases: list[str]
    source: str | None
    shared: bool
    collected: bool


class _Learnt(NamedTuple):
    """How a prompt saw the row, and the way to the prompt that saw it."""

    seen: Seen
    via: list[str]


def trace_version(registry: Registry, task: str, number: int) -> Lineage:
    """Return where that version comes from, with the origins of all that it descends from.

    Raises NotFound if there is no such version, ArtifactError if a manifest is altered, ServiceUnavailable.
    """
    version, ledger, graph = registry.ledger.version(task, number), registry.ledger, read_graph(registry)
    origins, todo = dict[Name, Origin](), [Name(task, version.digest)]
    while todo:
        name = todo.pop(0)
        if name not in origins:
            origins[name] = _origin(registry, graph, name)
            todo += [parent.name for parent in graph.parents(name)]
    promotions = [row for row in ledger.history(task) if row.version == number]
    report, verdict = ledger.disclosed(task, version.digest)
    return Lineage(origins=list(origins.values()), report=report, verdict=verdict, promotions=promotions)


def row_id(fields: Fields) -> str:
    """Return the id of the row with these fields, as snapshots write it."""
    return hashlib.sha256(normalise_fields(fields).encode()).hexdigest()[:16]


def trace_row(registry: Registry, row: str) -> list[Exposure]:
    """Return every version that learnt from the row of that id, parents before those that descend from them.

    Rows of equal normalised text (`-2`, `-3`) count as one. Raises DataError if `row` is no id, ArtifactError if a
    manifest is altered, ServiceUnavailable.
    """
    match = _ROW.fullmatch(row)
    if match is None:
        raise DataError(
            f"{len(row)} characters that are no row's id: expected one of a snapshot, 16 hex digits such as "
            "0123456789abcdef; --text-file finds the id of a text"
        )
    graph = read_graph(registry)
    exposed = _find_exposed(graph, _hits(registry, graph, match[1]))
    aliases: dict[Name, list[str]] = {}
    for head in registry.ledger.heads():
        aliases.setdefault(Name(head.task, head.digest), []).append(head.alias)
    releases: dict[Name, list[str]] = {}
    for release in registry.ledger.releases():
        for name in exposed:
            if release.versions.get(name.task, 0) == graph.versions.get(name):
                releases.setdefault(name, []).append(release.name)
    return [
        _exposure(graph, name, learnt, aliases.get(name, []), releases.get(name, []))
        for name, learnt in exposed.items()
    ]


def plan_erasure(exposures: Iterable[Exposure]) -> list[str]:
    """Return what to do so that nothing in use has learnt from the row: a sentence per task, in the order of work."""
    by_task: dict[str, list[Exposure]] = {}
    for exposure in exposures:
        by_task.setdefault(exposure.task, []).append(exposure)
    after = {
        task: {other for item in learners for other in _tasks_in(item.via)} & by_task.keys() - {task}
        for task, learners in by_task.items()
    }
    try:
        order = list(TopologicalSorter({task: sorted(after[task]) for task in sorted(after)}).static_order())
    except CycleError:  # each once started from the other: no order is right for both
        order = sorted(after)
    sentences = [f"{task}: {_how_to_erase(task, by_task[task], sorted(after[task]))}" for task in order]
    last = "then `ptp gc` deletes the versions and snapshots that nothing needs any more"
    return [*sentences, last] if sentences else []


def _how_to_erase(task: str, learners: list[Exposure], after: list[str]) -> str:
    source = next((item.source for item in learners if item.source), None)
    if any(item.shared for item in learners):
        remedy = "delete the row from the data of its source tasks; `ptp run` of a task that starts from it retrains it"
    elif any(_tasks_in(item.via) <= {task} for item in learners):
        place = f" ({source})" if source else ""
        remedy = f"delete the row from its source{place}; `ptp run {task}`, then promote what passes"
    else:
        remedy = f"after new versions of {', '.join(after)}, `ptp run {task}`, then promote what passes"
    cold = (
        "; first let tune.init name none of these versions, nor a champion among them"
        if any(link.startswith("start ") for item in learners for link in item.via)
        else ""
    )
    numbers = ", ".join(map(str, sorted(item.version for item in learners if item.version)))
    now = ", ".join(f"{alias} is version {item.version}" for item in learners for alias in item.aliases)
    return f"{remedy}{cold}. Learnt from it: versions {numbers or 'none'}; {now or 'no alias names one of them'}"


def _tasks_in(via: Iterable[str]) -> set[str]:
    return {link.rsplit(" ", 1)[-1].split("@")[0] for link in via}


def _origin(registry: Registry, graph: Graph, name: Name) -> Origin:
    publication = registry.ledger.publication(*name)
    return Origin(
        task=name.task,
        digest=name.digest,
        version=graph.versions.get(name),
        manifest=graph.manifests.get(name),
        snapshots=[graph.records[snapshot] for snapshot in graph.find_seen(name) if snapshot in graph.records],
        run=publication.tuned.tracking_run if publication else None,
        commit=publication.commit if publication else None,
        parents={parent.name.digest: parent.relation for parent in graph.parents(name)},
    )


# ---------------------------------------------------------------- who learnt from it


def _hits(registry: Registry, graph: Graph, row: str) -> dict[Name, Seen | None]:
    """For each stored snapshot whether the row is in what is learnt from; each split is read once."""
    return ask_all(lambda name: _hit(registry, graph.records[name], row), graph.records)


def _hit(registry: Registry, snapshot: Snapshot, row: str) -> Seen | None:
    for split in LEARNT_FROM:
        try:
            rows = load_split(registry.store, snapshot, split)
        except (ArtifactError, NotFound):
            return "unknown"
        if any(other.id.split("-")[0] == row for other in rows):
            return "train" if split == "train" else "dev"
    return None


def _find_exposed(graph: Graph, hits: Mapping[Name, Seen | None]) -> dict[Name, _Learnt]:
    """The prompts that learnt from the row, parents first."""
    names = sorted(graph.manifests.keys() | graph.versions.keys())
    parents = {name: graph.parents(name) for name in names}
    ancestry = {name: [parent.name for parent in parents[name]] for name in names}
    exposed: dict[Name, _Learnt] = {}
    for name in TopologicalSorter(ancestry).static_order():
        learnt = _find_learnt(graph, hits, name)
        for relation, parent in parents.get(name, []):
            if parent in exposed:
                link = f"{relation} {_label(graph, parent)}"
                learnt.append(_Learnt(exposed[parent].seen, [link, *exposed[parent].via]))
        if learnt:
            exposed[name] = min(learnt, key=lambda item: (SEEN.index(item.seen), len(item.via)))
    return exposed


def _find_learnt(graph: Graph, hits: Mapping[Name, Seen | None], name: Name) -> list[_Learnt]:
    """What the prompt's own rows say; `unknown` if it was imported or if its snapshot is gone.

    So is what it descends from if its manifest was lost; the garbage collection deletes none that another descends
    from.
    """
    own = [] if graph.is_imported(name) else graph.find_seen(name)
    seen = [hits.get(snapshot, "unknown") for snapshot in own] or ["unknown"]
    if name not in graph.manifests and name not in graph.collected:
        seen.append("unknown")
    return [_Learnt(how, []) for how in seen if how]


def _exposure(graph: Graph, name: Name, learnt: _Learnt, aliases: list[str], releases: list[str]) -> Exposure:
    manifest = graph.manifests.get(name)
    return Exposure(
        task=name.task,
        version=graph.versions.get(name),
        digest=name.digest,
        seen=learnt.seen,
        via=learnt.via,
        aliases=aliases,
        releases=releases,
        source=graph.source(name),
        shared=manifest is not None and is_shared(manifest),
        collected=name in graph.collected,
    )


def _label(graph: Graph, name: Name) -> str:
    return f"{name.task}@{graph.versions.get(name, name.digest[:12])}"
