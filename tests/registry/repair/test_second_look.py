"""Doctor's second look, its repairs while others write, and what it takes for nobody's."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import save

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact, published
from ptpipeline.errors import NotFound, ServiceUnavailable
from ptpipeline.prompts.artifact import Artifact, write_artifact
from ptpipeline.records.base import digest_of
from ptpipeline.records.prompts import Members
from ptpipeline.records.versions import Pointer
from ptpipeline.storage import FolderStore, Listed, Stored
from ptpipeline.storage.keys import pointer_key, prompt_prefix, version_key
from ptpipeline.task.task import Task
from registry import failpoints
from registry.card.card import Provenance
from registry.ledger.lease import Lease
from registry.ledger.ledger import Ledger, Release
from registry.ledger.tombstone import Tombstone
from registry.registry import Registry
from registry.repair.difference import Difference
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.repair.reconcile import reconcile
from registry.versions.commit import Cause, write_release
from registry.versions.promotion import promote
from registry.versions.publish import register, stage

ME = Cause("me", "because")


class Meddled(FolderStore):
    """A folder in which something happens right before a listing, or a read, that a test waits for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.listings = 0
        self.before_listing: Callable[[int], None] = lambda number: None
        self.before_read: Callable[[str], None] = lambda key: None

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        if prefix.startswith("prompts"):
            self.listings += 1
            self.before_listing(self.listings)
        return super().list_objects(prefix)

    def read(self, key: str) -> Stored:
        self.before_read(key)
        return super().read(key)


@pytest.fixture
def store(plain: Registry) -> Meddled:
    return Meddled(Path(plain.store.url.removeprefix("file://")))


@pytest.fixture
def meddled(plain: Registry, store: Meddled) -> Registry:
    return Registry(plain.ledger, store)


def promoted(registry: Registry, task: Task) -> None:
    promote(registry, task, published(registry, task, 1), ME)


def kinds(found: list[Difference]) -> list[str]:
    return [difference.kind for difference in found]


def mended(registry: Registry, task: Task) -> list[Difference]:
    fix(registry, {task.name: task}, examine(registry, task.name))
    return examine(registry, task.name)


# ---------------------------------------------------------------- the second look


@pytest.mark.parametrize("named", [True, False])
def test_what_heals_between_two_looks_is_no_difference(
    plain: Registry, meddled: Registry, store: Meddled, task: Task, named: bool
) -> None:
    promoted(plain, task)
    plain.store.delete(pointer_key(task.name, "production"))
    store.before_listing = lambda number: reconcile(plain, {}) and None if number == 2 else None
    assert examine(meddled, task.name if named else None) == []
    assert store.listings == 2


def test_what_begins_between_two_looks_is_told_by_the_next_examination(
    plain: Registry, meddled: Registry, store: Meddled, task: Task
) -> None:
    promoted(plain, task)
    plain.store.delete(version_key(task.name, 1))
    pointer = pointer_key(task.name, "production")
    store.before_listing = lambda number: plain.store.delete(pointer) if number == 2 else None
    assert kinds(examine(meddled)) == ["name"]
    assert kinds(examine(meddled)) == ["name", "pointer"]


def test_a_registry_that_agrees_is_looked_at_once(
    plain: Registry, meddled: Registry, store: Meddled, task: Task
) -> None:
    promoted(plain, task)
    assert examine(meddled) == []
    assert store.listings == 1


# ---------------------------------------------------------------- what is nobody's


def test_a_strange_pointer_is_not_set_aside_if_somebody_promotes_it_meanwhile(
    plain: Registry, meddled: Registry, store: Meddled, task: Task
) -> None:
    promoted(plain, task)
    key = pointer_key(task.name, "stray")
    plain.store.create(key, b"{}")
    found = examine(plain)
    store.before_read = lambda read: promote(plain, task, 1, ME, "stray") and None if read == key else None
    fix(meddled, {task.name: task}, found)
    quarantined = [plain.store.read(key).body for key in plain.store.keys(f"prompts/{task.name}/quarantine")]
    assert (quarantined, examine(plain)) == ([b"{}"], [])


def test_a_pointer_ahead_to_which_no_history_leads_is_put_back(plain: Registry, task: Task) -> None:
    """The ledger lost nothing: such a promotion was never made."""
    promoted(plain, task)
    key, head = pointer_key(task.name, "production"), plain.ledger.head(task.name, "production")
    assert head is not None
    ahead = Pointer(promotion=head.model_copy(update={"seq": 9}), nonce="n" * 16)
    plain.store.replace(key, ahead.model_dump_json().encode(), plain.store.read(key).etag)
    assert kinds(examine(plain)) == ["pointer"]
    assert mended(plain, task) == []
    assert Pointer.model_validate_json(plain.store.read(key).body).promotion == head


def test_a_ledger_that_knows_no_version_sets_no_pointer_aside(plain: Registry, task: Task, tmp_path: Path) -> None:
    """What it does not know may be what it lost."""
    plain.store.create(pointer_key(task.name, "stray"), b"{}")
    (found,) = examine(plain)
    assert (found.kind, found.safe) == ("pointer", False)
    fix(plain, {}, [found.model_copy(update={"safe": True})])
    assert plain.store.exists(pointer_key(task.name, "stray"))


def ensemble_of_two(task: Task) -> tuple[Artifact, list[Artifact]]:
    members = [an_artifact(task, seed) for seed in (10, 11)]
    empty = save({})
    changes = {
        "method": "ensemble",
        "members": Members(digests=[member.digest for member in members], combine="average"),
        "tensors": {},
        "tensor_sha256": hashlib.sha256(empty).hexdigest(),
        "training_key": digest_of("ensemble"),
    }
    return Artifact(members[0].manifest.model_copy(update=changes), empty), members


def an_ensemble(registry: Registry, task: Task) -> list[Artifact]:
    """A registered ensemble of two; its members."""
    whole, members = ensemble_of_two(task)
    stage(registry.ledger, registry.store, whole, members)
    tuned = a_request(task, 0).tuned.model_copy(update={"digest": whole.digest, "training_key": digest_of("ensemble")})
    register(registry, Provenance(tuned))
    return members


def test_members_of_an_ensemble_are_no_orphans(plain: Registry, task: Task) -> None:
    an_ensemble(plain, task)
    assert examine(plain) == []


def test_a_lost_member_is_told_as_the_bytes_of_its_ensemble(plain: Registry, task: Task) -> None:
    members = an_ensemble(plain, task)
    plain.store.delete(f"{prompt_prefix(task.name, members[1].digest)}/prompt.safetensors")
    (found,) = examine(plain)
    assert (found.kind, found.what, found.safe) == ("bytes", "bytes of version 1", False)
    assert found.expected == f"digest {members[1].digest[:12]}"


def test_a_parent_that_is_no_version_is_no_orphan(plain: Registry, task: Task) -> None:
    teacher, made = an_artifact(task, 5), an_artifact(task, 6)
    child = Artifact(made.manifest.model_copy(update={"parents": [teacher.digest]}), made.tensors)
    write_artifact(plain.store, teacher)
    stage(plain.ledger, plain.store, child)
    tuned = a_request(task, 6).tuned.model_copy(update={"digest": child.digest})
    register(plain, Provenance(tuned))
    assert examine(plain) == []


def test_what_is_being_collected_is_no_orphan(plain: Registry, task: Task) -> None:
    promoted(plain, task)
    write_artifact(plain.store, an_artifact(task, 5))
    assert kinds(examine(plain)) == ["orphan"]
    assert Tombstone(plain.ledger.database, task.name, an_artifact(task, 5).digest).bury(lambda _: False)
    assert examine(plain) == []


def test_a_version_that_is_being_collected_needs_no_name(plain: Registry, task: Task) -> None:
    promoted(plain, task)
    published(plain, task, 2)
    assert Tombstone(plain.ledger.database, task.name, an_artifact(task, 2).digest).bury(lambda _: False)
    for key in (version_key(task.name, 2), *plain.store.keys(prompt_prefix(task.name, an_artifact(task, 2).digest))):
        plain.store.delete(key)
    assert examine(plain) == []


# ---------------------------------------------------------------- one of several


def test_each_lost_verdict_is_told_and_written_again(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    first = set(plain.store.keys(prompt_prefix(task.name, an_artifact(task, 1).digest) + "/records"))
    promote(plain, task, published(plain, task, 2), Cause("me", "because", override=True))
    published(plain, task, 1, an_artifact(task, 2).digest)
    (lost,) = first
    plain.store.delete(lost)
    (found,) = examine(plain)
    assert (found.kind, found.found, found.safe) == ("dossier", "1 verdicts are not in the store", True)
    assert mended(plain, task) == []


def test_a_version_whose_making_nobody_knows_needs_a_person(plain: Registry, task: Task) -> None:
    write_artifact(plain.store, an_artifact(task, 1))
    version = plain.ledger.add_version(task.name, an_artifact(task, 1).digest)
    reconcile(plain, {}, task.name)
    (found,) = examine(plain)
    assert (found.kind, found.what, found.safe) == ("dossier", f"records of version {version.number}", False)


def test_a_publish_whose_records_are_missing_needs_its_run(plain: Registry, task: Task) -> None:
    promoted(plain, task)
    plain.ledger.intend(task.name, an_artifact(task, 9).digest)
    (found,) = examine(plain)
    assert (found.kind, found.safe) == ("publish", False)
    assert mended(plain, task) == [found]


def test_a_task_that_only_a_publish_names_is_known(plain: Registry, task: Task) -> None:
    plain.ledger.intend(task.name, an_artifact(task, 1).digest)
    assert kinds(examine(plain, task.name)) == kinds(examine(plain)) == ["publish"]
    with pytest.raises(NotFound, match="knows a task"):
        examine(plain, "another")


def test_a_task_of_which_the_store_holds_nothing_is_examined(plain: Registry, task: Task) -> None:
    plain.ledger.add_version(task.name, an_artifact(task, 1).digest)
    assert kinds(examine(plain, task.name)) == kinds(examine(plain)) == ["bytes", "name", "dossier"]


def a_lease_left_behind(ledger: Ledger, task: str) -> None:
    Lease(ledger.database, f"project {task}@production", seconds=0.0).renew()  # and its holder is killed


def test_the_lease_of_another_task_is_not_this_ones(plain: Registry, task: Task) -> None:
    promoted(plain, task)
    a_lease_left_behind(plain.ledger, "another")
    assert examine(plain, task.name) == []
    assert [(found.kind, found.task) for found in examine(plain)] == [("lease", "another")]


def test_a_repair_of_leases_takes_none_that_is_held(plain: Registry, task: Task) -> None:
    from registry.ledger.lease import Lease

    a_lease_left_behind(plain.ledger, task.name)
    held = Lease(plain.ledger.database, "project another@production", 60)
    held.renew()
    fix(plain, {}, examine(plain))
    with plain.ledger.database.writing() as connection:
        held.keep(connection)


def test_a_release_that_the_ledger_lost_needs_the_rebuild(plain: Registry, task: Task) -> None:
    promoted(plain, task)
    lost = Release(name="spring", actor="me", reason="why", versions={task.name: 1}, at="2026-01-01")
    write_release(plain.store, lost)
    (found,) = examine(plain)
    assert (found.kind, found.mend, found.safe) == ("ledger", "ptp doctor --rebuild-ledger", False)
    assert examine(plain, task.name) == []


def test_only_the_differences_that_are_given_are_mended(plain: Registry, task: Task) -> None:
    other = a_task(f"{task.name}-b")
    for each in (task, other):
        promoted(plain, each)
        plain.store.delete(pointer_key(each.name, "production"))
    mine = [found for found in examine(plain) if found.task == task.name]
    fix(plain, {}, [*mine, *(found.model_copy(update={"safe": False}) for found in examine(plain, other.name))])
    assert [(found.task, found.kind) for found in examine(plain)] == [(other.name, "pointer")]


# ---------------------------------------------------------------- reconcile


def test_a_projection_that_died_before_it_was_noted_is_noted_by_a_reconcile(
    plain: Registry, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(step: str) -> None:
        if step == "pointer written":
            raise Killed

    number = published(plain, task, 1)
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "_watching", [die])
        with pytest.raises(Killed):
            promote(plain, task, number, ME)
    assert plain.ledger.applied("store", task.name, "production") is None
    assert reconcile(plain, {}) == []
    assert plain.ledger.applied("store", task.name, "production") == (1, 1)


class Away(FolderStore):
    """A folder that takes no writes for one task."""

    def create(self, key: str, body: bytes) -> None:
        if key.startswith("prompts/mood-b/"):
            raise ServiceUnavailable("the store went away")
        super().create(key, body)


def test_a_failure_of_one_task_ends_no_others_reconcile(plain: Registry, store: Meddled) -> None:
    for each in (a_task(f"mood-{letter}") for letter in "abc"):
        promoted(plain, each)
        plain.store.delete(pointer_key(each.name, "production"))
    actions = reconcile(Registry(plain.ledger, Away(store.root)), {})
    assert {action.task: action.done for action in actions} == {"mood-a": True, "mood-b": False, "mood-c": True}


def test_an_interrupted_publish_is_told_by_a_reconcile_of_its_task(plain: Registry, task: Task) -> None:
    plain.ledger.intend(task.name, an_artifact(task, 1).digest)
    assert [action.done for action in reconcile(plain, {}, task.name)] == [False]
    assert reconcile(plain, {}, "another") == []


def test_a_publish_is_finished_with_the_commit_that_it_was_made_at(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    register(plain, replace(a_request(task, 1), commit="newer"))
    plain.ledger.intend(task.name, an_artifact(task, 1).digest)
    assert mended(plain, task) == []
    publication = plain.ledger.publication(task.name, an_artifact(task, 1).digest)
    assert publication is not None
    assert publication.commit == "newer"


class Unreadable(FolderStore):
    """A store that does not answer for the pointer of one task."""

    task = ""

    def read(self, key: str) -> Stored:
        if key.startswith(f"prompts/{self.task}/aliases/"):
            raise ServiceUnavailable(f"{key} cannot be read now")
        return super().read(key)


def test_one_pointer_that_cannot_be_read_stops_no_other_task(plain: Registry, task: Task) -> None:
    tasks = [a_task(f"{letter}-{task.name}") for letter in "abc"]
    for each in tasks:
        promoted(plain, each)
    store = Unreadable(Path(plain.store.url.removeprefix("file://")))
    store.task = tasks[0].name
    for each in tasks[1:]:
        store.delete(pointer_key(each.name, "production"))
    actions = reconcile(Registry(plain.ledger, store), {})
    assert [(action.task, action.done) for action in actions] == [
        (tasks[0].name, False),
        *((each.name, True) for each in tasks[1:]),
    ]
