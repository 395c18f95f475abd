"""Who the history names: the operating system's user and the key that signed, and what a request only claims."""

import getpass
import os
import pwd
from pathlib import Path

import pytest

from flows.cli.app import name_cause, os_user
from flows.promote import answer
from flows.requests import PromoteRequest, RollbackRequest, record_claim
from flows.stages.context import Context
from ptpipeline.errors import PromotionRefused
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.versions.promotion import promote
from tests.registry.signed import ADA, ME, TASK, fill, signed
from tests.registry.versions.test_promoters import declare


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Ledger(f"sqlite:///{tmp_path / 'ledger.db'}"), FolderStore(tmp_path / "store"))


@pytest.mark.parametrize("name", ["USER", "LOGNAME", "LNAME", "USERNAME"])
def test_the_user_is_known_by_id_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for each in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "eve")
    assert getpass.getuser() == "eve"
    assert os_user() == pwd.getpwuid(os.getuid()).pw_name != "eve"


def test_a_user_without_a_name_is_known_by_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(pwd, "getpwuid", lacking)
    assert os_user() == f"uid {os.getuid()}"


def test_the_key_that_signs_is_named_with_the_user(registry: Registry) -> None:
    assert name_cause(registry, "why").actor == os_user()
    cause = name_cause(signed(registry, ADA), "why", override=True)
    assert (cause.actor, cause.signer, cause.override) == (f"{os_user()} (key {ADA.id})", ADA, True)


@pytest.mark.parametrize(
    ("claimed", "recorded"),
    [
        ("prefect", "prefect"),
        ("", "prefect"),
        (" ", "prefect"),
        (" prefect ", "prefect"),
        ("ada", "prefect (claims ada)"),
        ("root (key 1)", "prefect (claims root (key 1))"),
    ],
)
def test_the_name_in_a_request_is_recorded_as_a_claim(claimed: str, recorded: str) -> None:
    assert record_claim(claimed) == recorded


@pytest.mark.parametrize("request_kind", [PromoteRequest, RollbackRequest])
def test_the_form_calls_the_name_a_claim(request_kind: type[PromoteRequest | RollbackRequest]) -> None:
    field = request_kind.model_json_schema()["properties"]["actor"]
    assert (field["title"], "nobody checks it" in field["description"]) == ("Claimed name", True)


def test_a_request_is_not_signed_by_whom_it_names(registry: Registry, tmp_path: Path) -> None:
    """The worker's key is even a promoter's: it does not speak for whoever fills in the form."""
    fill(registry)
    declare(tmp_path / "tasks", "promotion", ADA)
    worker = signed(registry, ADA, tasks=tmp_path / "tasks")
    context = Context(Settings(home=tmp_path, tasks=tmp_path / "tasks"), worker)
    request = PromoteRequest(task=TASK.name, version=1, reason="why", actor="ada", override=True)
    with pytest.raises(PromotionRefused, match=r"and prefect \(claims ada\) signed nothing"):
        answer(context, request)


def test_a_request_for_another_alias_is_recorded_with_its_claim(registry: Registry, tmp_path: Path) -> None:
    fill(registry)
    declare(tmp_path / "tasks", None)
    context = Context(Settings(home=tmp_path, tasks=tmp_path / "tasks"), registry)
    request = PromoteRequest(task=TASK.name, version=1, reason="why", alias="canary", actor="ada")
    assert answer(context, request).actor == "prefect (claims ada)"
    assert promote(registry, TASK, 1, ME, "canary").actor == "prefect (claims ada)"
