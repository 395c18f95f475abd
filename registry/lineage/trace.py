"""From a version to its rows, and from a row to every version that learnt from it: directly, or through what it
descends from.

A row is known by its id, the hash of its normalised text; no text is ever part of an answer.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Literal

from ptpipeline.data.rows import normalised
from ptpipeline.data.snapshot import load_split
from ptpipeline.errors import ArtifactError, DataError, NotFound
from ptpipeline.records import (
    PRODUCTION,
    Promotion,
    PromptManifest,
    Record,
    Report,
    Snapshot,
    Split,
    Verdict,
)
from registry.ledger.usage import Name
from registry.lineage.ancestry import Relation, is_shared
from registry.lineage.graph import Graph, read_graph
from registry.listing import ask_all
from registry.registry import Registry

Seen = Literal["train", "dev", "unknown"]
Learnt = tuple[Seen, list[str]]

SEEN: tuple[Seen, ...] = ("train", "dev", "unknown")

LEARNT_FROM: tuple[Split, ...] = ("train", "dev")

_ROW = re.compile(r"([0-9a-f]{16})(-[1-9]\d*)?")


class Origin(Record):
    """What a prompt was made from.

    `snapshots` are those of its own rows: one, or of a shared prompt its sources'; empty where they are not known any
    more. `parents` are the digests of what it descends from or consists of, with what each is to it.
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
    """Where a version comes from, what it was found worth, and where it was promoted to.

    `origins` begin with its own; each prompt that it descends from follows once.
    """

    origins: list[Origin]
    report: Report | None
    verdict: Verdict | None
    promotions: list[Promotion]


class Exposure(Record):
    """A version that learnt from a row.

    `seen`: `train` where it was trained on the row, `dev` where its checkpoint was chosen on it, `unknown` where the
    rows that it saw are not stored any more, or unreadable, so that it cannot be ruled out. `via` is the way from the
    version to the prompt that saw the row, as `relation task@number`; empty where it saw the row itself. `aliases` and
    `releases` are those that hold it now. `source` is where its rows came from; a `shared` prompt has its source tasks'
    instead.
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

    @property
    def in_production(self) -> bool:
        """Whether production names it now."""
        return PRODUCTION in self.aliases


def lineage(registry: Registry, task: str, number: int) -> Lineage:
    """Where that version comes from, its parents' origins among it.

    Raises NotFound where there is no such version, ArtifactError where a manifest is altered, ServiceUnavailable.
    """
    version, ledger, graph = registry.ledger.version(task, number), registry.ledger, read_graph(registry)
    origins, todo = dict[Name, Origin](), [Name(task, version.digest)]
    while todo:
        name = todo.pop(0)
        if name not in origins:
            origins[name] = _origin(registry, graph, name)
            todo += [parent for _, parent in graph.parents(name)]
    promotions = [row for row in ledger.history(task) if row.version == number]
    return Lineage(
        origins=list(origins.values()),
        report=ledger.report_of(task, version.digest),
        verdict=ledger.latest_verdict(task, version.digest),
        promotions=promotions,
    )


def row_of(text: str) -> str:
    """The id of the row with that text, as snapshots write it."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()[:16]


def trained_on(registry: Registry, row: str) -> list[Exposure]:
    """Every version that learnt from the row of that id, parents before those that descend from them.

    Rows of equal normalised text (`-2`, `-3`) count as one. Raises DataError where `row` is no id, ArtifactError where
    a manifest is altered, ServiceUnavailable.
    """
    found = _ROW.fullmatch(row)
    if found is None:
        raise DataError(
            f"{len(row)} characters that are no row's id: expected one of a snapshot, 16 hex digits such as "
            "0123456789abcdef; --text-file finds it from the text"
        )
    graph = read_graph(registry)
    hits = _hits(registry, graph, found[1])
    exposed = _exposed(graph, hits)
    aliases: dict[Name, list[str]] = {}
    for head in registry.ledger.heads():
        aliases.setdefault(Name(head.task, head.digest), []).append(head.alias)
    releases = [(release.name, set(release.versions.items())) for release in registry.ledger.releases()]
    return [
        _exposure(
            graph,
            name,
            learnt,
            (
                aliases.get(name, []),
                [release for release, held in releases if (name[0], graph.versions.get(name)) in held],
            ),
        )
        for name, learnt in exposed.items()
    ]


def to_forget(exposures: Iterable[Exposure]) -> list[str]:
    """What to do so that nothing in use has learnt from the row: a sentence per task, in the order in which to
    do it.
    """
    by_task: dict[str, list[Exposure]] = {}
    for exposure in exposures:
        by_task.setdefault(exposure.task, []).append(exposure)
    after = {
        task: {other for item in found for other in _tasks_in(item.via)} & by_task.keys() - {task}
        for task, found in by_task.items()
    }
    try:
        order = list(TopologicalSorter({task: sorted(after[task]) for task in sorted(after)}).static_order())
    except CycleError:  # each once started from the other: no order is right for both
        order = sorted(after)
    sentences = [f"{task}: {_how(task, by_task[task], sorted(after[task]))}" for task in order]
    return (
        [*sentences, "then `ptp gc` deletes the versions and snapshots that nothing needs any more"]
        if sentences
        else []
    )


def _how(task: str, found: list[Exposure], after: list[str]) -> str:
    source = next((item.source for item in found if item.source), None)
    if any(item.shared for item in found):
        steps = (
            "delete the row from the data of its source tasks; `ptp run` of a task that starts from it trains it anew"
        )
    elif any(_tasks_in(item.via) <= {task} for item in found):
        steps = (
            f"delete the row from its source{f' ({source})' if source else ''}; `ptp run {task}`, then promote "
            "what passes"
        )
    else:
        steps = f"once {', '.join(after)} learnt anew, `ptp run {task}`, then promote what passes"
    cold = (
        "; first let tune.init name none of these versions, nor a champion among them"
        if any(step.startswith("start ") for item in found for step in item.via)
        else ""
    )
    numbers = ", ".join(str(item.version) for item in sorted(found, key=lambda item: item.version or 0) if item.version)
    now = ", ".join(f"{alias} is version {item.version}" for item in found for alias in item.aliases)
    return f"{steps}{cold}. Learnt from it: versions {numbers or 'none'}; {now or 'no alias names one of them'}"


def _tasks_in(via: Iterable[str]) -> set[str]:
    return {step.rsplit(" ", 1)[-1].split("@")[0] for step in via}


def _origin(registry: Registry, graph: Graph, name: Name) -> Origin:
    publication = registry.ledger.publication(*name)
    return Origin(
        task=name.task,
        digest=name.digest,
        version=graph.versions.get(name),
        manifest=graph.manifests.get(name),
        snapshots=[graph.records[snapshot] for snapshot in graph.seen_by(name) if snapshot in graph.records],
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
        if any(found.id.split("-")[0] == row for found in rows):
            return "train" if split == "train" else "dev"
    return None


def _exposed(graph: Graph, hits: Mapping[Name, Seen | None]) -> dict[Name, Learnt]:
    """The prompts that learnt from the row, parents first."""
    everything = graph.manifests.keys() | graph.versions.keys()
    parents = {name: graph.parents(name) for name in sorted(everything)}
    exposed: dict[Name, Learnt] = {}
    for name in TopologicalSorter(
        {name: [parent for _, parent in found] for name, found in parents.items()}
    ).static_order():
        learnt = _learnt(graph, hits, name)
        learnt += [
            (exposed[parent][0], [f"{relation} {_called(graph, parent)}", *exposed[parent][1]])
            for relation, parent in parents.get(name, [])
            if parent in exposed
        ]
        if learnt:  # what is certain goes before what cannot be ruled out
            exposed[name] = min(learnt, key=lambda item: (SEEN.index(item[0]), len(item[1])))
    return exposed


def _learnt(graph: Graph, hits: Mapping[Name, Seen | None], name: Name) -> list[Learnt]:
    """What the prompt's own rows say; those of an imported one, or of one whose snapshot is gone, are not known.

    Nor is what it descends from where its manifest was lost; the garbage collection takes none that something descends
    from.
    """
    own = [] if graph.is_imported(name) else graph.seen_by(name)
    seen = [hits.get(snapshot, "unknown") for snapshot in own] or ["unknown"]
    if name not in graph.manifests and name not in graph.collected:
        seen.append("unknown")
    return [(found, []) for found in seen if found]


def _exposure(graph: Graph, name: Name, learnt: Learnt, holding: tuple[list[str], list[str]]) -> Exposure:
    manifest = graph.manifests.get(name)
    shared = manifest is not None and is_shared(manifest)
    return Exposure(
        task=name[0],
        version=graph.versions.get(name),
        digest=name[1],
        seen=learnt[0],
        via=learnt[1],
        aliases=holding[0],
        releases=holding[1],
        source=graph.source(name),
        shared=shared,
        collected=name in graph.collected,
    )


def _called(graph: Graph, name: Name) -> str:
    return f"{name[0]}@{graph.versions[name]}" if name in graph.versions else f"{name[0]}@{name[1][:12]}"
