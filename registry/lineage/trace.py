"""From a version to its rows, and from a row to every version that learnt from it: directly, or through what it
descends from.

A row is known by its id, the hash of its normalised text; no text is ever part of an answer.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Literal

from sqlalchemy import select

from ptpipeline.data.rows import normalised
from ptpipeline.data.snapshot import load_split, read_snapshot
from ptpipeline.errors import ArtifactError, DataError, NotFound
from ptpipeline.prompts.artifact import MANIFEST_FILE
from ptpipeline.records import (
    DIGEST_PATTERN,
    PRODUCTION,
    Promotion,
    PromptManifest,
    Record,
    Report,
    Snapshot,
    Split,
    Verdict,
    is_name,
)
from registry.garbage.roots import Name, combination, read_manifests, sources_in
from registry.ledger import tables
from registry.listing import asked
from registry.registry import Registry

Relation = Literal["start", "shared prompt", "teacher", "member", "source"]
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


@dataclass(frozen=True)
class _Graph:
    """Every prompt that the ledger registered or the store holds, by digest."""

    numbers: dict[str, Name]
    versions: dict[Name, int]
    manifests: dict[Name, PromptManifest]
    snapshots: dict[str, list[Snapshot]]
    trained: dict[Name, tuple[str, list[str]]]
    imported: set[Name]
    shared_by: dict[Name, Name]
    collected: set[Name]

    def seen_by(self, name: Name) -> list[Name]:
        """The snapshots, as (task, digest), of the prompt's own rows; empty where nobody knows them any more."""
        task = name[0]
        manifest, trained = self.manifests.get(name), self.trained.get(name, ("", []))
        snapshot = manifest.snapshot if manifest else trained[0]
        known = {(found.task, found.digest) for found in self.snapshots.get(task, [])}
        if (task, snapshot) in known or not self._sources(name):
            return [(task, snapshot)] if snapshot else []
        return _combined(
            (task, snapshot),
            [[(s.task, s.digest) for s in self.snapshots.get(source, [])] for source in self._sources(name)],
        )

    def _sources(self, name: Name) -> list[str]:
        """The tasks that a shared prompt, or a teacher of one, was trained for."""
        shared = self.shared_by.get(name, name)
        return sources_in(name[0], self.trained.get(shared, ("", []))[1])

    def parents(self, name: Name) -> list[tuple[Relation, Name]]:
        """What the prompt descends from and consists of."""
        manifest = self.manifests.get(name)
        if manifest is None:
            return []
        members: list[tuple[Relation, Name]] = [
            ("member", (name[0], digest)) for digest in (manifest.members.digests if manifest.members else [])
        ]
        return members + [(_relation(manifest), self._home(name[0], digest)) for digest in manifest.parents]

    def source(self, name: Name) -> str | None:
        """Where the prompt's own rows came from, as far as the store knows."""
        own = set(self.seen_by(name))
        return next(
            (found.source for found in self.snapshots.get(name[0], []) if (found.task, found.digest) in own), None
        )

    def _home(self, task: str, digest: str) -> Name:
        """Whose a parent is: the same task's where it has one of that digest, else the task's that does."""
        return (task, digest) if (task, digest) in self.manifests else self.numbers.get(digest, (task, digest))


def lineage(registry: Registry, task: str, number: int) -> Lineage:
    """Where that version comes from, its parents' origins among it.

    Raises NotFound where there is no such version, ArtifactError where a manifest is altered, ServiceUnavailable.
    """
    version, ledger, graph = registry.ledger.version(task, number), registry.ledger, _graph(registry)
    origins, todo = dict[Name, Origin](), [(task, version.digest)]
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
    graph = _graph(registry)
    hits = _hits(registry, graph, found[1])
    exposed = _exposed(graph, hits)
    aliases: dict[Name, list[str]] = {}
    for head in registry.ledger.heads():
        aliases.setdefault((head.task, head.digest), []).append(head.alias)
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


# ---------------------------------------------------------------- the graph


def _graph(registry: Registry) -> _Graph:
    with registry.ledger.database.reading() as connection:
        rows = connection.execute(select(tables.version.c.task, tables.version.c.number, tables.version.c.digest)).all()
        published = connection.execute(
            select(tables.publication.c.task, tables.publication.c.digest, tables.publication.c.record)
        ).all()
        buried = {
            (row.task, row.digest)
            for row in connection.execute(select(tables.tombstone.c.task, tables.tombstone.c.digest))
        }
    manifests: dict[Name, PromptManifest] = {}
    for name, manifest in read_manifests(registry.store, _places(registry, "prompts")).items():
        if manifest is None:
            raise ArtifactError(
                f"{registry.store.url}/prompts/{name[0]}/{name[1]}/{MANIFEST_FILE}: altered, so nobody knows "
                f"what it was made from; `ptp doctor {name[0]}`"
            )
        manifests[name] = manifest
    known = {(task, digest) for task, _, digest in rows}
    trained = {
        (row.task, row.digest): (
            row.record["tuned"]["snapshot"],
            [trial["name"] for trial in row.record["tuned"].get("trials", [])],
        )
        for row in published
    }
    return _Graph(
        numbers={name[1]: name for name in [*(manifests.keys() - known), *known]},
        versions={(task, digest): number for task, number, digest in rows},
        manifests=manifests,
        snapshots=_snapshots(registry),
        trained=trained,
        imported={(row.task, row.digest) for row in published if row.record["tuned"]["steps"] == 0},
        shared_by={
            (name[0], parent): name
            for name, manifest in manifests.items()
            if _relation(manifest) == "teacher"
            for parent in manifest.parents
        },
        collected={name for name in buried if name not in manifests},
    )


def _snapshots(registry: Registry) -> dict[str, list[Snapshot]]:
    """Every snapshot that the store holds whole, by task."""
    found: dict[str, list[Snapshot]] = {}
    for snapshot in asked(lambda name: read_snapshot(registry.store, *name), _places(registry, "snapshots")).values():
        found.setdefault(snapshot.task, []).append(snapshot)
    return found


def _places(registry: Registry, folder: str) -> list[Name]:
    """Which prompts or snapshots have their manifest there; what lies at no place of theirs is nobody's."""
    split = [key.split("/") for key in registry.store.keys(folder)]
    return [
        (parts[1], parts[2])
        for parts in split
        if len(parts) == 4
        and parts[3] == MANIFEST_FILE
        and is_name(parts[1])
        and re.fullmatch(DIGEST_PATTERN, parts[2])
    ]


def _combined(together: Name, sources: list[list[Name]]) -> list[Name]:
    """The sources' snapshots whose digests together have that digest; where none are found all of them.

    Then it may have been one that is gone by now: `together`, by which no snapshot is called, stands for what is not
    known.
    """
    return combination(together[1], sources) or [together, *(name for source in sources for name in source)]


def _relation(manifest: PromptManifest) -> Relation:
    if manifest.method != "multitask":
        return "start"
    return "shared prompt" if manifest.labels or manifest.generate else "teacher"


def _origin(registry: Registry, graph: _Graph, name: Name) -> Origin:
    publication, known = (
        registry.ledger.publication(*name),
        {(s.task, s.digest): s for found in graph.snapshots.values() for s in found},
    )
    return Origin(
        task=name[0],
        digest=name[1],
        version=graph.versions.get(name),
        manifest=graph.manifests.get(name),
        snapshots=[known[snapshot] for snapshot in graph.seen_by(name) if snapshot in known],
        run=publication.tuned.tracking_run if publication else None,
        commit=publication.commit if publication else None,
        parents={parent[1]: kind for kind, parent in graph.parents(name)},
    )


# ---------------------------------------------------------------- who learnt from it


def _hits(registry: Registry, graph: _Graph, row: str) -> dict[Name, Seen | None]:
    """For each stored snapshot whether the row is in what is learnt from; each split is read once."""
    snapshots = {(snapshot.task, snapshot.digest): snapshot for found in graph.snapshots.values() for snapshot in found}
    return asked(partial(_hit, registry, snapshots, row), snapshots)


def _hit(registry: Registry, snapshots: Mapping[Name, Snapshot], row: str, name: Name) -> Seen | None:
    for split in LEARNT_FROM:
        try:
            rows = load_split(registry.store, snapshots[name], split)
        except (ArtifactError, NotFound):
            return "unknown"
        if any(found.id.split("-")[0] == row for found in rows):
            return "train" if split == "train" else "dev"
    return None


def _exposed(graph: _Graph, hits: Mapping[Name, Seen | None]) -> dict[Name, Learnt]:
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


def _learnt(graph: _Graph, hits: Mapping[Name, Seen | None], name: Name) -> list[Learnt]:
    """What the prompt's own rows say; those of an imported one, or of one whose snapshot is gone, are not known.

    Nor is what it descends from where its manifest was lost; the garbage collection takes none that something descends
    from.
    """
    own = [] if name in graph.imported else graph.seen_by(name)
    seen = [hits.get(snapshot, "unknown") for snapshot in own] or ["unknown"]
    if name not in graph.manifests and name not in graph.collected:
        seen.append("unknown")
    return [(found, []) for found in seen if found]


def _exposure(graph: _Graph, name: Name, learnt: Learnt, holding: tuple[list[str], list[str]]) -> Exposure:
    manifest = graph.manifests.get(name)
    shared = manifest is not None and _relation(manifest) == "teacher"
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


def _called(graph: _Graph, name: Name) -> str:
    return f"{name[0]}@{graph.versions[name]}" if name in graph.versions else f"{name[0]}@{name[1][:12]}"
