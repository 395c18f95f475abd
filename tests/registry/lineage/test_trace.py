"""Lineage: from a version to its rows and back, through warm starts, ensembles and shared prompts; no text in any
answer.
"""

import hashlib
import itertools
import logging
from datetime import timedelta
from pathlib import Path

import pytest
from safetensors.numpy import save

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact
from ptpipeline.data.snapshot import load_split, take_snapshot
from ptpipeline.errors import DataError, NotFound
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.base import digest_of
from ptpipeline.records.data import Snapshot, Split
from ptpipeline.records.prompts import Members, Trial
from ptpipeline.storage import FolderStore
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger.ledger import Ledger, Release
from registry.lineage.descent import inherited_rows, training_rows
from registry.lineage.trace import Exposure, plan_erasure, row_id, trace_row, trace_version
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote, promote_release
from registry.versions.publish import register, stage

ME = Cause("me", "because")
SECRET = "Frau Müller, Hauptstraße 7, complained about the soup"


class World:
    """A registry whose tasks have real rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry(Ledger(f"sqlite:///{folder}/ledger.db"), FolderStore(folder / "store"))
        self.seeds = itertools.count(1)

    def task(self, name: str) -> Task:
        """A task over a file of its own."""
        task = a_task(name)
        source = task.data.source.model_copy(update={"path": str(self.folder / f"{name}.csv")})
        return task.model_copy(
            update={
                "data": task.data.model_copy(
                    update={"source": source, "checks": task.data.checks.model_copy(update={"rows_per_label": "off"})}
                )
            }
        )

    def snapshot(self, task: Task, *texts: str) -> Snapshot:
        """A snapshot of those texts and enough others to fill every split."""
        rows = [*texts, *(f"{task.name} text {number}" for number in range(60))]
        body = "text,label\n" + "".join(
            f'"{text}",{"good" if number % 2 else "bad"}\n' for number, text in enumerate(rows)
        )
        (self.folder / f"{task.name}.csv").write_text(body)
        snapshot = take_snapshot(task, self.registry.store, self.folder)
        self.registry.ledger.save_snapshot(snapshot)
        return snapshot

    def publish(self, task: Task, snapshot: str, trials: tuple[str, ...] = (), **fields: object) -> int:
        """A version trained on that snapshot; `fields` are of its manifest."""
        artifact = self.artifact(task, snapshot, **fields)
        head = self.registry.ledger.head(task.name, "production")
        provenance = a_request(task, artifact.manifest.seed, head.digest if head else None)
        changes = {
            "digest": artifact.digest,
            "snapshot": snapshot,
            "training_key": artifact.manifest.training_key,
            "trials": [Trial(name=t, best_dev=0.5, best_step=1) for t in trials],
        }
        report = provenance.report.model_copy(update={"digest": artifact.digest})  # type: ignore[union-attr]
        verdict = provenance.verdict.model_copy(update={"digest": artifact.digest})  # type: ignore[union-attr]
        stage(self.registry.ledger, self.registry.store, artifact)
        return register(
            self.registry, Provenance(provenance.tuned.model_copy(update=changes), report, verdict, commit="c0ffee")
        ).number

    def artifact(self, task: Task, snapshot: str, **fields: object) -> Artifact:
        """A prompt that says it was trained on that snapshot."""
        made = an_artifact(task, next(self.seeds))
        return Artifact(made.manifest.model_copy(update={"snapshot": snapshot, **fields}), made.tensors)

    def digest(self, task: Task, number: int) -> str:
        return self.registry.ledger.version(task.name, number).digest


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def row_in(world: World, snapshot: Snapshot, split: Split) -> str:
    """A row of that split."""
    return load_split(world.registry.store, snapshot, split)[0].id


def told(exposures: list[Exposure]) -> dict[str, tuple[str, list[str]]]:
    return {f"{found.task}@{found.version}": (found.seen, found.via) for found in exposures}


def test_a_row_leads_to_what_learnt_from_it(world: World) -> None:
    mood = world.task("mood")
    before = world.snapshot(mood)
    world.publish(mood, before.digest)
    after = world.snapshot(mood, "one more", "and another", "and a third", "and a fourth")
    world.publish(mood, after.digest)
    assert told(trace_row(world.registry, row_in(world, before, "train"))) == {
        "mood@1": ("train", []),
        "mood@2": ("train", []),
    }
    assert told(trace_row(world.registry, row_in(world, before, "dev"))) == {
        "mood@1": ("dev", []),
        "mood@2": ("dev", []),
    }
    assert trace_row(world.registry, row_in(world, before, "test")) == []
    fresh = {row.id for row in load_split(world.registry.store, after, "train")} - {
        row.id for row in load_split(world.registry.store, before, "train")
    }
    assert told(trace_row(world.registry, fresh.pop())) == {"mood@2": ("train", [])}
    assert trace_row(world.registry, "0" * 16) == []


def test_descent_is_followed(world: World) -> None:
    mood, topic = world.task("mood"), world.task("topic")
    rows, others = world.snapshot(mood), world.snapshot(topic)
    world.publish(mood, rows.digest)
    world.publish(topic, others.digest, parents=[world.digest(mood, 1)])
    world.publish(topic, others.digest, parents=[world.digest(topic, 1)])
    row = row_in(world, rows, "train")
    assert told(trace_row(world.registry, row)) == {
        "mood@1": ("train", []),
        "topic@1": ("train", ["start mood@1"]),
        "topic@2": ("train", ["start topic@1", "start mood@1"]),
    }
    assert told(trace_row(world.registry, row_in(world, others, "dev"))) == {
        "topic@1": ("dev", []),
        "topic@2": ("dev", []),
    }
    assert [step.split(":")[0] for step in plan_erasure(trace_row(world.registry, row))][:2] == ["mood", "topic"]


def an_ensemble(whole: Artifact, member: Artifact) -> Artifact:
    """An ensemble of one member, with what the manifest of `whole` says of its training."""
    empty = save({})
    fields = {
        "method": "ensemble",
        "members": Members(digests=[member.digest], combine="vote"),
        "tensors": {},
        "tensor_sha256": hashlib.sha256(empty).hexdigest(),
    }
    return Artifact(whole.manifest.model_copy(update=fields), empty)


def test_members_of_ensembles_are_followed(world: World) -> None:
    mood = world.task("mood")
    rows, later = world.snapshot(mood), world.snapshot(mood, "one more", "and another", "and a third", "and a fourth")
    member = world.artifact(mood, rows.digest)
    stage(world.registry.ledger, world.registry.store, member)
    ensemble = an_ensemble(world.artifact(mood, later.digest), member)
    stage(world.registry.ledger, world.registry.store, ensemble, [member])
    provenance = a_request(mood, 1)
    register(
        world.registry,
        Provenance(provenance.tuned.model_copy(update={"digest": ensemble.digest, "snapshot": later.digest})),
    )
    gone = {row.id for row in load_split(world.registry.store, rows, "train")}
    found = trace_row(world.registry, gone.pop())
    assert [(item.version, item.via) for item in found if item.version] == [(1, [])]
    assert [origin.parents for origin in trace_version(world.registry, "mood", 1).origins] == [
        {member.digest: "member"},
        {},
    ]


def test_a_shared_prompt_is_traced_to_its_sources(world: World) -> None:
    sources, target = [world.task("mood"), world.task("topic")], world.task("tone")
    snapshots, own = [world.snapshot(task) for task in sources], world.snapshot(target)
    world.snapshot(
        sources[0], "one more", "and another", "and a third", "and a fourth"
    )  # of no interest to the shared prompt
    shared = a_task("shared")
    both = digest_of([snapshot.digest for snapshot in snapshots])
    teachers = [world.artifact(shared, both, labels={}) for _ in sources]
    for teacher in teachers:
        stage(world.registry.ledger, world.registry.store, teacher)
        world.registry.ledger.fulfil("shared", teacher.digest)
    world.publish(
        shared,
        both,
        ("shared/mood", "shared/topic"),
        labels={},
        method="multitask",
        parents=[teacher.digest for teacher in teachers],
    )
    world.publish(target, own.digest, method="multitask", parents=[world.digest(shared, 1)])
    found = trace_row(world.registry, row_in(world, snapshots[1], "train"))
    assert {item.task: (item.version, item.via, item.shared) for item in found if item.version} == {
        "shared": (1, [], True),
        "tone": (1, ["shared prompt shared@1"], False),
    }
    steps = plan_erasure(found)
    assert [step.split(":")[0] for step in steps[:2]] == ["shared", "tone"]
    assert "after new versions of shared, `ptp run tone`" in steps[1]
    assert {
        snapshot.task for origin in trace_version(world.registry, "tone", 1).origins for snapshot in origin.snapshots
    } == {"mood", "topic", "tone"}


def shared_world(world: World) -> tuple[Task, list[Snapshot]]:
    """A shared prompt over two tasks, of which the first has other rows by now; and the snapshots that it
    learnt from.
    """
    sources = [world.task("mood"), world.task("topic")]
    snapshots = [world.snapshot(task) for task in sources]
    world.publish(
        a_task("shared"),
        digest_of([snapshot.digest for snapshot in snapshots]),
        ("shared/mood", "shared/topic"),
        labels={},
        method="multitask",
    )
    world.snapshot(sources[0], "one more", "and another", "and a third", "and a fourth")
    return sources[0], snapshots


def test_the_snapshots_of_a_shared_prompt_stay_with_it(world: World) -> None:
    mood, snapshots = shared_world(world)
    row = row_in(world, snapshots[0], "train")
    old = world.snapshot(mood, *(f"of nobody {number}" for number in range(5)))
    world.snapshot(mood, "the last one")
    gone = collect(world.registry, Retention(candidates=1, grace=timedelta(0)), apply=True)
    assert old.digest in {item.digest for item in gone}
    assert snapshots[0].digest not in {item.digest for item in gone}
    assert told(trace_row(world.registry, row))["shared@1"] == ("train", [])


def learnt(world: World, task: str, number: int) -> set[str]:
    name = (world.registry, task, world.registry.ledger.version(task, number).digest)
    return {row.id for row in [*training_rows(*name), *inherited_rows(*name)]}


def trained(world: World, *snapshots: Snapshot) -> set[str]:
    return {row.id for snapshot in snapshots for row in load_split(world.registry.store, snapshot, "train")}


def test_a_prompt_learnt_from_its_own_rows_and_its_ancestors(world: World) -> None:
    mood, topic = world.task("mood"), world.task("topic")
    rows, others = world.snapshot(mood), world.snapshot(topic)
    world.publish(mood, rows.digest)
    world.publish(topic, others.digest, parents=[world.digest(mood, 1)])
    world.publish(topic, others.digest, parents=[world.digest(topic, 1)])
    assert learnt(world, "mood", 1) == trained(world, rows)
    assert learnt(world, "topic", 2) == trained(world, rows, others)
    assert {row.id for row in training_rows(world.registry, "topic", world.digest(topic, 2))} == trained(world, others)


def test_a_target_learnt_from_the_sources_of_its_shared_prompt(world: World) -> None:
    _, snapshots = shared_world(world)
    tone = world.task("tone")
    own = world.snapshot(tone)
    world.publish(tone, own.digest, method="multitask", parents=[world.digest(a_task("shared"), 1)])
    assert learnt(world, "tone", 1) == trained(world, own, *snapshots)


def test_what_an_ancestor_saw_is_left_out_where_it_is_gone(world: World) -> None:
    _, snapshots = shared_world(world)
    tone = world.task("tone")
    own = world.snapshot(tone)
    world.publish(tone, own.digest, method="multitask", parents=[world.digest(a_task("shared"), 1), "0" * 64])
    for key in list(world.registry.store.keys(f"snapshots/mood/{snapshots[0].digest}")):
        world.registry.store.delete(key)
    assert learnt(world, "tone", 1) == trained(world, own)
    for key in list(world.registry.store.keys(f"snapshots/tone/{own.digest}")):
        world.registry.store.delete(key)
    with pytest.raises(NotFound, match=own.digest):
        learnt(world, "tone", 1)


def test_a_shared_prompt_whose_snapshot_is_gone_cannot_be_ruled_out(world: World) -> None:
    _, snapshots = shared_world(world)
    for key in list(world.registry.store.keys(f"snapshots/mood/{snapshots[0].digest}")):
        world.registry.store.delete(key)
    assert told(trace_row(world.registry, "0" * 16)) == {"shared@1": ("unknown", [])}


def test_descent_through_a_lost_manifest_cannot_be_ruled_out(world: World) -> None:
    mood, topic = world.task("mood"), world.task("topic")
    rows, others = world.snapshot(mood), world.snapshot(topic)
    world.publish(mood, rows.digest)
    for number in (None, 1):
        world.publish(
            topic, others.digest, parents=[world.digest(mood, 1) if number is None else world.digest(topic, number)]
        )
    for key in list(world.registry.store.keys(f"prompts/topic/{world.digest(topic, 1)}")):
        world.registry.store.delete(key)
    found = told(trace_row(world.registry, row_in(world, rows, "train")))
    assert found == {"mood@1": ("train", []), "topic@1": ("unknown", []), "topic@2": ("unknown", ["start topic@1"])}


def test_what_holds_a_version_now_is_told(world: World) -> None:
    mood = world.task("mood")
    rows = world.snapshot(mood)
    promote(world.registry, mood, world.publish(mood, rows.digest), ME, "canary")
    release = Release(name="spring", actor="me", reason="why", versions={"mood": 1}, at="2026-01-01")
    promote_release(world.registry, {"mood": mood}, release, ME)
    (found,) = trace_row(world.registry, row_in(world, rows, "train"))
    assert (found.aliases, found.releases, found.source) == (["canary", "production"], ["spring"], rows.source)
    (step, last) = plan_erasure([found])
    assert step.startswith(f"mood: delete the row from its source ({rows.source}); `ptp run mood`")
    assert "production is version 1" in step
    assert "`ptp gc`" in last


def test_rows_that_are_gone_rule_nothing_out(world: World) -> None:
    mood = world.task("mood")
    rows = world.snapshot(mood)
    world.publish(mood, rows.digest)
    row = row_in(world, rows, "train")
    for key in list(world.registry.store.keys(f"snapshots/mood/{rows.digest}")):
        world.registry.store.delete(key)
    assert told(trace_row(world.registry, row)) == {"mood@1": ("unknown", [])}


def test_no_text_is_in_any_answer(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    mood = world.task("mood")
    rows = world.snapshot(mood, SECRET)
    world.publish(mood, rows.digest)
    found = trace_row(world.registry, row_id({"text": f"  {SECRET.upper()} "}))
    shown = (
        [item.model_dump_json() for item in found]
        + plan_erasure(found)
        + [trace_version(world.registry, "mood", 1).model_dump_json()]
    )
    assert "soup" not in "".join(shown).casefold() + caplog.text.casefold()
    assert row_id({"text": SECRET}) == row_id({"text": f"  {SECRET.upper()} "})


def test_a_version_leads_to_its_rows(world: World) -> None:
    mood = world.task("mood")
    rows = world.snapshot(mood)
    number = world.publish(mood, rows.digest)
    head = promote(world.registry, mood, number, ME)
    found = trace_version(world.registry, "mood", number)
    (origin,) = found.origins
    assert (origin.snapshots, origin.commit, origin.manifest and origin.manifest.recipe) == (
        [rows],
        "c0ffee",
        mood.recipe_digest(),
    )
    assert (found.verdict and found.verdict.passed, found.promotions) == (True, [head])


def test_what_is_no_row_is_refused(world: World) -> None:
    with pytest.raises(DataError, match="16 hex digits") as refused:
        trace_row(world.registry, SECRET)
    assert "Müller" not in str(refused.value)
    with pytest.raises(NotFound, match="no version 1"):
        trace_version(world.registry, "mood", 1)


def test_a_chain_of_starts_is_followed(world: World) -> None:
    mood = world.task("mood")
    rows, later = world.snapshot(mood), world.snapshot(mood, "one more", "and another", "and a third", "and a fourth")
    world.publish(mood, rows.digest)
    for number in range(1, 12):
        world.publish(mood, later.digest, parents=[world.digest(mood, number)])
    only_first = {row.id for row in load_split(world.registry.store, rows, "train")}
    assert len(trace_row(world.registry, only_first.pop())) == 12
    assert len(trace_version(world.registry, "mood", 12).origins) == 12
