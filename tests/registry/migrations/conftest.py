"""The migrations are tested as they run, also on an empty file."""

import pytest
from alembic import command

from tests import ledgers


@pytest.fixture(autouse=True)
def _as_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "upgrade", ledgers.migrate)
