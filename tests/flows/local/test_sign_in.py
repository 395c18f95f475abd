"""Links that sign a browser in: to pages of the local stack alone, and through a file that only its owner can read."""

import json
import os
import socket
import stat
import webbrowser
from pathlib import Path

import pytest

from flows.local.sign_in import open_page, sign_in_link
from ptpipeline.errors import NotFound, StackError
from ptpipeline.settings import Settings
from tests.processes import as_another_user

MLFLOW, PREFECT = "http://127.0.0.1:5000", "http://127.0.0.1:4200"
RECORDED = {"mlflow": MLFLOW, "prefect": f"{PREFECT}/api", "s3_endpoint": "http://127.0.0.1:8333"}
KEYS = "PREFECT_API_AUTH_STRING=ptp:secret\nMLFLOW_TRACKING_USERNAME=ptp\nMLFLOW_TRACKING_PASSWORD=secret\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The settings of a stack that runs; nothing listens."""
    (tmp_path / "stack.json").write_text(json.dumps({"settings": RECORDED, "processes": {}}))
    (tmp_path / "stack.env").write_text(KEYS)
    return Settings(home=tmp_path, mlflow=RECORDED["mlflow"], prefect=RECORDED["prefect"])


@pytest.mark.parametrize(
    ("page", "start", "end"),
    [
        ("mlflow", MLFLOW, "&to=%2F"),
        ("prefect", PREFECT, "&to=%2F"),
        (f"{MLFLOW}/#/models/fruit", MLFLOW, "&to=%2F%23%2Fmodels%2Ffruit"),
        (f"{PREFECT}/runs/flow-run/1", PREFECT, "&to=%2Fruns%2Fflow-run%2F1"),
    ],
)
def test_a_page_of_the_stack_gets_a_link(settings: Settings, page: str, start: str, end: str) -> None:
    link = sign_in_link(settings, page)
    assert link.startswith(f"{start}/ptp-login?token=")
    assert link.endswith(end)
    assert "secret" not in link


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_no_browser_is_led_to_another_users_server(settings: Settings) -> None:
    with as_another_user():
        listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (settings.home / "stack.json").write_text(
            json.dumps({"settings": {**RECORDED, "mlflow": address}, "processes": {}})
        )
        with pytest.raises(StackError, match=f"{address} is another user's server now: `ptp up`"):
            sign_in_link(settings.model_copy(update={"mlflow": address}), "mlflow")


def test_a_page_of_another_server_is_opened_as_it_is(settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"mlflow": "https://mlflow.example/team"})
    assert sign_in_link(elsewhere, "mlflow") == "https://mlflow.example/team"
    page = "https://mlflow.example/team/#/models/fruit"
    assert sign_in_link(elsewhere, page) == page


@pytest.mark.parametrize(
    "page", ["storage", "http://evil.example/", "http://127.0.0.1:50001/", f"{MLFLOW}.evil.example/"]
)
def test_a_page_of_no_server_is_refused(settings: Settings, page: str) -> None:
    with pytest.raises(NotFound, match=r"no page .*: the settings name mlflow \(http://127.0.0.1:5000\), prefect"):
        sign_in_link(settings, page)


def test_without_servers_there_is_no_page(settings: Settings) -> None:
    with pytest.raises(NotFound, match="no server: run `ptp up`"):
        sign_in_link(settings.model_copy(update={"mlflow": None, "prefect": None}), "mlflow")


def test_a_stack_of_an_older_ptpipeline_has_no_credential(settings: Settings) -> None:
    (settings.home / "stack.env").write_text("AWS_ACCESS_KEY_ID=1\n")
    with pytest.raises(StackError, match="holds no credential for mlflow: run `ptp up`"):
        sign_in_link(settings, "mlflow")


def test_the_browser_gets_the_link_in_a_private_file(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert open_page(settings, "prefect")
    assert opened == [(settings.home / "open.html").as_uri()]
    assert stat.S_IMODE((settings.home / "open.html").stat().st_mode) == 0o600
    assert f"{PREFECT}/ptp-login?token=" in (settings.home / "open.html").read_text()


def test_the_file_holds_a_link_whatever_the_address_holds(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda _: True)
    elsewhere = settings.model_copy(update={"mlflow": "https://mlflow.example"})
    assert open_page(elsewhere, 'https://mlflow.example/"><script>')
    assert "<script>" not in (settings.home / "open.html").read_text()
