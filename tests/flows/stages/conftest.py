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
    return make_context(tmp_path)


def make_context(folder: Path) -> Context:
    registry = Registry(Ledger(f"sqlite:///{folder}/ledger.db"), FolderStore(folder / "store"))
    return Context(Settings(home=folder, tasks=folder), registry)
