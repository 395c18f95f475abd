"""Settings: the environment, then the local stack's record, then folders under the home folder."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ptpipeline.errors import SettingsError
from ptpipeline.settings import load_settings
from ptpipeline.storage import open_store

RECORDED = {
    "store": "s3://stack",
    "s3_endpoint": "http://127.0.0.1:1",
    "mlflow": "http://127.0.0.1:2",
    "prefect": "http://127.0.0.1:3/api",
}
KEYS = "AWS_ACCESS_KEY_ID=stack-id\nAWS_SECRET_ACCESS_KEY=stack-secret\nOTHER=other\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder; no setting and no storage key in the environment, whatever a test leaves there."""
    for name in [name for name in os.environ if name.startswith("PTP_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "OTHER"):
        monkeypatch.setenv(name, "")  # so that what is exported is taken back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("PTP_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def stack(home: Path) -> Path:
    """A home folder with the record and the keys of a local stack."""
    record(home, {"settings": RECORDED, "processes": {}})
    (home / "stack.env").write_text(KEYS)
    return home


def record(home: Path, content: Any) -> None:
    (home / "stack.json").write_text(json.dumps(content))


def test_without_anything_all_lies_under_home(home: Path) -> None:
    settings = load_settings()
    assert (settings.store, settings.ledger) == (f"file://{home}/store", f"sqlite:///{home}/ledger.db")
    assert (settings.mlflow, settings.prefect, settings.s3_endpoint) == (None, None, None)


def test_home_and_tasks_are_absolute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("PTP_HOME", "sub/../here")
    settings = load_settings()
    assert (settings.home, settings.tasks) == (home / "here", home / "tasks")


def test_the_stack_fills_what_the_environment_leaves(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_MLFLOW", "http://mine")
    settings = load_settings()
    assert (settings.mlflow, settings.prefect, settings.store) == (
        "http://mine",
        RECORDED["prefect"],
        RECORDED["store"],
    )


def test_an_empty_variable_counts_as_unset(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_STORE", "")
    assert load_settings().store == RECORDED["store"]


def test_the_stacks_keys_reach_boto(stack: Path) -> None:
    load_settings()
    assert (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]) == ("stack-id", "stack-secret")
    assert "OTHER" not in os.environ


def test_the_stacks_store_is_read_with_its_own_keys(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    load_settings()
    assert os.environ["AWS_ACCESS_KEY_ID"] == "stack-id"


def test_another_store_gets_no_keys_of_the_stack(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_STORE", "s3://mine")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    load_settings()
    assert os.environ["AWS_ACCESS_KEY_ID"] == "mine"
    assert "AWS_SECRET_ACCESS_KEY" not in os.environ


def test_a_stack_without_keys_is_no_error(stack: Path) -> None:
    (stack / "stack.env").unlink()
    assert load_settings().store == RECORDED["store"]
    assert "AWS_ACCESS_KEY_ID" not in os.environ


def test_keys_without_a_stack_are_left_alone(stack: Path) -> None:
    (stack / "stack.json").unlink()
    assert load_settings().store == f"file://{stack}/store"
    assert "AWS_ACCESS_KEY_ID" not in os.environ


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"{}", b'{"settings": []}', b'{"settings": "s3://a"}', b'{"settings": null}', b"\xff"],
)
def test_a_broken_record_of_the_stack_is_named(home: Path, body: bytes) -> None:
    (home / "stack.json").write_bytes(body)
    with pytest.raises(SettingsError, match=r"stack\.json: not a stack record .* remove it and run `ptp up`"):
        load_settings()


def test_a_wrong_variable_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_CHECKPOINT_SECONDS", "0")
    with pytest.raises(SettingsError, match=r"PTP_CHECKPOINT_SECONDS: .*greater than 0; found '0'"):
        load_settings()
    monkeypatch.delenv("PTP_CHECKPOINT_SECONDS")
    monkeypatch.setenv("PTP_DTYPE", "float8")
    with pytest.raises(SettingsError, match=r"PTP_DTYPE: .*'auto', 'float32' or 'bfloat16'; found 'float8'"):
        load_settings()


def test_a_wrong_value_in_the_record_is_named(home: Path) -> None:
    record(home, {"settings": {"dtype": "float8"}})
    with pytest.raises(SettingsError, match=r"PTP_DTYPE: .*'float8'"):
        load_settings()


def test_an_unknown_store_is_refused_when_it_is_opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_STORE", "gs://bucket")
    with pytest.raises(
        SettingsError, match="PTP_STORE: 'gs://bucket' is not a store; expected file:///absolute/folder or s3://bucket"
    ):
        open_store(load_settings().store)
