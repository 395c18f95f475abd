"""Publishing and reconciling without servers: any step may fail, a repeat converges; the pointer follows the ledger
only.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete

from benchmarks.fixtures.prompts import PNG, a_request, an_artifact, published
from ptpipeline.errors import ArtifactError, LeaseHeld, NotFound, PtpError, ServiceUnavailable
from ptpipeline.evaluation.mistakes import Mistake, Mistakes
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.prompts.interpretation import Pulled, Wayward
from ptpipeline.records.base import now
from ptpipeline.records.versions import Pointer, Promotion
from ptpipeline.storage import FolderStore, Listed, ObjectStore, Stored
from ptpipeline.storage.keys import dossiers_prefix, history_key, page_key, pointer_key, prompt_prefix, version_key
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.card.page import render_page
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger import tables
from registry.ledger.lease import leased
from registry.ledger.ledger import Ledger, Move
from registry.ledger.results import Publication
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.reconcile import reconcile
from registry.versions import projection
from registry.versions.commit import Cause
from registry.versions.dossier import stored_verdicts
from registry.versions.projection import is_stored, project
from registry.versions.promotion import promote
from registry.versions.publish import attach, forget_files, load_card, register, stage, withhold_texts

ME = Cause("me", "because")
CALLS = 23  # to the store, by one publish and one promotion


class FailingStore:
    """A store whose n-th call is lost on the way: before it happened, or (`after`) after it."""

    def __init__(self, inner: ObjectStore, fails_at: int, after: bool = False) -> None:
        self.inner, self.fails_at, self.after, self.url, self.where = inner, fails_at, after, inner.url, inner.where
        self.calls = 0

    def read(self, key: str) -> Stored:
        with self._call():
            return self.inner.read(key)

    def exists(self, key: str) -> bool:
        with self._call():
            return self.inner.exists(key)

    def create(self, key: str, body: bytes) -> None:
        with self._call():
            self.inner.create(key, body)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        with self._call():
            self.inner.replace(key, body, etag)

    def delete(self, key: str) -> None:
        with self._call():
            self.inner.delete(key)

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        with self._call():
            yield from self.inner.list_objects(prefix)

    def keys(self, prefix: str) -> Iterator[str]:
        with self._call():
            yield from self.inner.keys(prefix)

    def _call(self) -> "_Call":
        self.calls += 1
        return _Call(self.calls == self.fails_at, self.after)


class _Call:
    def __init__(self, fails: bool, after: bool) -> None:
        self.fails, self.after = fails, after

    def __enter__(self) -> None:
        if self.fails and not self.after:
            raise ServiceUnavailable("the store went away")

    def __exit__(self, *_: object) -> None:
        if self.fails and self.after:
            raise ServiceUnavailable("the store's answer was lost")


def publish_and_promote(registry: Registry, task: Task) -> Promotion:
    return promote(registry, task, published(registry, task, 1), ME)


def pointer(registry: Registry, task: Task) -> Promotion:
    return Pointer.model_validate_json(registry.store.read(pointer_key(task.name, "production")).body).promotion


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(1, CALLS + 1))
def test_a_repeat_finishes_what_failed_at_any_step(plain: Registry, task: Task, step: int, after: bool) -> None:
    failing = Registry(plain.ledger, FailingStore(plain.store, step, after))
    try:
        publish_and_promote(failing, task)
    except PtpError:
        publish_and_promote(plain, task)
    reconcile(plain, {})
    assert examine(plain) == []
    assert [row.seq for row in plain.ledger.history(task.name)] == [1]
    assert pointer(plain, task) == plain.ledger.head(task.name, "production")


def test_every_step_of_a_publish_was_made_to_fail(plain: Registry, task: Task) -> None:
    counting = FailingStore(plain.store, 0)
    publish_and_promote(Registry(plain.ledger, counting), task)
    assert counting.calls == CALLS


def test_publishing_twice_is_one_version(plain: Registry, task: Task) -> None:
    assert [published(plain, task, 1) for _ in range(2)] == [1, 1]
    assert plain.ledger.intents() == []


def test_a_staged_prompt_is_no_version(plain: Registry, task: Task) -> None:
    digest = stage(plain.ledger, plain.store, an_artifact(task))
    assert [intent.digest for intent in plain.ledger.intents(task.name)] == [digest]
    assert plain.ledger.versions(task.name) == []
    (found,) = examine(plain)
    assert found.what == f"publish of {digest[:12]}"
    assert found.mend.startswith(f"`ptp run {task.name}`")


def test_registering_unstored_bytes_is_refused(plain: Registry, task: Task) -> None:
    with pytest.raises(NotFound, match="no object"):
        register(plain, a_request(task))
    assert plain.ledger.versions(task.name) == []


def test_registering_altered_bytes_is_refused(plain: Registry, task: Task) -> None:
    digest = stage(plain.ledger, plain.store, an_artifact(task))
    key = f"{prompt_prefix(task.name, digest)}/prompt.safetensors"
    stored = plain.store.read(key)
    plain.store.replace(key, stored.body[:-4], stored.etag)
    with pytest.raises(ArtifactError, match="truncated or altered"):
        register(plain, a_request(task))
    assert plain.ledger.versions(task.name) == []


def test_a_registration_outlives_an_unreachable_mlflow(
    plain: Registry, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    assert published(Registry(plain.ledger, plain.store, MlflowStore("http://127.0.0.1:9")), task, 1) == 1
    assert "its page lags until a reconcile: MLflow at http://127.0.0.1:9 does not answer" in caplog.text
    assert plain.ledger.intents(task.name) == []


@pytest.mark.servers
def test_a_reconcile_adds_what_mlflow_missed(plain: Registry, task: Task, mlflow_url: str) -> None:
    away = Registry(plain.ledger, plain.store, MlflowStore("http://127.0.0.1:9"))
    head = promote(away, task, published(away, task, 1), ME)
    back = Registry(plain.ledger, plain.store, MlflowStore(mlflow_url))
    reconcile(back, {task.name: task})
    assert back.mlflow is not None
    assert back.mlflow.find(task.name, head.digest) == back.mlflow.aliases(task.name)["production"]


def test_a_promotion_outlives_an_unreachable_mlflow(
    plain: Registry, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    number = published(plain, task, 1)
    head = promote(Registry(plain.ledger, plain.store, MlflowStore("http://127.0.0.1:9")), task, number, ME)
    assert "run `ptp reconcile`" in caplog.text
    assert pointer(plain, task) == head == plain.ledger.head(task.name, "production")
    assert plain.ledger.applied("mlflow", task.name, "production") is None


# ---------------------------------------------------------------- the pointer


def test_projecting_again_changes_nothing(plain: Registry, task: Task) -> None:
    publish_and_promote(plain, task)
    before = plain.store.read(pointer_key(task.name, "production"))
    assert project(plain, task.name, "production") == []
    assert plain.store.read(pointer_key(task.name, "production")) == before


@pytest.mark.parametrize("damage", ["garbage", "foreign", "ahead"])
def test_a_foreign_pointer_is_quarantined(plain: Registry, task: Task, damage: str) -> None:
    head = publish_and_promote(plain, task)
    foreign = {"garbage": b"not JSON"}
    changes: dict[str, dict[str, object]] = {"foreign": {"digest": "b" * 64}, "ahead": {"seq": 9, "at": now()}}
    for name, change in changes.items():
        foreign[name] = Pointer(promotion=head.model_copy(update=change), nonce="n" * 16).model_dump_json().encode()
    key = pointer_key(task.name, "production")
    plain.store.replace(key, foreign[damage], plain.store.read(key).etag)
    assert [(d.what, d.mend) for d in examine(plain)] == [("pointer production", "ptp reconcile")]
    assert "was not a row of the ledger" in reconcile(plain, {})[0].what
    assert pointer(plain, task) == head
    assert [plain.store.read(kept).body for kept in plain.store.keys(f"prompts/{task.name}/quarantine")] == [
        foreign[damage]
    ]


def test_a_pointer_ahead_in_the_ledger_stays(plain: Registry, task: Task) -> None:
    first = publish_and_promote(plain, task)
    second = plain.ledger.append(
        Move(task=task.name, alias="production", version=1, actor="me", reason="again", expected=1)
    )
    project(plain, task.name, "production")
    assert projection._project_pointer(plain, first) == []
    assert pointer(plain, task) == second


def test_a_deleted_pointer_comes_back(plain: Registry, task: Task) -> None:
    head = publish_and_promote(plain, task)
    plain.store.delete(pointer_key(task.name, "production"))
    assert [action.what for action in reconcile(plain, {})] == ["pointer production -> version 1 (seq 1)"]
    assert pointer(plain, task) == head


def test_a_pointer_without_promotion_is_reported(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    plain.store.create(pointer_key(task.name, "stray"), b"{}")
    assert [(d.what, d.expected) for d in examine(plain)] == [("pointer stray", "no such alias in the ledger")]


@pytest.mark.servers
def test_only_mlflow_waits_for_the_lease(shown: Registry, task: Task) -> None:
    publish_and_promote(shown, task)
    shown.store.delete(pointer_key(task.name, "production"))
    with leased(shown.ledger.database, f"project {task.name}@production", 30):
        with pytest.raises(LeaseHeld):
            project(shown, task.name, "production")
        assert is_stored(shown, shown.ledger.heads(task.name)[0])
        shown.store.delete(pointer_key(task.name, "production"))
        assert [action.done for action in reconcile(shown, {}, task.name, wait=0.1)] == [False]
        assert is_stored(shown, shown.ledger.heads(task.name)[0])


def test_doctor_names_damaged_bytes_and_orphans(plain: Registry, task: Task) -> None:
    publish_and_promote(plain, task)
    plain.store.delete(f"{prompt_prefix(task.name, an_artifact(task, 1).digest)}/prompt.safetensors")
    plain.store.create(f"{prompt_prefix(task.name, 'c' * 64)}/prompt.safetensors", b"left behind")
    assert [d.what for d in examine(plain)] == ["bytes of version 1", f"stored prompt {'c' * 12}"]


def test_an_empty_registry_agrees(tmp_path: Path, ledger: Ledger) -> None:
    empty = Registry(ledger, FolderStore(tmp_path / "store"))
    assert examine(empty) == []
    assert reconcile(empty, {}) == []


def test_stored_bytes_are_the_trained_ones(plain: Registry, task: Task) -> None:
    publish_and_promote(plain, task)
    assert read_artifact(plain.store, task.name, pointer(plain, task).digest) == an_artifact(task, 1)


def test_a_lost_history_is_kept_again(plain: Registry, task: Task) -> None:
    first = publish_and_promote(plain, task)
    promote(plain, task, published(plain, task, 2, first.digest), ME)
    for seq in (1, 2):
        plain.store.delete(history_key(task.name, "production", seq))
    assert reconcile(plain, {}) != []
    assert examine(plain) == []
    assert [
        plain.store.read(history_key(task.name, "production", row.seq)).body for row in plain.ledger.history(task.name)
    ] == [row.model_dump_json(indent=1).encode() for row in plain.ledger.history(task.name)]


def test_a_projection_keeps_a_history_that_was_lost_again(plain: Registry, task: Task) -> None:
    first = publish_and_promote(plain, task)
    promote(plain, task, published(plain, task, 2, first.digest), ME)
    for seq in (1, 2):
        plain.store.delete(history_key(task.name, "production", seq))
    project(plain, task.name, "production")
    assert all(plain.store.exists(history_key(task.name, "production", seq)) for seq in (1, 2))


def test_a_promotion_whose_readers_do_not_see_it_is_followed_again(plain: Registry, task: Task) -> None:
    """The ledger says that the store shows it, and the store lost it; or the store shows it, and the ledger not that
    all do.
    """
    head = publish_and_promote(plain, task)
    plain.store.delete(pointer_key(task.name, "production"))
    projection.follow_heads(plain, task.name)
    assert pointer(plain, task) == head
    with plain.ledger.database.writing() as connection:
        connection.execute(delete(tables.projection))
    projection.follow_heads(plain, task.name)
    assert plain.ledger.applied("store", task.name, "production") == (1, 1)


def test_a_ledger_from_a_backup_moves_no_pointer_back(plain: Registry, task: Task) -> None:
    head = publish_and_promote(plain, task)
    later = head.model_copy(update={"seq": 2, "at": now()})
    plain.store.create(history_key(task.name, "production", 2), later.model_dump_json(indent=1).encode())
    key = pointer_key(task.name, "production")
    plain.store.replace(
        key, Pointer(promotion=later, nonce="n" * 16).model_dump_json().encode(), plain.store.read(key).etag
    )
    (action,) = reconcile(plain, {})
    assert (action.done, "was it restored from an older backup?" in action.what) == (False, True)
    assert pointer(plain, task) == later


@pytest.mark.parametrize("task_named", [True, False])
def test_names_in_the_store_come_back(plain: Registry, task: Task, task_named: bool) -> None:
    published(plain, task, 1)
    plain.store.delete(version_key(task.name, 1))
    assert [action.what for action in reconcile(plain, {}, task.name if task_named else None)] == [
        "version 1 named in the store"
    ]
    assert examine(plain) == []


# ---------------------------------------------------------------- what a publish remembers


def publication_of(registry: Registry, task: Task, seed: int = 1) -> Publication:
    publication = registry.ledger.publication(task.name, an_artifact(task, seed).digest)
    assert publication is not None
    return publication


def test_a_publish_that_knows_less_forgets_nothing_but_what_is_gone(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    before = publication_of(plain, task)
    plain.ledger.save_publication(before.model_copy(update={"neighbours": "kept", "wayward": ("gone",)}))
    register(plain, replace(a_request(task, 1), commit=None, plots={}))
    after = publication_of(plain, task)
    assert (after.commit, after.plots, after.neighbours, after.wayward) == ("c0ffee", before.plots, "kept", ())


FILES = {"neighbours": "n", "mistakes": "m", "wayward": ("w", "x"), "plots": {"one": "p", "two": "q"}}


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ("n", {"neighbours": None}),
        ("m", {"mistakes": None}),
        ("w", {"wayward": ("x",)}),
        ("q", {"plots": {}}),  # the next run draws all
        ("z", {}),
    ],
)
def test_only_files_that_are_gone_are_forgotten(
    plain: Registry, task: Task, gone: str, left: dict[str, object]
) -> None:
    published(plain, task, 1)
    forget_files(plain, publication_of(plain, task).model_copy(update=FILES), {gone})
    after = publication_of(plain, task)
    assert {name: getattr(after, name) for name in FILES} == FILES | left


def test_texts_of_a_version_that_was_collected_are_withheld_too(plain: Registry, task: Task) -> None:
    worst = Mistake(text="A secret.", wanted="good", answered="bad", figure=0.9)
    for seed in (1, 2):
        stage(plain.ledger, plain.store, an_artifact(task, seed))
        shown = Mistakes(shown=[worst], wrong=1, rows=20, figure="probability")
        register(plain, replace(a_request(task, seed), mistakes=shown))
    collect(plain, Retention(candidates=1, grace=timedelta(0)), apply=True)
    withhold_texts(plain, task.name)
    assert plain.ledger.publications_with_texts(task.name) == []


def with_texts(task: Task, figures: str, passed: bool = True) -> Provenance:
    """All records of the prompt, with texts that it answers worst and two plots, one of the training alone."""
    request = a_request(task, 1, None, passed)
    assert request.verdict is not None
    worst = Mistake(text="A secret.", wanted="good", answered="bad", figure=0.9)
    return replace(
        request,
        verdict=request.verdict.model_copy(update={"figures": figures}),
        mistakes=Mistakes(shown=[worst], wrong=1, rows=20, figure="probability"),
        plots={"learning_curve": PNG, "confusion": PNG},
    )


def an_experiment(task: Task) -> Wayward:
    """What a prompt that was pulled to a text answers."""
    landed = {"cosine": 0.5, "dot": 0.5, "euclidean": 0.5}
    return Wayward(
        task=task.name,
        text="a tale",
        tokens=["a", "tale"],
        metric="accuracy",
        steps=10,
        test_rows=20,
        text_test=0.5,
        text_landed=landed,
        plain=Pulled(gamma=0, landed=landed, distance=3.5, dev=0.8, test=0.8),
        pulled=[],
    )


@pytest.mark.parametrize(
    ("figures", "passed", "shown"), [("quiet", False, False), ("quiet", True, True), ("open", False, True)]
)
def test_a_quiet_refusal_has_neither_texts_nor_plots_of_test_rows_on_its_card(
    plain: Registry, task: Task, figures: str, passed: bool, shown: bool
) -> None:
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    register(plain, with_texts(task, figures, passed))
    attach(plain, an_artifact(task, 1).digest, an_experiment(task))
    card = load_card(plain, task.name, an_artifact(task, 1).digest)
    known = card.provenance
    assert (known.mistakes is not None, known.report is not None, "confusion" in known.plots) == (shown,) * 3
    assert card.wayward == [an_experiment(task)] * shown
    assert "learning_curve" in known.plots


def test_the_report_on_a_card_is_the_one_behind_its_verdict(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    judged = a_request(task, 1).report
    assert judged is not None
    plain.ledger.save_publication(
        publication_of(plain, task), judged.model_copy(update={"evaluation_key": "b" * 64, "rows": 7})
    )
    assert load_card(plain, task.name, judged.digest).provenance.report == judged


def test_a_part_of_a_page_that_was_altered_is_left_out_and_told(
    plain: Registry, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    published(plain, task, 1)
    ((name, key),) = publication_of(plain, task).plots.items()
    plain.store.replace(key, b"another image", plain.store.read(key).etag)
    assert name not in load_card(plain, task.name, an_artifact(task, 1).digest).provenance.plots
    assert "a page is written without one of its parts" in caplog.text


def test_withheld_texts_leave_the_page_at_once(plain: Registry, task: Task) -> None:
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    version = register(plain, with_texts(task, "open"))
    withhold_texts(plain, task.name)
    card = load_card(plain, task.name, version.digest)
    page = page_key(task.name, version.digest, render_page(card, version))
    assert b"A secret." not in plain.store.read(page).body


def test_an_altered_dossier_proves_no_verdict(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    digest = an_artifact(task, 1).digest
    assert len(stored_verdicts(plain.store, task.name, digest)) == 1
    (key,) = plain.store.keys(dossiers_prefix(task.name, digest))
    plain.store.replace(key, b"{}", plain.store.read(key).etag)
    assert stored_verdicts(plain.store, task.name, digest) == set()
