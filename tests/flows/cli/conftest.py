"""A registry that the verbs of this folder's tests find by the environment."""

from pathlib import Path

import pytest

from ptpipeline.storage import FolderStore
from registry.ledger.ledger import Ledger
from registry.registry import Registry


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An empty registry over SQLite and a folder, which the environment names, with home and tasks beside them."""
    places = {
        "PTP_HOME": f"{tmp_path}/home",
        "PTP_TASKS": f"{tmp_path}/tasks",
        "PTP_LEDGER": f"sqlite:///{tmp_path}/ledger.db",
        "PTP_STORE": f"file://{tmp_path}/store",
    }
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    return Registry(Ledger(places["PTP_LEDGER"]), FolderStore(tmp_path / "store"))
