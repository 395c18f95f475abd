"""What must not move when modules do: each identity and name beside its literal value in `pins/`.

A pin that has to change on purpose is changed by hand in its file, with the reason in the commit: whatever was stored
under the old value is forgotten, trained again or unreadable from then on.
"""

import hashlib
import importlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ptpipeline.storage.addresses import ObjectSignature, claimed_prompt, is_believed, parse
from tests.golden import product
from tests.golden.pins import assert_same, masked, pinned

PLAIN: dict[str, Callable[[], Any]] = {
    "artifacts": lambda: {method: product.described(artifact) for method, artifact in product.artifacts().items()},
    "digests": product.digests,
    "records": product.records,
    "settings": product.settings_names,
    "task_fields": product.task_fields,
    "verbs": product.verbs,
    "words": product.words,
}


@pytest.mark.parametrize("name", PLAIN)
def test_names_and_digests_stay(name: str) -> None:
    assert_same(PLAIN[name](), pinned(f"pins/{name}.json"))


def test_a_snapshot_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_same(product.snapshot(tmp_path), pinned("pins/snapshot.json"))


def test_the_ledger_keeps_its_schema(tmp_path: Path) -> None:
    assert_same(product.ledger_schema(tmp_path), pinned("pins/ledger_schema.json"))


def test_store_and_ledger_hold_the_same(tmp_path: Path) -> None:
    registry = product.registered(tmp_path)
    assert_same(
        dict(stored(key, body) for key, body in sorted(product.objects(registry.store).items()) if not signed(key)),
        pinned("pins/store.json"),
    )
    objects = set(product.objects(registry.store))
    believed = {key for key in objects if is_believed(key)} - manifests(objects)
    assert believed <= {signed(key) for key in objects}
    assert_same(rows(tmp_path / "ledger.db"), pinned("pins/ledger_rows.json"))


def test_a_probe_writes_the_same_keys(tmp_path: Path) -> None:
    keys = {re.sub("/[0-9a-f]{32}/", "/NONCE/", key) for key in product.probe_keys(tmp_path)}
    assert keys == {"probe/NONCE/created", "probe/NONCE/one", "probe/NONCE/replaced"}


def test_deployments_stay() -> None:
    assert product.deployments() == YAML(typ="safe").load(pinned("pins/prefect.yaml"))["deployments"]


def test_slugs_of_schedules_stay() -> None:
    wanted = {
        ("0 2 * * *", "Asia/Seoul"): "0-2-x-x-x-asia-seoul",
        ("*/5 8-17 1,15 * 1-5", "Etc/GMT+3"): "xper5-8to17-1and15-x-1to5-etc-gmtplus3",
    }
    assert product.slugs(list(wanted)) == list(wanted.values())


def test_every_entry_point_leads_to_its_flow() -> None:
    for entry_point in re.findall("entrypoint: (.*)", pinned("pins/prefect.yaml")):
        module, _, name = entry_point.rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert (flow.name.replace("-", "_"), list(flow.parameters.properties)) == (name, ["request"])


def signed(key: str) -> str | None:
    """The key of the object whose signature lies at this key: it names a hash of bytes that hold times and nonces."""
    address = parse(key)
    return address.signed if isinstance(address, ObjectSignature) else None


def manifests(keys: Iterable[str]) -> set[str]:
    """The manifests of prompts, which have signatures beside them."""
    return {key for key in keys if claimed_prompt(key)}


def stored(key: str, body: bytes) -> tuple[str, Any]:
    """A key and what lies there: text as lines, other bytes and what names itself by its content by their hash; pages
    may say other words.
    """
    if key.endswith(".html"):
        return re.sub("[0-9a-f]{64}(?=.html)", "HASH", key), "a page"
    short = len(body) < 800 and not key.endswith((".safetensors", ".png"))
    return key, masked(body.decode()).splitlines() if short else f"sha256 {hashlib.sha256(body).hexdigest()}"


def rows(ledger: Path) -> dict[str, Any]:
    """Every row of every table, records by their hash."""
    with sqlite3.connect(ledger) as connection:
        connection.row_factory = sqlite3.Row
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
            ).fetchall()
        ]
        return {table: sorted(map(cells, connection.execute(f"SELECT * FROM {table}")), key=str) for table in tables}


def cells(row: sqlite3.Row) -> dict[str, Any]:
    """A row by column."""
    found = {
        name: masked(value) if isinstance(value, str) else value.hex() if isinstance(value, bytes) else value
        for name, value in dict(row).items()
    }
    if found.get("chain"):
        found["chain"] = "CHAIN"
    if str(found.get("id", "")).startswith("evt_"):
        found["id"] = "EVENT"
    if "record" in found:
        found["record"] = hashlib.sha256(json.dumps(json.loads(found["record"]), sort_keys=True).encode()).hexdigest()
    return found
