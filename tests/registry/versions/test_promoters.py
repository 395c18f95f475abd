"""A task's promoters: without their signature no override counts at any door, and if the task asks no promotion."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task, an_artifact, published
from ptpipeline.errors import ArtifactError, PromotionRefused, TaskFileError
from ptpipeline.records.versions import Pointer, Promotion
from ptpipeline.serving.resolver import resolve
from ptpipeline.signing import SigningKey
from ptpipeline.storage.keys import pointer_key
from ptpipeline.storage.signed import find_signer
from ptpipeline.task.folder import load_task
from ptpipeline.task.task import Task
from registry.ledger.ledger import Ledger, Release
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.rebuild import rebuild
from registry.versions import mlflow_edit
from registry.versions.beside import place_beside
from registry.versions.commit import Cause
from registry.versions.projection import history_object
from registry.versions.promoters import find_promoters
from registry.versions.promotion import (
    Transition,
    check_transition,
    promote,
    promote_release,
    rollback,
    rollback_release,
)
from registry.versions.sign import sign_task
from tests.registry.signed import ADA, EVE, WORKER, public_line, signed

PLAIN = a_task()


def ada(override: bool = False, key: SigningKey | None = ADA) -> Cause:
    return Cause("ada", "why", override, key)


def declare(tasks: Path, required_for: str | None, *keys: SigningKey) -> Task:
    """Write the task's file, with these promoters."""
    lines = [
        "name: mood",
        "base_model: tiny",
        "data: {source: {path: rows.csv, format: csv}, text: text, label: label}",
        'template: "{text}\\nMood:"',
        'labels: {bad: " bad", good: " good"}',
        "gate: {metric: accuracy, minimum: 0.8}",
    ]
    if required_for:
        lines += [
            "promoters:",
            f"  required_for: {required_for}",
            "  keys:",
            *(f"    - {public_line(k)}" for k in keys),
        ]
    tasks.mkdir(exist_ok=True)
    (tasks / "mood.yaml").write_text("\n".join(lines) + "\n")
    return load_task(tasks / "mood.yaml")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return tmp_path / "tasks"


def opened(plain: Registry, tasks: Path, key: SigningKey | None) -> Registry:
    return signed(plain, key, WORKER, ADA, tasks=tasks)


@pytest.fixture
def worker(plain: Registry, tasks: Path) -> Registry:
    """The registry as the worker opens it: version 1 is in production, 2 failed, 3 passed."""
    declare(tasks, None)
    registry = opened(plain, tasks, WORKER)
    first = promote(registry, PLAIN, published(registry, PLAIN, 1), Cause("nightly", "passed"))
    published(registry, PLAIN, 2, first.digest, "failed")
    published(registry, PLAIN, 3, first.digest)
    return registry


# ---------------------------------------------------------------- the task file


def test_promoters_move_no_identity_of_the_task(tasks: Path) -> None:
    without, by = declare(tasks, None), declare(tasks, "promotion", ADA)
    assert (by.recipe_digest(), by.policy_digest()) == (without.recipe_digest(), without.policy_digest())
    assert by.promoters is not None
    assert [*by.promoters.public_keys()] == [ADA.id]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            public_line(ADA),
            ADA.id,
            "promoters.keys.*not an Ed25519 public key; expected the line",
        ),
        (f"    - {public_line(ADA)}\n", "    []\n", "promoters.keys"),
        ("required_for: promotion", "required_for: everything", "promoters.required_for"),
        ("promoters:", "promote: auto\npromoters:", "set `promote: manual`"),
    ],
)
def test_promoters_that_cannot_be_meant_are_refused(tasks: Path, old: str, new: str, sentence: str) -> None:
    declare(tasks, "promotion", ADA)
    path = tasks / "mood.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(TaskFileError, match=rf"(?s)mood.yaml.*{sentence}"):
        load_task(path)


# ---------------------------------------------------------------- the doors: override


@pytest.mark.parametrize(
    ("cause", "sentence"),
    [
        (ada(override=True, key=None), "ada signed nothing"),
        (ada(override=True, key=WORKER), f"key {WORKER.id} is none of them"),
        (ada(override=True, key=EVE), f"key {EVE.id} is none of them"),
        (Cause("prefect (claims ada)", "why", override=True), r"prefect \(claims ada\) signed nothing"),
    ],
)
def test_an_override_without_a_promoters_key_is_refused(
    worker: Registry, tasks: Path, cause: Cause, sentence: str
) -> None:
    task = declare(tasks, "override", ADA)
    with pytest.raises(PromotionRefused, match=f"asks for a promoter's signature of an override .*, and {sentence}"):
        promote(worker, task, 2, cause)
    with pytest.raises(PromotionRefused, match=sentence):
        promote_release(worker, {"mood": task}, release(2), cause)
    assert [row.version for row in worker.ledger.history("mood")] == [1]


def release(number: int) -> Release:
    return Release(name="spring", actor="ada", reason="why", versions={"mood": number}, at="2026-01-01T00:00:00+00:00")


def test_what_the_gate_passed_needs_no_promoter_of_overrides(worker: Registry, tasks: Path) -> None:
    assert promote(worker, declare(tasks, "override", ADA), 3, Cause("nightly", "passed")).version == 3


def test_a_promoters_override_is_signed_before_the_ledger_holds_it(
    worker: Registry, tasks: Path, plain: Registry
) -> None:
    task = declare(tasks, "override", ADA)
    row = promote(opened(plain, tasks, ADA), task, 2, ada(override=True))
    assert find_signer(worker.store, *history_object(row), [ADA.public]) == ADA.id
    assert examine(worker) == []


class Dying(Ledger):
    """A ledger whose process is killed as soon as it holds the promotion."""

    def append(self, move: object) -> Promotion:
        super().append(move)  # type: ignore[arg-type]
        raise KeyboardInterrupt


def test_a_promoter_who_dies_after_the_commit_has_signed(worker: Registry, tasks: Path, plain: Registry) -> None:
    task = declare(tasks, "override", ADA)
    with pytest.raises(KeyboardInterrupt):
        promote(replace(opened(plain, tasks, ADA), ledger=Dying(plain.ledger.url)), task, 2, ada(override=True))
    from registry.repair.reconcile import reconcile

    reconcile(worker, {})
    assert examine(worker) == []


def test_going_back_to_an_override_needs_a_promoter_too(worker: Registry, tasks: Path, plain: Registry) -> None:
    task = declare(tasks, "override", ADA)
    promoter = opened(plain, tasks, ADA)
    promote(promoter, task, 2, ada(override=True))
    rollback(worker, "mood", Cause("bob", "complaints"))
    with pytest.raises(PromotionRefused, match=r"promoter's signature of an override .*, and bob signed nothing"):
        rollback(worker, "mood", Cause("bob", "why"), to=2)
    assert rollback(promoter, "mood", ada(), to=2).override


# ---------------------------------------------------------------- the doors: every promotion


def test_no_promotion_passes_any_door_without_a_promoter(worker: Registry, tasks: Path, plain: Registry) -> None:
    task = declare(tasks, "promotion", ADA)
    promoter = opened(plain, tasks, ADA)
    for cause in (Cause("prefect", "form"), Cause("nightly", "passed"), mlflow_edit.CAUSE, ada(key=WORKER)):
        with pytest.raises(PromotionRefused, match="promoter's signature of every promotion"):
            promote(worker, task, 3, cause)
        with pytest.raises(PromotionRefused, match="promoter's signature of every promotion"):
            promote_release(worker, {"mood": task}, release(3), cause)
    transition = Transition(worker.ledger.head("mood", "production"), worker.ledger.version("mood", 3))
    with pytest.raises(PromotionRefused, match="mlflow-ui signed nothing"):
        check_transition(worker, task, transition, mlflow_edit.CAUSE, "production")
    promote_release(promoter, {"mood": task}, release(3), ada())
    for roll_back in (rollback, rollback_release):
        with pytest.raises(PromotionRefused, match="promoter's signature of every promotion"):
            roll_back(worker, "mood" if roll_back is rollback else "spring", Cause("bob", "why"))  # type: ignore[operator]
    assert rollback(promoter, "mood", ada()).version == 1


def test_other_aliases_are_anybodys(worker: Registry, tasks: Path) -> None:
    task = declare(tasks, "promotion", ADA)
    for number in (3, 2):
        assert promote(worker, task, number, Cause("bob", "try"), "canary").version == number
    assert rollback(worker, "mood", Cause("bob", "back"), alias="canary").version == 3


def test_a_task_without_a_file_has_no_promoters(plain: Registry, tasks: Path) -> None:
    assert find_promoters(plain, "mood") is find_promoters(replace(plain, tasks=tasks), "mood") is None
    declare(tasks, "promotion", ADA)
    assert find_promoters(replace(plain, tasks=tasks), "mood") is not None


def test_a_broken_task_file_lets_nobody_roll_back(worker: Registry, tasks: Path) -> None:
    promote(worker, PLAIN, 3, Cause("nightly", "passed"))
    (tasks / "mood.yaml").write_text("promoters: {keys: []}\n")
    with pytest.raises(TaskFileError):
        rollback(worker, "mood", Cause("bob", "why"))


# ---------------------------------------------------------------- the ledger, rebuilt and examined


def test_an_override_that_no_promoter_signed_is_in_no_rebuilt_ledger(
    worker: Registry, tasks: Path, tmp_path: Path
) -> None:
    promote(worker, PLAIN, 2, Cause("worker", "on my own", override=True))
    declare(tasks, "override", ADA)
    fresh = replace(worker, ledger=Ledger(f"sqlite:///{tmp_path / 'fresh.db'}"))
    refused = "\n".join(action.what for action in rebuild(fresh) if not action.done)
    assert "000002.json has no signature by a promoter of the task" in refused
    assert [row.version for row in fresh.ledger.history("mood")] == [1]


def test_a_promoters_override_is_rebuilt(worker: Registry, tasks: Path, tmp_path: Path, plain: Registry) -> None:
    task = declare(tasks, "override", ADA)
    promote(opened(plain, tasks, ADA), task, 2, ada(override=True))
    fresh = replace(worker, ledger=Ledger(f"sqlite:///{tmp_path / 'fresh.db'}"))
    assert [action.what for action in rebuild(fresh) if not action.done] == []
    assert [row.override for row in fresh.ledger.history("mood")] == [False, True]


def test_a_broken_task_file_takes_overrides_alone_from_a_rebuilt_ledger(
    worker: Registry, tasks: Path, tmp_path: Path
) -> None:
    promote(worker, PLAIN, 3, Cause("nightly", "passed"))
    promote(worker, PLAIN, 2, Cause("worker", "on my own", override=True))
    (tasks / "mood.yaml").write_text("promoters: {keys: []}\n")
    fresh = replace(worker, ledger=Ledger(f"sqlite:///{tmp_path / 'fresh.db'}"))
    refused = "\n".join(action.what for action in rebuild(fresh) if not action.done)
    assert "000003.json overrides the gate, and " in refused
    assert [row.version for row in fresh.ledger.history("mood")] == [1, 3]


def test_a_canary_that_overrides_is_in_no_rebuilt_ledger_without_a_promoter(
    worker: Registry, tasks: Path, tmp_path: Path
) -> None:
    place_beside(worker, PLAIN, 2, 10, Cause("worker", "on my own", override=True))
    declare(tasks, "override", ADA)
    fresh = replace(worker, ledger=Ledger(f"sqlite:///{tmp_path / 'fresh.db'}"))
    refused = "\n".join(action.what for action in rebuild(fresh) if not action.done)
    assert "000002.json has no signature by a promoter of the task" in refused
    assert [row.beside for row in fresh.ledger.history("mood")] == [None]


def test_the_doctor_tells_an_override_that_no_promoter_signed(worker: Registry, tasks: Path, plain: Registry) -> None:
    promote(worker, PLAIN, 2, Cause("worker", "on my own", override=True))
    declare(tasks, "override", ADA)
    [difference] = examine(worker)
    assert difference.found == "has no signature by a promoter of the task, which its file asks for"
    promoter = opened(plain, tasks, ADA)
    sign_task(promoter, promoter.store, "mood")  # type: ignore[arg-type]
    assert examine(worker) == []
    assert worker.ledger.version("mood", 2).digest == an_artifact(PLAIN, 2).digest


# ---------------------------------------------------------------- the doors: a pointer written by hand


def by_hand(registry: Registry, key: SigningKey | None, with_history: bool = False) -> None:
    """Let production name version 2, whose gate failed, without the ledger: as somebody who has that key, or none."""
    head = registry.ledger.head("mood", "production")
    assert head is not None
    row = head.model_copy(
        update={"seq": 2, "version": 2, "digest": an_artifact(PLAIN, 2).digest, "previous": 1, "override": True}
        | {"chain": head.row_digest(), "verdict": None, "actor": "eve"}
    )
    store = signed(registry, key).store
    if with_history:
        store.create(*history_object(row))
    place = pointer_key("mood", "production")
    store.replace(
        place, Pointer(promotion=row, nonce="n" * 16).model_dump_json(indent=1).encode(), store.read(place).etag
    )


def test_a_reader_refuses_a_pointer_that_nobody_signed(worker: Registry) -> None:
    by_hand(worker, None)
    with pytest.raises(ArtifactError, match=r"production\.json: .*nobody signed it"):
        resolve(signed(worker, None, WORKER, ADA).store, "mood")


@pytest.mark.parametrize(
    ("with_history", "told"),
    [(False, "version 2 (seq 2)"), (True, "has no signature by a promoter of the task, which its file asks for")],
)
def test_a_pointer_that_the_worker_signed_without_a_promoter_is_read_and_told(
    worker: Registry, tasks: Path, with_history: bool, told: str
) -> None:
    """A reader has no task file, so it does not know who has to sign (docs/signing.md)."""
    declare(tasks, "override", ADA)
    by_hand(worker, WORKER, with_history)
    assert resolve(signed(worker, None, WORKER, ADA).store, "mood").number == 2
    assert [difference.found for difference in examine(worker)] == [told]
