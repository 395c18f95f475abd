"""What the processes that talk to Prefect find in their environment."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.server.environment import clean_environment, client_environment
from ptpipeline.task.source import SqlQuery


def test_the_variables_that_a_source_names_reach_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that may name a variable which runs do not get would be read by hand and fail at night."""
    names = ["PARTNER_KEY", *(f"{prefix}ROWS" for prefix in ("AWS_", "PTP_", "PREFECT_", "MLFLOW_", "_MLFLOW_"))]
    for name in names:
        monkeypatch.setenv(name, "x")
    allowed = [name for name in names if is_nameable(name)]
    assert allowed == [name for name in names if name in clean_environment({})] == ["PARTNER_KEY"]


def is_nameable(name: str) -> bool:
    try:
        SqlQuery(url_env=name, query="SELECT 1")
    except ValidationError:
        return False
    return True


API = "http://127.0.0.1:4200/api"


@pytest.mark.parametrize(
    "name", ["PTP_DTYPE", "PTP_CHECKPOINT_SECONDS", "PTP_NIGHT_OVERLAP", "PTP_LATE_HOURS", "PTP_NIGHT_HOURS"]
)
def test_a_run_has_the_settings_of_whoever_started_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "as given")
    monkeypatch.setenv("PTP_STORE", "s3://another")  # what the stack's own record names
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "user:password")
    environment = client_environment(tmp_path, API)
    assert (environment[name], environment["PREFECT_API_AUTH_STRING"]) == ("as given", "user:password")
    assert (environment["PTP_HOME"], environment["PREFECT_API_URL"]) == (str(tmp_path), API)
    assert "PTP_STORE" not in environment


@pytest.mark.parametrize("name", ["PTP_SIGNING_KEY", "PTP_TRUSTED_KEYS"])
def test_a_run_finds_the_keys_in_whatever_folder_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, found in (("keys/own.pem", f"{tmp_path}/keys/own.pem"), ("~/own.pem", f"{Path.home()}/own.pem")):
        monkeypatch.setenv(name, given)
        assert client_environment(tmp_path, API)[name] == found


@pytest.mark.parametrize(
    ("name", "value", "stays"),
    [
        ("HTTPS_PROXY", "http://proxy:3128", True),
        ("https_proxy", "HTTPS://proxy:3128", True),
        ("ALL_PROXY", "socks5://proxy:1080", False),  # Prefect's client would not start
        ("ALL_PROXY", "proxy:3128", True),
    ],
)
def test_a_proxy_stays_if_prefects_client_can_use_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, stays: bool
) -> None:
    monkeypatch.setenv(name, value)
    assert (clean_environment({}).get(name) == value) == stays


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_this_machine_is_reached_directly_besides_what_else_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for each in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv(name, "ftp://intern.example")
    environment = clean_environment({})
    assert all(host in environment["NO_PROXY"] + environment["no_proxy"] for host in ("127.0.0.1", "intern.example"))
