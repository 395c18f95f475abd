"""Publishing and projecting step by step: the order of puts, second looks, what another process does between two."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_request, a_snapshot, a_task, an_artifact, published
from ptpipeline.errors import (
    ArtifactError,
    LeaseHeld,
    NotFound,
    PromotionRefused,
    ServiceUnavailable,
    SettingsError,
    Terminal,
)
from ptpipeline.records.versions import Pointer, Promotion, VersionName
from ptpipeline.storage import FolderStore, Stored
from ptpipeline.storage.keys import MOVED_KEY, history_key, pointer_key, prompt_prefix, version_key
from ptpipeline.task.task import Task
from registry.ledger.ledger import Move
from registry.ledger.tombstone import Tombstone
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.versions import projection
from registry.versions.commit import Cause
from registry.versions.mlflow_alias import Action
from registry.versions.projection import attempt, is_finished, project, wait_for_lease
from registry.versions.promotion import promote, rollback
from registry.versions.publish import register, stage
from tests.registry.repair.test_second_look import an_ensemble, ensemble_of_two
from tests.registry.signed import TASK, overwrite

ME = Cause("me", "because")


class Watched(FolderStore):
    """A folder that notes its puts, and in which something happens around a read or before a put."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.puts: list[str] = []
        self.before_read: Callable[[str], None] = lambda key: None
        self.after_read: Callable[[str], None] = lambda key: None
        self.before_put: Callable[[str], None] = lambda key: None

    def read(self, key: str) -> Stored:
        self.before_read(key)
        stored = super().read(key)
        self.after_read(key)
        return stored

    def create(self, key: str, body: bytes) -> None:
        self.before_put(key)
        super().create(key, body)
        self.puts.append(key)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        self.before_put(key)
        super().replace(key, body, etag)
        self.puts.append(key)


@pytest.fixture
def store(plain: Registry) -> Watched:
    return Watched(Path(plain.store.url.removeprefix("file://")))


@pytest.fixture
def watched(plain: Registry, store: Watched) -> Registry:
    return Registry(plain.ledger, store)


def once(do: Callable[[], object], key: str) -> Callable[[str], None]:
    """Do it the first time that this key is named."""
    left = [do]

    def meddle(named: str) -> None:
        if named == key and left:
            left.pop()()

    return meddle


def pointer(registry: Registry, task: Task) -> Promotion:
    return Pointer.model_validate_json(registry.store.read(pointer_key(task.name, "production")).body).promotion


def moved(registry: Registry, task: Task, version: int, expected: int) -> Promotion:
    move = Move(task=task.name, alias="production", version=version, actor="rival", reason="why", expected=expected)
    return registry.ledger.append(move)


# ---------------------------------------------------------------- publishing


def test_a_manifest_is_stored_behind_its_tensors(watched: Registry, store: Watched, task: Task) -> None:
    stage(watched.ledger, watched.store, an_artifact(task, 1))
    assert [key.rsplit("/", 1)[-1] for key in store.puts] == ["prompt.safetensors", "manifest.json"]


def test_members_are_stored_before_the_ensemble_that_names_them(watched: Registry, store: Watched, task: Task) -> None:
    members = an_ensemble(watched, task)
    manifests = [key.split("/")[2] for key in store.puts if key.endswith("/manifest.json")]
    assert manifests[:2] == [member.digest for member in members]
    assert len(manifests) == 3


def test_an_intent_is_noted_before_the_first_byte_is_stored(watched: Registry, store: Watched, task: Task) -> None:
    intents: list[int] = []
    store.before_put = lambda key: intents.append(len(watched.ledger.intents()))
    stage(watched.ledger, watched.store, an_artifact(task, 1))
    assert intents == [1, 1]


def test_members_are_kept_by_their_intents_until_the_ensemble_is_stored(
    watched: Registry, store: Watched, task: Task
) -> None:
    intents: list[int] = []
    store.before_put = lambda key: intents.append(len(watched.ledger.intents())) if "/manifest" in key else None
    an_ensemble(watched, task)
    assert intents == [3, 3, 3]
    assert watched.ledger.intents() == []


def test_a_version_is_named_in_the_store_behind_its_records(watched: Registry, store: Watched, task: Task) -> None:
    published(watched, task, 1)
    names = [key.removeprefix(f"prompts/{task.name}/") for key in store.puts]
    assert names.index("versions/1.json") > max(at for at, name in enumerate(names) if "/records/" in name)


def test_an_ensemble_with_a_lost_member_is_no_version(plain: Registry, task: Task) -> None:
    whole, members = ensemble_of_two(task)
    digest = stage(plain.ledger, plain.store, whole, members)
    plain.store.delete(f"{prompt_prefix(task.name, members[0].digest)}/manifest.json")
    request = a_request(task, 0)
    with pytest.raises(ArtifactError, match="its member"):
        register(plain, type(request)(request.tuned.model_copy(update={"digest": digest})))
    assert plain.ledger.versions() == []


@pytest.mark.parametrize("step", ["publish numbered", "publish named"])
def test_a_publish_whose_bytes_vanish_meanwhile_does_not_end(
    plain: Registry, task: Task, at_step: Callable[[str, Callable[[], object]], None], step: str
) -> None:
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    manifest = f"{prompt_prefix(task.name, an_artifact(task, 1).digest)}/manifest.json"
    at_step(step, lambda: plain.store.delete(manifest))
    with pytest.raises(NotFound):
        register(plain, a_request(task, 1))
    assert [intent.digest for intent in plain.ledger.intents()] == [an_artifact(task, 1).digest]


def test_a_number_that_another_publish_takes_meanwhile_is_no_older_ledger(
    plain: Registry, watched: Registry, store: Watched, task: Task
) -> None:
    store.before_read = once(lambda: published(plain, task, 2), version_key(task.name, 1))
    assert published(watched, task, 1) == 2


def test_a_version_that_the_store_names_otherwise_is_published_again(plain: Registry, task: Task) -> None:
    """Its own number is known: what the store says of the next one is no matter of its."""
    published(plain, task, 1)
    name = VersionName(task=task.name, number=2, digest=an_artifact(task, 2).digest)
    plain.store.create(version_key(task.name, 2), name.model_dump_json().encode())
    assert published(plain, task, 1) == 1
    with pytest.raises(Terminal, match="was it restored from an older backup"):
        published(plain, task, 3)
    assert published(plain, task, 2) == 2


def test_what_is_no_name_keeps_its_number_from_nobody(plain: Registry, task: Task) -> None:
    plain.store.create(version_key(task.name, 1), b"{}")
    assert published(plain, task, 1) == 1
    assert VersionName.model_validate_json(plain.store.read(version_key(task.name, 1)).body).number == 1


def test_the_end_of_a_publish_is_its_own_alone(plain: Registry, task: Task) -> None:
    other = a_task(f"{task.name}-b")
    digest = an_artifact(task, 1).digest
    for name, intended in ((task.name, digest), (task.name, "b" * 64), (other.name, digest)):
        plain.ledger.intend(name, intended)
    plain.ledger.fulfil(task.name, digest)
    left = {(intent.task, intent.digest) for intent in plain.ledger.intents()}
    assert left == {(task.name, "b" * 64), (other.name, digest)}


# ---------------------------------------------------------------- projecting


def test_the_history_is_stored_before_the_pointer_and_servers_are_told_behind_it(
    watched: Registry, store: Watched, task: Task
) -> None:
    number = published(watched, task, 1)
    store.puts.clear()
    promote(watched, task, number, ME)
    assert store.puts == [history_key(task.name, "production", 1), pointer_key(task.name, "production"), MOVED_KEY]


@pytest.mark.parametrize("seq", [1, 2])
def test_servers_are_told_by_whoever_finds_a_promotion_that_died_behind_its_pointer(
    watched: Registry, store: Watched, task: Task, seq: int
) -> None:
    before = promote(watched, task, published(watched, task, 9), ME).digest if seq == 2 else None
    number = published(watched, task, 1, before)
    store.before_put = once(_die, MOVED_KEY)
    with pytest.raises(KeyboardInterrupt):
        promote(watched, task, number, ME)
    store.puts.clear()
    for _ in range(2):
        project(watched, task.name, "production")
    assert store.puts == [history_key(task.name, "production", seq), MOVED_KEY]


@pytest.mark.parametrize("refused", ["before_read", "before_put"])
def test_who_may_not_tell_servers_has_promoted_nevertheless(
    watched: Registry, store: Watched, task: Task, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    number = published(watched, task, 1)
    setattr(store, refused, once(_refuse, MOVED_KEY))
    head = promote(watched, task, number, ME)
    assert "within a minute instead of two seconds: this identity may not" in caplog.text
    assert is_finished(watched, head)


def _refuse() -> None:
    raise SettingsError("this identity may not")


def _die() -> None:
    raise KeyboardInterrupt


def test_a_promotion_for_the_same_cause_is_no_rollback_to_finish(plain: Registry, task: Task) -> None:
    first = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, first.digest)
    moved(plain, task, 2, expected=1)  # and its promoter was killed before readers saw it
    assert rollback(plain, task.name, Cause("rival", "why")).version == 1


def test_a_pointer_that_changes_while_it_is_replaced_is_read_again(
    plain: Registry, watched: Registry, store: Watched, task: Task
) -> None:
    first = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, first.digest)
    moved(plain, task, 2, expected=1)
    newest: list[Promotion] = []

    def overtake() -> None:
        newest.append(moved(plain, task, 1, expected=2))
        projection._project_pointer(plain, newest[0])  # as by a process that stood still before its write

    store.after_read = once(overtake, pointer_key(task.name, "production"))
    assert project(watched, task.name, "production") == []
    assert pointer(plain, task) == newest[0]


def test_a_pointer_that_keeps_changing_is_left_to_its_writer(
    plain: Registry, watched: Registry, store: Watched, task: Task
) -> None:
    promote(plain, task, published(plain, task, 1), ME)
    key = pointer_key(task.name, "production")
    published(plain, task, 2, an_artifact(task, 1).digest)
    moved(plain, task, 2, expected=1)

    def meddle(named: str) -> None:
        if named == key:
            body = plain.store.read(key)
            plain.store.replace(key, body.body + b" ", body.etag)

    store.before_put = meddle
    with pytest.raises(LeaseHeld, match="another process keeps writing"):
        project(watched, task.name, "production")


def test_a_history_that_was_lost_is_stored_whole_by_a_projection(plain: Registry, task: Task) -> None:
    first = promote(plain, task, published(plain, task, 1), ME)
    promote(plain, task, published(plain, task, 2, first.digest), ME)
    keys = [history_key(task.name, "production", seq) for seq in (1, 2)]
    for key in keys:
        plain.store.delete(key)
    project(plain, task.name, "production")
    assert [plain.store.exists(key) for key in keys] == [True, True]


def test_a_history_of_another_ledger_is_not_written_over(plain: Registry, task: Task) -> None:
    number = published(plain, task, 1)
    plain.store.create(history_key(task.name, "production", 1), b"{}")
    moved(plain, task, number, expected=0)
    with pytest.raises(Terminal, match="promotion 1 in the store differs from the ledger's"):
        project(plain, task.name, "production")
    assert not plain.store.exists(pointer_key(task.name, "production"))


def test_what_readers_see_already_costs_one_read(watched: Registry, store: Watched, task: Task) -> None:
    promote(watched, task, published(watched, task, 1), ME)
    reads: list[str] = []
    store.puts.clear()
    store.before_read = reads.append
    projection.follow_heads(watched, task.name)
    assert (reads, store.puts) == ([pointer_key(task.name, "production")], [])


def test_a_pointer_that_cannot_be_asked_stops_nothing_that_follows_heads(
    watched: Registry, store: Watched, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    promote(watched, task, published(watched, task, 1), ME)

    def away(key: str) -> None:
        raise ServiceUnavailable("the store went away")

    store.before_read = away
    projection.follow_heads(watched, task.name)
    assert f"whether the store shows {task.name}@production is not known: the store went away" in caplog.text


def test_a_promotion_is_finished_once_both_the_store_and_mlflow_are_noted(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    both = Registry(plain.ledger, plain.store, MlflowStore("http://127.0.0.1:9"))  # which is not asked
    assert (projection.is_finished(plain, head), projection.is_finished(both, head)) == (True, False)
    plain.ledger.record_applied("mlflow", head)
    assert projection.is_finished(both, head)
    later = moved(plain, task, 1, expected=1)
    assert not projection.is_finished(both, later)


def test_a_pointer_that_nobody_signed_shows_no_head(keyed: Registry) -> None:
    (head,) = keyed.ledger.heads(TASK.name)
    assert projection.is_stored(keyed, head)
    key = pointer_key(TASK.name, head.alias)
    overwrite(keyed.store, key, keyed.store.read(key).body + b" ")
    assert not projection.is_stored(keyed, head)


def test_an_alias_that_was_never_promoted_is_not_projected(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    with pytest.raises(NotFound, match="never promoted"):
        project(plain, task.name, "production")


def test_a_lease_that_is_held_is_waited_for() -> None:
    calls: list[int] = []

    def step() -> list[Action]:
        calls.append(1)
        if len(calls) < 3:
            raise LeaseHeld("held")
        return [Action(task="mood", what="done")]

    assert [action.what for action in wait_for_lease(step, 5)] == ["done"]


def test_what_no_wait_mends_is_not_waited_for() -> None:
    calls: list[int] = []

    def step() -> list[Action]:
        calls.append(1)
        raise ServiceUnavailable("away")

    with pytest.raises(ServiceUnavailable):
        wait_for_lease(step, 5)
    assert calls == [1]


def test_a_defect_is_not_told_as_what_could_not_be_done() -> None:
    def step() -> list[Action]:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        attempt("mood", step)


# ---------------------------------------------------------------- collected meanwhile


def test_a_version_that_is_collected_while_it_is_checked_is_not_promoted(
    plain: Registry, task: Task, at_step: Callable[[str, Callable[[], object]], None]
) -> None:
    number = published(plain, task, 1)
    grave = Tombstone(plain.ledger.database, task.name, an_artifact(task, 1).digest)
    at_step("promotion checked", lambda: grave.bury(lambda _: False))
    with pytest.raises(PromotionRefused, match="the garbage collection deleted"):
        promote(plain, task, number, ME)
    assert plain.ledger.heads() == []


def test_a_snapshot_that_is_being_collected_is_not_used_again(plain: Registry, task: Task) -> None:
    snapshot = a_snapshot(task)
    assert Tombstone(plain.ledger.database, task.name, snapshot.digest).bury(lambda _: False)
    with pytest.raises(LeaseHeld, match="being deleted"):
        plain.ledger.save_snapshot(snapshot)
    assert plain.ledger.snapshot(task.name, snapshot.digest) is None
