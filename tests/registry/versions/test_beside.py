"""A second version beside an alias's own: a canary needs what a promotion needs, a shadow answers nothing; both are
rows of the history, reach readers, keep their bytes, and end by a promotion or a rollback.
"""

import re
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.errors import PromotionRefused
from ptpipeline.records.versions import Pointer, Promotion
from ptpipeline.storage.keys import history_key, pointer_key
from ptpipeline.task.task import Task
from registry.garbage.roots import Retention, prompts_aliased, prompts_in_use
from registry.ledger.ledger import Ledger
from registry.ledger.usage import Name, prompt_uses
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.rebuild import rebuild
from registry.versions.beside import place_beside
from registry.versions.commit import Cause
from registry.versions.promoters import lack_promoter
from registry.versions.promotion import promote, promote_release, rollback
from tests.registry.signed import ADA, WORKER, signed
from tests.registry.versions.test_guards import a_release, older
from tests.registry.versions.test_promoters import ada, declare

ME = Cause("me", "because")


def pointed(registry: Registry, task: Task) -> Promotion:
    """What a server would read."""
    return Pointer.model_validate_json(registry.store.read(pointer_key(task.name, "production")).body).promotion


@pytest.fixture
def first(registry: Registry, task: Task) -> Promotion:
    """Production is version 1; version 2 passed against it, version 3 failed."""
    head = promote(registry, task, published(registry, task, 1), ME)
    published(registry, task, 2, head.digest)
    published(registry, task, 3, head.digest, "failed")
    return head


def test_a_canary_reaches_readers_with_its_share_and_its_verdict(
    registry: Registry, task: Task, first: Promotion
) -> None:
    row = place_beside(registry, task, 2, 10, ME)
    assert row.beside
    assert (row.seq, row.version, row.previous, row.digest) == (2, 1, 1, first.digest)
    assert (row.beside.version, row.beside.digest, row.beside.percent) == (2, an_artifact(task, 2).digest, 10)
    assert row.beside.verdict == registry.ledger.latest_verdict(task.name, row.beside.digest).verdict_digest()  # type: ignore[union-attr]
    assert pointed(registry, task) == row == registry.ledger.head(task.name, "production")
    assert examine(registry, task.name) == []


def test_a_canary_of_production_needs_a_passed_verdict(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest, "failed")
    with pytest.raises(PromotionRefused, match="it failed the gate"):
        place_beside(plain, task, 2, 1, ME)
    assert plain.ledger.head(task.name, "production") == head
    row = place_beside(plain, task, 2, 1, Cause("me", "because", override=True))
    assert (row.override, row.beside and row.beside.override) == (False, True)


def test_a_shadow_needs_no_verdict_and_has_none(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest, "failed")
    row = place_beside(plain, task, 2, 0, ME)
    assert row.beside is not None
    assert row.beside.is_shadow
    assert row.beside.verdict is None


def test_a_shadow_whose_bytes_are_damaged_is_refused(plain: Registry, task: Task, tmp_path: Path) -> None:
    promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2)
    for path in tmp_path.glob(f"store/prompts/{task.name}/{an_artifact(task, 2).digest}/*.safetensors"):
        path.write_bytes(b"rot")
    with pytest.raises(PromotionRefused, match="version 2 cannot be served"):
        place_beside(plain, task, 2, 0, ME)


def test_nothing_stands_beside_an_alias_that_names_nothing_or_itself(plain: Registry, task: Task) -> None:
    number = published(plain, task, 1)
    with pytest.raises(PromotionRefused, match="it names no version yet"):
        place_beside(plain, task, number, 10, ME)
    promote(plain, task, number, ME)
    for percent in (10, 0):
        with pytest.raises(PromotionRefused, match="it names version 1 itself"):
            place_beside(plain, task, number, percent, ME)


def test_the_same_canary_again_adds_no_row_and_another_share_adds_one(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    assert place_beside(plain, task, 2, 10, ME) == place_beside(plain, task, 2, 10, Cause("other", "again"))
    assert place_beside(plain, task, 2, 50, ME).seq == 3
    published(plain, task, 3, head.digest)
    row = place_beside(plain, task, 3, 50, ME)
    assert (row.seq, row.beside and row.beside.version) == (4, 3)


def test_a_release_of_a_version_with_another_beside_it_is_refused(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    place_beside(plain, task, 2, 10, ME)
    with pytest.raises(PromotionRefused, match="names version 1 already, with version 2 beside it; `ptp rollback"):
        promote_release(plain, {task.name: task}, a_release(task, version=1), ME)
    assert plain.ledger.releases() == []


def test_a_canary_that_is_promoted_takes_the_aliass_place(registry: Registry, task: Task, first: Promotion) -> None:
    place_beside(registry, task, 2, 10, ME)
    row = promote(registry, task, 2, ME)
    assert (row.version, row.previous, row.beside) == (2, 1, None)
    assert pointed(registry, task) == row
    assert examine(registry, task.name) == []


def test_a_rollback_ends_a_canary_and_its_repetition_ends_nothing_more(plain: Registry, task: Task) -> None:
    head = None
    for seed in (1, 2):
        head = promote(plain, task, published(plain, task, seed, head.digest if head else None), ME)
    assert head
    published(plain, task, 3, head.digest)
    place_beside(plain, task, 3, 10, ME)
    row = rollback(plain, task.name, ME)
    assert (row.seq, row.version, row.beside) == (4, 2, None)
    assert rollback(plain, task.name, ME) == row
    assert rollback(plain, task.name, Cause("me", "further")).version == 1


def test_after_a_canary_became_production_a_rollback_goes_back_behind_both(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    place_beside(plain, task, 2, 10, ME)
    promote(plain, task, 2, ME)
    row = rollback(plain, task.name, ME)
    assert (row.version, row.beside) == (1, None)


@pytest.mark.parametrize("percent", [10, 0])
def test_promoting_what_another_version_stands_beside_says_how_to_end_it(
    plain: Registry, task: Task, percent: int
) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    place_beside(plain, task, 2, percent, ME)
    with pytest.raises(PromotionRefused, match="with version 2 beside it; `ptp rollback"):
        promote(plain, task, 1, ME)


def test_what_stands_beside_an_alias_is_kept_for_ever(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    place_beside(plain, task, 2, 0, ME)
    second = Name(task.name, an_artifact(task, 2).digest)
    assert second in prompts_aliased(plain, task.name, [pointer_key(task.name, "production")])
    rollback(plain, task.name, ME)
    with plain.ledger.database.reading() as connection:
        assert prompt_uses(connection, task.name).promoted == {Name(task.name, head.digest), second}
        assert second in prompts_in_use(prompt_uses(connection), Retention())


def test_a_lost_ledger_gets_its_canaries_back(plain: Registry, task: Task, tmp_path: Path) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    row = place_beside(plain, task, 2, 10, ME)
    empty = Registry(Ledger(f"sqlite:///{tmp_path}/new.db"), plain.store)
    rebuild(empty)
    assert empty.ledger.history(task.name) == plain.ledger.history(task.name) == [head, row]


def test_a_lost_ledger_takes_back_no_canary_without_its_verdict(plain: Registry, task: Task, tmp_path: Path) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    place_beside(plain, task, 2, 10, ME)
    path = tmp_path / "store" / history_key(task.name, "production", 2)
    start, _, end = path.read_text().partition('"beside"')
    path.write_text(start + '"beside"' + re.sub('"verdict": "[0-9a-f]{8}', '"verdict": "' + "0" * 8, end))
    empty = Registry(Ledger(f"sqlite:///{tmp_path}/new.db"), plain.store)
    rebuild(empty)
    assert empty.ledger.history(task.name) == [head]


def test_a_canary_against_the_gate_needs_a_promoters_signature(plain: Registry, tmp_path: Path) -> None:
    task = declare(tmp_path / "tasks", "override", ADA)
    head = promote(plain, task, published(plain, task, 1), ada())
    published(plain, task, 2, head.digest, "failed")
    with pytest.raises(PromotionRefused, match="asks for a promoter's signature of an override"):
        place_beside(plain, task, 2, 10, ada(override=True, key=None))


def test_a_shadow_needs_a_promoters_signature_if_every_promotion_does(plain: Registry, tmp_path: Path) -> None:
    task = declare(tmp_path / "tasks", "promotion", ADA)
    head = promote(plain, task, published(plain, task, 1), ada())
    published(plain, task, 2, head.digest)
    with pytest.raises(PromotionRefused, match="asks for a promoter's signature of every promotion"):
        place_beside(plain, task, 2, 0, ada(key=None))


@pytest.mark.parametrize("percent", [0, 10])
def test_beside_what_overrides_the_gate_only_promoters_place_a_version(
    plain: Registry, tmp_path: Path, percent: int
) -> None:
    """The new row repeats the override: without a promoter's signature readers would take it, and production, for
    nobody's.
    """
    task = declare(tmp_path / "tasks", "override", ADA)
    registry = signed(plain, WORKER, WORKER, ADA, tasks=tmp_path / "tasks")
    published(registry, task, 1, None, "failed")
    by_ada = signed(plain, ADA, WORKER, ADA, tasks=tmp_path / "tasks")
    head = promote(by_ada, task, 1, ada(override=True))
    published(registry, task, 2, head.digest)
    with pytest.raises(PromotionRefused, match="asks for a promoter's signature of an override"):
        place_beside(registry, task, 2, percent, ME)
    row = place_beside(by_ada, task, 2, percent, ada())
    assert lack_promoter(by_ada, task.name, [head, row]) == {}


def test_both_versions_are_told_to_others(plain: Registry, task: Task) -> None:
    from flows.server.events import describe
    from registry.ledger.events import take_due

    take_due(plain.ledger.database, "target")
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    place_beside(plain, task, 2, 10, ME)
    told = [event for _ in range(2) if (event := take_due(plain.ledger.database, "target"))]
    assert (told[1].kind, describe(told[1])) == (
        "promotion",
        f"{task.name}@production: version 2 beside version 1, at 10% of its requests, by me: because",
    )


# ---------------------------------------------------------------- a shadow passes the doors of every promotion


def two(plain: Registry, task: Task) -> None:
    """Version 1 is in production, version 2 passed against it."""
    published(plain, task, 2, promote(plain, task, published(plain, task, 1), ME).digest)


def test_a_shadow_needs_a_reason(plain: Registry, task: Task) -> None:
    two(plain, task)
    with pytest.raises(PromotionRefused, match="needs an actor and a reason"):
        place_beside(plain, task, 2, 0, Cause("me", " "))


def test_an_older_ledger_places_no_shadow(plain: Registry, task: Task, tmp_path: Path) -> None:
    two(plain, task)
    copy = older(plain, tmp_path)
    place_beside(plain, task, 2, 10, ME)
    with pytest.raises(PromotionRefused, match="was it restored from an older backup"):
        place_beside(copy, task, 2, 0, ME)


def test_a_shadow_of_another_base_model_is_refused(plain: Registry, task: Task) -> None:
    two(plain, task)
    with pytest.raises(PromotionRefused, match="trained for base model tiny"):
        place_beside(plain, task.model_copy(update={"base_model": "other"}), 2, 0, ME)


def test_a_shadow_of_an_alias_without_a_gate_is_anybodys(plain: Registry, tmp_path: Path) -> None:
    task = declare(tmp_path / "tasks", "promotion", ADA)
    for seed in (1, 2):
        published(plain, task, seed)
    promote(plain, task, 1, ME, "staging")
    row = place_beside(plain, task, 2, 0, ME, "staging")
    assert row.beside is not None
    assert row.beside.is_shadow


def test_a_head_that_overrode_the_gate_says_so_beside_a_canary_too(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1, kind="failed"), Cause("me", "because", override=True))
    published(plain, task, 2, head.digest)
    row = place_beside(plain, task, 2, 10, ME)
    assert (row.override, row.verdict) == (True, head.verdict)


def test_a_rollback_to_a_named_version_ends_a_canary_and_goes_there(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    head = promote(plain, task, published(plain, task, 2, head.digest), ME)
    published(plain, task, 3, head.digest)
    place_beside(plain, task, 3, 10, ME)
    row = rollback(plain, task.name, ME, to=1)
    assert (row.version, row.beside) == (1, None)
