"""Keys of the object store: each is built as it always was, parsed into what it was built from, and built in one
module alone.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptpipeline.storage import check_key, keys
from ptpipeline.storage.addresses import (
    Address,
    AliasPointer,
    HistoryRow,
    NumberedVersion,
    ObjectSignature,
    PointersMoved,
    ProbeObject,
    PromptObject,
    Quarantined,
    Results,
    ServerHoldings,
    SnapshotObject,
    StoredCheckpoint,
    StoredRelease,
    claimed_prompt,
    is_content_of,
    is_dossier,
    is_manifest,
    names_content,
    parse,
    parse_task,
    signer_id,
)

D = "d" * 64  # a digest
BODY = b"body"
SHA256 = "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5"
ROOT = Path(keys.__file__).parents[2]
PRODUCT = ("ptpipeline", "registry", "flows", "benchmarks")

BUILT: list[tuple[str, str, Address]] = [
    (
        keys.object_signature_key("releases/spring.json", D, "ab"),
        f"signatures/releases/spring.json/{D}/ab.json",
        ObjectSignature("releases/spring.json", D, "ab"),
    ),
    (keys.tensors_key("mood", D), f"prompts/mood/{D}/prompt.safetensors", PromptObject("mood", D, keys.TENSOR_FILE)),
    (keys.manifest_key("mood", D), f"prompts/mood/{D}/manifest.json", PromptObject("mood", D, keys.MANIFEST_FILE)),
    (
        keys.signature_key("mood", D, "ab"),
        f"prompts/mood/{D}/signature-ab.json",
        PromptObject("mood", D, "signature-ab.json"),
    ),
    (
        keys.plot_key("mood", D, "curve", BODY),
        f"prompts/mood/{D}/plots/curve-{SHA256}.png",
        PromptObject("mood", D, f"plots/curve-{SHA256}.png"),
    ),
    (
        keys.companion_key("mood", D, "neighbours", BODY),
        f"prompts/mood/{D}/neighbours-{SHA256}.json",
        PromptObject("mood", D, f"neighbours-{SHA256}.json"),
    ),
    (
        keys.page_key("mood", D, BODY),
        f"prompts/mood/{D}/report-{SHA256}.html",
        PromptObject("mood", D, f"report-{SHA256}.html"),
    ),
    (
        keys.dossier_key("mood", D, BODY),
        f"prompts/mood/{D}/records/{SHA256}.json",
        PromptObject("mood", D, f"records/{SHA256}.json"),
    ),
    (
        keys.pointer_key("mood", "production"),
        "prompts/mood/aliases/production.json",
        AliasPointer("mood", "production"),
    ),
    (
        keys.history_key("mood", "production", 7),
        "prompts/mood/history/production/000007.json",
        HistoryRow("mood", "production", 7),
    ),
    (
        keys.history_key("mood", "a", 1234567),
        "prompts/mood/history/a/1234567.json",
        HistoryRow("mood", "a", 1234567),
    ),
    (keys.MOVED_KEY, "prompts/_/aliases/moved.json", PointersMoved()),
    (keys.version_key("mood", 12), "prompts/mood/versions/12.json", NumberedVersion("mood", 12)),
    (
        keys.quarantine_key("prompts/mood/history/a/000001.json", BODY),
        "prompts/mood/quarantine/history-a-000001-230d8358dc8e8890",
        Quarantined("mood", "history-a-000001-230d8358dc8e8890"),
    ),
    (
        keys.quarantine_key(f"prompts/mood/{D}/prompt.safetensors", BODY),
        f"prompts/mood/quarantine/{D}-prompt.safetensors-230d8358dc8e8890",
        Quarantined("mood", f"{D}-prompt.safetensors-230d8358dc8e8890"),
    ),
    (
        keys.quarantined_pointer_key("mood", "production", BODY),
        "prompts/mood/quarantine/production-230d8358dc8e8890.json",
        Quarantined("mood", "production-230d8358dc8e8890.json"),
    ),
    (
        keys.quarantined_version_key("mood", 3, BODY),
        "prompts/mood/quarantine/version-3-230d8358dc8e8890.json",
        Quarantined("mood", "version-3-230d8358dc8e8890.json"),
    ),
    (
        keys.split_key("mood", D, "train"),
        f"snapshots/mood/{D}/train.parquet",
        SnapshotObject("mood", D, "train.parquet"),
    ),
    (
        keys.snapshot_manifest_key("mood", D),
        f"snapshots/mood/{D}/manifest.json",
        SnapshotObject("mood", D, keys.MANIFEST_FILE),
    ),
    (keys.results_key("mood", "k1"), "reports/mood/k1/rows.parquet", Results("mood", "k1")),
    (
        keys.quarantine_key(keys.results_key("mood", "k1"), BODY),
        "reports/mood/quarantine/k1-rows.parquet-230d8358dc8e8890",
        Quarantined("mood", "k1-rows.parquet-230d8358dc8e8890", keys.REPORTS),
    ),
    (
        keys.quarantine_key(keys.snapshot_manifest_key("mood", D), BODY),
        f"snapshots/mood/quarantine/{D}-manifest-230d8358dc8e8890",
        Quarantined("mood", f"{D}-manifest-230d8358dc8e8890", keys.SNAPSHOTS),
    ),
    (
        keys.quarantined_release_key("spring", BODY),
        "prompts/releases/quarantine/spring-230d8358dc8e8890.json",
        Quarantined("releases", "spring-230d8358dc8e8890.json"),
    ),
    (keys.release_key("spring"), "releases/spring.json", StoredRelease("spring")),
    (keys.checkpoint_key(D), f"checkpoints/{D}.safetensors", StoredCheckpoint(D)),
    (keys.server_key("one.local"), "servers/one.local.json", ServerHoldings("one.local")),
    (keys.probe_key("n", "one"), "probe/n/one", ProbeObject("n", "one")),
]

FOREIGN = [
    "",
    "/",
    "prompts",
    "prompts/mood",
    f"prompts/mood/{D}",
    f"prompts/Mood/{D}/manifest.json",
    f"prompts/mood/{D[1:]}/manifest.json",
    "prompts/mood/readme/manifest.json",
    "prompts/mood/aliases/manifest.txt",
    "prompts/mood/aliases/My Alias.json",
    "prompts/mood/aliases/a/b.json",
    "prompts/mood/history/7.json",
    "prompts/mood/history/a/7.json",
    "prompts/mood/history/a/0000007.json",
    "prompts/mood/history/a/000\u0967\u0967\u0967.json",
    "prompts/mood/versions/0.json",
    "prompts/mood/versions/01.json",
    "prompts/mood/versions/1234567890.json",
    "prompts/mood/versions/\u0967.json",
    f"snapshots/mood/{D}",
    "snapshots/mood/own/manifest.json",
    "reports/mood/rows.parquet",
    "reports/mood/k1/other.parquet",
    "releases/my release.json",
    "releases/mine/1.json",
    f"checkpoints/{D}",
    "checkpoints/short.safetensors",
    "servers/.json",
    "servers/one",
    "probe/one",
    "elsewhere/mood/1.json",
]


@pytest.mark.parametrize(("built", "key", "address"), BUILT, ids=[key for _, key, _ in BUILT])
def test_each_key_is_built_as_stored_and_parsed_back(built: str, key: str, address: Address) -> None:
    assert (built, parse(key), type(parse(key))) == (key, address, type(address))
    assert check_key(built) == built


@pytest.mark.parametrize("key", FOREIGN)
def test_foreign_keys_are_nothing(key: str) -> None:
    assert (parse(key), is_manifest(key), is_dossier(key)) == (None, False, False)


PIECES = ["prompts", "snapshots", "mood", D, "aliases", "history", "versions", "quarantine", "a.json", "000001.json"]
NUMBERS = ["1.json", "01.json", "0000001.json", "1000000.json", "\u0967.json", "manifest.json", ""]


@given(st.text() | st.lists(st.sampled_from(PIECES + NUMBERS), min_size=3, max_size=5).map("/".join))
def test_whatever_is_parsed_is_built_again(key: str) -> None:
    address = parse(key)
    assert address is None or _built(address) == key


def _built(address: Address) -> str:
    match address:
        case AliasPointer(task, alias):
            return keys.pointer_key(task, alias)
        case HistoryRow(task, alias, seq):
            return keys.history_key(task, alias, seq)
        case NumberedVersion(task, number):
            return keys.version_key(task, number)
        case PromptObject(task, digest, path):
            return f"{keys.prompt_prefix(task, digest)}/{path}"
        case SnapshotObject(task, digest, path):
            return f"{keys.snapshot_prefix(task, digest)}/{path}"
        case Quarantined(task, name, root):
            return f"{root}/{task}/quarantine/{name}"
    raise AssertionError(address)


def test_folders_hold_their_keys() -> None:
    pairs = [
        (keys.PROMPTS, keys.task_prefix("mood")),
        (keys.task_prefix("mood"), keys.prompt_prefix("mood", D)),
        (keys.prompt_prefix("mood", D), keys.manifest_key("mood", D)),
        (keys.dossiers_prefix("mood", D), keys.dossier_key("mood", D, BODY)),
        (keys.aliases_prefix("mood"), keys.pointer_key("mood", "a")),
        (keys.histories_prefix("mood"), keys.history_prefix("mood", "a")),
        (keys.history_prefix("mood", "a"), keys.history_key("mood", "a", 1)),
        (keys.versions_prefix("mood"), keys.version_key("mood", 1)),
        (keys.SNAPSHOTS, keys.snapshots_prefix("mood")),
        (keys.snapshots_prefix("mood"), keys.snapshot_prefix("mood", D)),
        (keys.snapshot_prefix("mood", D), keys.split_key("mood", D, "dev")),
        (keys.reports_prefix("mood"), keys.results_key("mood", "k")),
        (keys.RELEASES, keys.release_key("spring")),
        (keys.CHECKPOINTS, keys.checkpoint_key(D)),
        (keys.SERVERS, keys.server_key("one")),
    ]
    assert [key for folder, key in pairs if not key.startswith(f"{folder}/")] == []


def test_only_its_own_objects_make_a_prompt_complete() -> None:
    assert is_manifest(keys.manifest_key("mood", D))
    assert is_manifest(keys.snapshot_manifest_key("mood", D))
    assert not is_manifest("prompts/mood/aliases/manifest.json")  # an alias may be called so
    assert not is_manifest(f"prompts/mood/{D}/plots/manifest.json")


def test_dossiers_are_told_from_an_alias_of_that_name() -> None:
    assert is_dossier(keys.dossier_key("mood", D, BODY))
    assert not is_dossier(keys.history_key("mood", "records", 1))


CONTENT = [
    keys.plot_key("mood", D, "learning-curve", BODY),
    keys.companion_key("mood", D, "neighbours", BODY),
    keys.page_key("mood", D, BODY),
    keys.dossier_key("mood", D, BODY),
    keys.quarantined_pointer_key("mood", "production", BODY),
    keys.quarantine_key(keys.results_key("mood", "k1"), BODY),
    f"prompts/mood/{D}/plots/learning-curve-{SHA256[:12]}.png",  # these four were built before
    f"prompts/mood/{D}/neighbours-{SHA256[:12]}.json",
    f"prompts/mood/{D}/report-{SHA256[:12]}.html",
    f"prompts/mood/{D}/records/{SHA256[:16]}.json",
]


@pytest.mark.parametrize("key", CONTENT)
def test_a_key_that_names_its_content_tells_it_from_any_other(key: str) -> None:
    assert names_content(key)
    assert is_content_of(key, BODY)
    assert not is_content_of(key, BODY + b" ")


@pytest.mark.parametrize("key", CONTENT[:4])
def test_a_key_is_bound_to_all_of_its_content(key: str) -> None:
    """Twelve digits are 48 bits: another content with the same can be searched for."""
    assert SHA256 in key


@pytest.mark.parametrize("digits", [0, 1, 11, 13, 16, 63, 65])
def test_a_part_of_a_hash_names_no_content(digits: int) -> None:
    part = (SHA256 * 2)[:digits]
    for key in (f"plots/a-{part}.png", f"a-{part}.json", f"report-{part}.html"):
        assert not names_content(f"prompts/mood/{D}/{key}")


@pytest.mark.parametrize(
    "key",
    [
        keys.manifest_key("mood", D),
        keys.signature_key("mood", D, "0123456789abcdef"),
        keys.tensors_key("mood", D),
        keys.pointer_key("mood", "production"),
        keys.results_key("mood", "k1"),
    ],
)
def test_other_keys_name_no_content(key: str) -> None:
    assert not names_content(key)
    assert not is_content_of(key, BODY)


def test_every_look_alike_of_a_manifest_claims_to_be_one() -> None:
    for key, claim in {
        f"prompts/Mood/{D}/manifest.json": ("Mood", D),
        f"prompts/a/b/{D}/manifest.json": ("a/b", D),
        "prompts/mood/aliases/manifest.json": ("mood", "aliases"),
    }.items():
        assert claimed_prompt(key) == claim
    assert claimed_prompt(keys.snapshot_manifest_key("mood", D)) is None


def test_a_signature_names_its_signer() -> None:
    assert signer_id(keys.signature_key("mood", D, "ab12")) == "ab12"
    assert signer_id(keys.object_signature_key(keys.version_key("mood", 1), D, "ab12")) == "ab12"
    assert signer_id(keys.manifest_key("mood", D)) is None


def test_the_task_of_a_key_is_known_whatever_lies_there() -> None:
    assert parse_task("prompts/mood/notes/readme.txt") == "mood"
    assert [parse_task(key) for key in ("prompts/mood", "prompts/My Task/a/b", f"snapshots/mood/{D}/a")] == [None] * 3


@pytest.mark.parametrize(("name", "allowed"), [("one.local-1", True), ("", False), ("a/b", False), (".one", False)])
def test_servers_report_under_names_that_are_keys(name: str, allowed: bool) -> None:
    assert keys.is_server_name(name) is allowed


# ---------------------------------------------------------------- the border

_OF_A_KEY = re.compile(
    r"^/?(prompts|snapshots|reports|releases|checkpoints|servers|probe)/"
    r"|/(aliases|history|versions|quarantine|records|plots|signature-)/?"
    r"|manifest\.json|prompt\.safetensors|rows\.parquet"
)
_FOLDERS = {keys.PROMPTS, keys.SNAPSHOTS, keys.REPORTS, keys.RELEASES, keys.CHECKPOINTS, keys.SERVERS, keys.PROBES}


def test_no_other_module_writes_a_key() -> None:
    modules = [path for folder in PRODUCT for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(modules) > 150
    others = [path for path in modules if path.parent != Path(keys.__file__).parent]
    found = [f"{path.relative_to(ROOT)}: {text!r}" for path in others for text in _key_literals(path)]
    assert found == ["registry/mlflow/store.py: '/versions/'"]  # an address of MLflow's own pages


def _key_literals(path: Path) -> Iterator[str]:
    """Strings of a module that look like a part of a key, but for documentation and sentences; and folders listed."""
    tree = ast.parse(path.read_text())
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in documentation else None
        if isinstance(text, str) and _OF_A_KEY.search(text) and " " not in text:
            yield text
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("keys", "list_objects")
        ):
            yield from (
                each.value
                for each in node.args
                if isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value in _FOLDERS
            )
