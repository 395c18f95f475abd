"""Opening the registry: the store is probed before anything is written, and not again for a day."""

from pathlib import Path

import pytest
from sqlalchemy import select, update

from ptpipeline.errors import SettingsError
from ptpipeline.settings import Settings
from registry import registry as opening
from registry.ledger import tables
from registry.registry import open_for_writing, open_registry
from tests.storage.small_s3 import IGNORES_IF_NONE_MATCH, small_s3


def settings_of(tmp_path: Path, store: str = "") -> Settings:
    return Settings(home=tmp_path, store=store or f"file://{tmp_path}/store", ledger=f"sqlite:///{tmp_path}/ledger.db")


def test_a_store_is_probed_once_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, probed = settings_of(tmp_path), []
    for _ in range(2):
        ledger = open_for_writing(settings).ledger
        with ledger.database.reading() as connection:
            probed.append(connection.scalar(select(tables.probe.c.at)))
    assert probed[0] == probed[1] is not None
    monkeypatch.setattr(opening, "CHECK_SECONDS", 0.0)
    with open_for_writing(settings).ledger.database.reading() as connection:
        assert connection.scalar(select(tables.probe.c.at)) > probed[0]


def test_a_store_that_was_probed_in_the_future_is_probed_again(tmp_path: Path) -> None:
    """The clock was set back since, or the machine was started again."""
    settings = settings_of(tmp_path)
    with open_for_writing(settings).ledger.database.writing() as connection:
        connection.execute(update(tables.probe).values(at=2e9))
    with open_for_writing(settings).ledger.database.reading() as connection:
        assert connection.scalar(select(tables.probe.c.at)) < 2e9


def test_reading_contacts_no_store(tmp_path: Path) -> None:
    assert open_registry(settings_of(tmp_path)).ledger.versions() == []
    assert not (tmp_path / "store").exists()


def test_a_store_that_ignores_conditions_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    with small_s3(IGNORES_IF_NONE_MATCH) as server:
        settings = settings_of(tmp_path, "s3://bucket").model_copy(update={"s3_endpoint": server.endpoint})
        for _ in range(2):  # a refusal is not remembered as a success
            with pytest.raises(SettingsError, match=r"s3://bucket .*If-None-Match"):
                open_for_writing(settings)
        assert server.objects == {}
