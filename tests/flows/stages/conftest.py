"""What the stages work with, over a folder and SQLite, without a base model."""

from pathlib import Path

import pytest

from flows.stages.context import Context
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from registry.ledger.ledger import Ledger
from registry.registry import Registry


@pytest.fixture
def context(tmp_path: Path) -> Context:
    registry = Registry(Ledger(f"sqlite:///{tmp_path}/ledger.db"), FolderStore(tmp_path / "store"))
    return Context(Settings(home=tmp_path, tasks=tmp_path), registry)
