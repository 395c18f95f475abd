"""Every kind of stored object is damaged in turn: doctor names that object and no other, and mends what it can."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ptpipeline.data.rows import Row
from ptpipeline.data.snapshot import load_split, read_snapshot
from ptpipeline.prompts.interpretation import Wayward
from ptpipeline.records.base import now
from ptpipeline.records.serving import Holding
from ptpipeline.serving.servers import report_holdings
from ptpipeline.settings import Settings
from ptpipeline.signing import SigningKey
from ptpipeline.storage import FolderStore
from ptpipeline.storage.addresses import (
    AliasPointer,
    HistoryRow,
    NumberedVersion,
    PointersMoved,
    PromptObject,
    is_believed,
    names_content,
    parse,
)
from ptpipeline.storage.keys import MOVED_KEY, checkpoint_key
from ptpipeline.storage.signed import find_signable
from ptpipeline.tuning.seal import seal
from registry.ledger.secret import CHECKPOINTS, take_secret
from registry.ledger.usage import reports
from registry.lineage.ancestry import stored_names
from registry.registry import Registry, open_registry
from registry.repair.difference import Difference
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.versions.commit import write_release
from registry.versions.content import keep
from registry.versions.publish import attach, load_card, write_page
from registry.versions.sign import sign_task
from tests.golden import inputs
from tests.golden.product import restore_times
from tests.registry.signed import signed

GOLDEN = Path(__file__).parents[2] / "golden" / "project"


class Stored(NamedTuple):
    """A kind of object: where the objects are, whether doctor mends one, and what else it may say of one."""

    where: str
    mended: bool
    also: tuple[str, ...] = ()


KINDS = {
    "tensors": Stored("prompts/mood/*/prompt.safetensors", False, ("bytes of version",)),
    "manifest": Stored("prompts/mood/*/manifest.json", False, ("bytes of version",)),
    "plot": Stored("prompts/mood/*/plots/*.png", True),
    "neighbours": Stored("prompts/mood/*/neighbours-*.json", True),
    "mistakes": Stored("prompts/topic/*/mistakes-*.json", True),
    "experiment": Stored("prompts/mood/*/wayward-*.json", True),
    "page": Stored("prompts/mood/*/report-*.html", True),
    "dossier": Stored("prompts/mood/*/records/*.json", True, ("records of version",)),
    "pointer": Stored("prompts/topic/aliases/*.json", True, ("pointer production",)),
    "name": Stored("prompts/mood/versions/*.json", True, ("number 1 in the store",)),
    "history": Stored("prompts/mood/history/production/*.json", True, ("history of production",)),
    "quarantined copy": Stored("prompts/mood/quarantine/*", False),
    "split": Stored("snapshots/topic/*/*.parquet", False),
    "snapshot manifest": Stored("snapshots/*/*/manifest.json", True),
    "results": Stored("reports/mood/*/rows.parquet", True),
    "release": Stored("releases/*.json", True),
    "checkpoint": Stored("checkpoints/*.safetensors", False),
    "server report": Stored("servers/*.json", False),
}
SIGNED = [kind for kind, stored in KINDS.items() if is_believed(stored.where.replace("*", "a" * 64))]
KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(inputs.SIGNING_KEY))  # signed the golden project's prompts
TOO_LARGE = "far too large"
DAMAGE: dict[str, Callable[[bytes, bytes], bytes]] = {
    "a byte in the middle": lambda body, _: _flip(body, len(body) // 2),
    "a byte late": lambda body, _: _flip(body, len(body) * 2 // 3),
    "truncated": lambda body, _: body[: len(body) // 2],
    "empty": lambda body, _: b"",
    "another of its kind": lambda _, other: other,
    TOO_LARGE: lambda body, _: body + bytes(65 * 2**20),
}


def _flip(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def opened(folder: Path) -> Registry:
    """The registry of a project's folder, without keys: what is forged is a matter of test_signed."""
    return open_registry(
        Settings(
            home=folder / "home",
            store=f"file://{folder / 'home/store'}",
            ledger=f"sqlite:///{folder / 'home/ledger.db'}",
        )
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two tasks that holds two objects of every kind at least, all sound."""
    folder = tmp_path_factory.mktemp("whole") / "project"
    shutil.copytree(GOLDEN, folder)
    restore_times(folder)
    registry = opened(folder)
    ledger, store = registry.ledger, registry.store
    for task in ("mood", "topic"):
        for report in reports(ledger, task):  # they are from before: now each states its results
            sha256 = hashlib.sha256(store.read(report.rows_key).body).hexdigest()
            ledger.save_report(report.model_copy(update={"rows_sha256": sha256}))
        for version in ledger.versions(task):
            write_page(registry, load_card(registry, task, version.digest), version)
        report_holdings(store, f"host-{task}", [Holding(task, ledger.version(task, 1).digest)])
        experiment = inputs.WAYWARD | {"text": f"a text besides {task}"}
        attach(registry, ledger.version("mood", 1).digest, Wayward.model_validate(experiment))
        key = checkpoint_key(hashlib.sha256(task.encode()).hexdigest())
        store.create(key, seal(take_secret(ledger.database, CHECKPOINTS), key, b"the state of a gang in training"))
        keep(store, f"prompts/mood/aliases/{task}.json", f"somebody wrote this to {task}".encode())
    autumn = ledger.releases()[0].model_copy(update={"name": "autumn", "at": now()})
    ledger.append_release(autumn, [])
    write_release(store, autumn)
    keyed = with_keys(registry)
    for task in ("mood", "topic"):
        assert all(action.done for action in sign_task(keyed, keyed.store, task))  # type: ignore[arg-type]
    fix(keyed, {}, examine(keyed))  # dossiers that hold the reports of before
    ledger.close()
    return folder


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "project")


def with_keys(registry: Registry) -> Registry:
    return signed(registry, KEY, KEY)


def objects(project: Path, kind: str) -> list[Path]:
    return sorted((project / "home/store").glob(KINDS[kind].where))


def damage(project: Path, kind: str, how: str) -> str:
    """Damage the first object of the kind; return its key."""
    first, *others = objects(project, kind)
    body = first.read_bytes()
    other = next((path.read_bytes() for path in others if path.read_bytes() != body), body)
    damaged = DAMAGE[how](body, other)
    assert damaged != body, f"there is one {kind} only"
    first.write_bytes(damaged)
    return first.relative_to(project / "home/store").as_posix()


def is_about(difference: Difference, kind: str, key: str) -> bool:
    return key in difference.what or (
        difference.what.startswith(KINDS[kind].also) and (key.split("/")[1] == difference.task)
        if KINDS[kind].also
        else False
    )


def test_a_whole_project_has_no_differences(project: Path) -> None:
    assert examine(opened(project)) == []
    assert examine(with_keys(opened(project))) == []


def test_no_kind_of_object_is_left_out(project: Path) -> None:
    store = project / "home/store"
    kinds = {type(parse(key)) for key in FolderStore(store).keys("prompts") if not names_content(key)}
    reached = {path for kind in KINDS for path in objects(project, kind)}
    reached |= {signature_of(project, path) for kind in SIGNED for path in objects(project, kind)}
    reached.add(store / MOVED_KEY)  # tells nothing but that something changed
    others = [path for path in store.rglob("*") if path.is_file() and path not in reached and not path.match(".lock")]
    assert kinds == {PromptObject, AliasPointer, HistoryRow, NumberedVersion, PointersMoved}
    assert {kind_of(path.relative_to(store).as_posix()) for path in others} <= {
        kind_of(path.relative_to(store).as_posix()) for path in reached
    }


def kind_of(key: str) -> str:
    """The key without what differs between two objects of a kind."""
    return re.sub(r"[0-9a-f]{64}|[0-9a-f]{12,16}|[0-9]+|mood|topic|train|dev|test|reserve|production|staging", "*", key)


@pytest.mark.parametrize("how", [how for how in DAMAGE if how != TOO_LARGE])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told_of_the_object_that_has_it_and_mended_if_it_can_be(project: Path, kind: str, how: str) -> None:
    sound = rows_of(project) if kind == "split" else []
    key, registry = damage(project, kind, how), opened(project)
    found = examine(registry)
    if sound and not found:  # Parquet holds bytes that no reader looks at: the digest is of the rows
        assert rows_of(project) == sound
        return
    assert found, f"{key} is damaged, and nothing was found"
    assert [difference for difference in found if not is_about(difference, kind, key)] == []
    assert all(difference.safe for difference in found) == KINDS[kind].mended
    fix(registry, {}, found)
    left = examine(registry)
    assert left == ([] if KINDS[kind].mended else found)
    assert fix(registry, {}, left) == []


def signature_of(project: Path, path: Path) -> Path:
    """Where the signature of that object lies."""
    store = project / "home/store"
    signable = find_signable(path.relative_to(store).as_posix(), path.read_bytes())
    assert signable is not None
    return store / signable.signature_key(KEY.id)


@pytest.mark.parametrize("how", ["a byte in the middle", "empty", "another of its kind", TOO_LARGE])
@pytest.mark.parametrize("kind", SIGNED)
def test_damage_to_a_signature_is_told_of_the_object_that_it_signs(project: Path, kind: str, how: str) -> None:
    path, other = [path for path in objects(project, kind) if signature_of(project, path).exists()][:2]
    signature, key = signature_of(project, path), path.relative_to(project / "home/store").as_posix()
    signature.write_bytes(DAMAGE[how](signature.read_bytes(), signature_of(project, other).read_bytes()))
    found = examine(with_keys(opened(project)))
    assert found, f"the signature of {key} is damaged, and nothing was found"
    assert [difference for difference in found if not is_about(difference, kind, key)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_is_too_large_to_read_ends_nothing(project: Path, kind: str) -> None:
    """It is read by nobody, so no copy can be kept: a person deletes it, and what can be mended is mended then."""
    if kind in ("results", "checkpoint", "split"):
        pytest.skip("it would need more than four gigabytes")
    key, registry = damage(project, kind, TOO_LARGE), opened(project)
    found = examine(registry)
    assert found
    assert [difference for difference in found if not is_about(difference, kind, key)] == []
    fix(registry, {}, found)
    (project / "home/store" / key).unlink()
    fix(registry, {}, examine(registry))
    assert [difference for difference in examine(registry) if not is_about(difference, kind, key)] == []


def rows_of(project: Path) -> list[list[Row]]:
    """The rows of all splits of topic's snapshot."""
    registry = opened(project)
    (name,) = stored_names(registry.store, "snapshots/topic")
    snapshot = read_snapshot(registry.store, *name)
    return [load_split(registry.store, snapshot, split) for split in snapshot.splits()]
