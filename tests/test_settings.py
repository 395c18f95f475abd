"""Settings: the environment, then the local stack's record, then folders under the home folder."""

import importlib
import itertools
import json
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures.postgres import is_open_to_all
from flows.cli import main
from ptpipeline.errors import SettingsError
from ptpipeline.settings import CREDENTIALS, NO_AWS_FILES, bypass_proxies, is_loopback, load_settings
from ptpipeline.storage import open_store
from tests.processes import as_another_user, in_child

RECORDED = {
    "store": "s3://stack",
    "s3_endpoint": "http://127.0.0.1:1",
    "mlflow": "http://127.0.0.1:2",
    "prefect": "http://127.0.0.1:3/api",
}
KEYS = """\
AWS_ACCESS_KEY_ID=stack-id
AWS_SECRET_ACCESS_KEY=stack-secret
PREFECT_API_AUTH_STRING=ptp:stack-prefect
MLFLOW_TRACKING_USERNAME=ptp
MLFLOW_TRACKING_PASSWORD=stack-mlflow
OTHER=other
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder; no setting and no storage key in the environment, whatever a test leaves there."""
    for name in [name for name in os.environ if name.startswith("PTP_")]:
        monkeypatch.delenv(name)
    for name in (*itertools.chain(*CREDENTIALS.values()), *NO_AWS_FILES, "OTHER"):
        monkeypatch.setenv(name, "")  # so that what is exported is taken back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("PTP_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def stack(home: Path) -> Path:
    """A home folder with the record and the keys of a local stack."""
    record(home, {"settings": RECORDED, "processes": {name: {"pid": os.getpid()} for name in ("mlflow", "prefect")}})
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


def test_the_stacks_credentials_reach_the_clients_of_its_servers(stack: Path) -> None:
    load_settings()
    assert os.environ["PREFECT_API_AUTH_STRING"] == "ptp:stack-prefect"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "stack-mlflow"


def test_the_stacks_server_named_by_hand_is_still_the_stacks(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_MLFLOW", RECORDED["mlflow"])
    load_settings()
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "stack-mlflow"


@pytest.mark.parametrize(
    ("setting", "name"), [("PTP_PREFECT", "PREFECT_API_AUTH_STRING"), ("PTP_MLFLOW", "MLFLOW_TRACKING_PASSWORD")]
)
def test_another_server_gets_no_credentials_of_the_stack(
    stack: Path, monkeypatch: pytest.MonkeyPatch, setting: str, name: str
) -> None:
    monkeypatch.setenv(setting, "https://mine/api")
    monkeypatch.setenv(name, "mine")
    load_settings()
    assert os.environ[name] == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CA_BUNDLE",
        "AWS_ENDPOINT_URL_S3",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_AUTH",
        "MLFLOW_TRACKING_AWS_SIGV4",
        "MLFLOW_WORKSPACE",
    ],
)
def test_what_goes_with_other_credentials_goes_with_them(
    stack: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "left over")
    load_settings()
    assert name not in os.environ


@pytest.mark.parametrize("name", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_the_stacks_store_reads_no_file_of_another_account(
    stack: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(stack / "broken"))
    (stack / "broken").write_text("no section")
    store = open_store(RECORDED["store"], load_settings().s3_endpoint)
    assert store.url == RECORDED["store"]
    assert os.environ[name] == os.devnull


@pytest.mark.parametrize("missing", CREDENTIALS["store"])
def test_half_a_set_of_credentials_replaces_nothing(stack: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    (stack / "stack.env").write_text("".join(line for line in KEYS.splitlines(True) if not line.startswith(missing)))
    mine = {"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "mine", "AWS_SESSION_TOKEN": "mine"}
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    load_settings()
    assert {name: os.environ.get(name) for name in mine} == mine


def test_another_store_keeps_all_of_its_account(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_STORE", "s3://mine")
    mine = {"AWS_PROFILE": "mine", "AWS_SESSION_TOKEN": "mine", "AWS_CONFIG_FILE": "mine"}
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    load_settings()
    assert {name: os.environ.get(name) for name in mine} == mine


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize(
    ("given", "exempt"),
    [
        ({}, None),
        ({"NO_PROXY": "intern"}, "intern"),
        ({"HTTP_PROXY": ""}, None),
        ({"HTTP_PROXY": "http://p"}, "127.0.0.1,localhost,::1"),
        ({"all_proxy": "socks5://p"}, "127.0.0.1,localhost,::1"),
        ({"https_proxy": "http://p", "NO_PROXY": "intern, localhost"}, "intern,localhost,127.0.0.1,::1"),
        ({"HTTP_PROXY": "http://p", "NO_PROXY": "a", "no_proxy": "b"}, "b,127.0.0.1,localhost,::1"),
        ({"HTTP_PROXY": "http://p", "no_proxy": "*"}, "*"),
    ],
)
def test_this_machine_is_reached_directly(given: dict[str, str], exempt: str | None) -> None:
    environment = dict(given)
    bypass_proxies(environment)
    assert environment.get("no_proxy") == (exempt if environment != given else None)
    assert environment.get("NO_PROXY") == exempt
    again = dict(environment)
    bypass_proxies(again)
    assert again == environment


def test_whoever_loads_the_settings_reaches_this_machine_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTP_HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:59777")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    load_settings()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "127.0.0.1,localhost,::1"


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("http://127.0.0.1:4200/api", True),
        ("http://localhost:4200/api", True),
        ("http://[::1]:4200/api", True),
        ("http://127.8.8.8/", True),
        ("http://prefect.example/api", False),
        ("http://127.0.0.1.example/api", False),
        ("http://10.0.0.1:4200/api", False),
        ("nothing", False),
        ("http://[", False),
    ],
)
def test_an_address_of_this_machine_is_known(address: str, own: bool) -> None:
    assert is_loopback(address) is own


def test_a_home_that_others_may_open_becomes_private_and_says_so_once(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.chmod(0o755)
    for _ in range(2):
        load_settings()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert caplog.text.count("could be opened by other users; it is private now") == 1


def test_a_folder_of_all_users_is_no_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.chmod(0o1777)
    with pytest.raises(SettingsError, match=r"PTP_HOME=.* is a folder of all users: name one of your own"):
        load_settings()
    assert stat.S_IMODE(home.stat().st_mode) == 0o1777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take rights away from the root folder")
def test_the_root_folder_by_another_name_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("/")
    monkeypatch.setenv("PTP_HOME", str(tmp_path / "link"))
    monkeypatch.setattr(Path, "chmod", lambda path, mode: pytest.fail(f"{path} was to be closed"))
    with pytest.raises(SettingsError, match=r"PTP_HOME=.* is a folder of all users"):
        load_settings()


# ---------------------------------------------------------------- another user's


def test_a_stack_that_is_down_gets_no_password(stack: Path) -> None:
    record(stack, {"settings": RECORDED, "processes": {}})
    load_settings()
    assert "PREFECT_API_AUTH_STRING" not in os.environ
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
    assert os.environ["AWS_ACCESS_KEY_ID"] == "stack-id"  # what it signs shows no secret


def test_a_server_that_died_gets_no_password(stack: Path) -> None:
    record(stack, {"settings": RECORDED, "processes": {"mlflow": {"pid": 2**22 + 1}}})  # above the kernel's last pid
    load_settings()
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_a_recorded_address_without_a_port_gets_no_key(stack: Path) -> None:
    record(stack, {"settings": {**RECORDED, "s3_endpoint": "http://127.0.0.1:8U33"}, "processes": {}})
    load_settings()
    assert "AWS_ACCESS_KEY_ID" not in os.environ


def test_no_password_of_another_server_goes_to_a_stack_that_is_down(
    stack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(stack, {"settings": RECORDED, "processes": {}})
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "elsewhere")
    load_settings()
    assert "PREFECT_API_AUTH_STRING" not in os.environ
    assert "MLFLOW_TRACKING_TOKEN" not in os.environ


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_port_that_another_user_took_gets_no_key(stack: Path, caplog: pytest.LogCaptureFixture) -> None:
    with as_another_user():
        listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        port = listener.getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        record(stack, {"settings": {**RECORDED, "mlflow": address, "s3_endpoint": address}, "processes": {}})
        load_settings()
    assert not {"MLFLOW_TRACKING_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & os.environ.keys()
    assert f"port {port} of the stack's mlflow is taken by a program of user 65533, which gets no key" in caplog.text


# What the verbs import, from where another user may not read.
IMPORTED = (
    "flows.cli.render",
    "flows.local.stack",
    "flows.server.deploy",
    "ptpipeline.task.folder",
    "registry.registry",
)


@pytest.fixture
def foreign() -> Iterator[Path]:
    """A stack of the user who runs the tests, in a folder that everybody may list."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        record(home, {"settings": RECORDED, "processes": {}})
        (home / "stack.env").write_text(KEYS)
        for path in (Path(folder), home):
            path.chmod(0o755)
        yield home


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
@pytest.mark.skipif(not is_open_to_all(Path(sys.prefix)), reason="a second user cannot enter the folder of Python")
@pytest.mark.parametrize("unreadable", ["stack.env", "stack.json", "."])
@pytest.mark.parametrize("verb", ["status", "versions", "up", "down"])
def test_another_users_stack_is_refused_in_one_sentence(
    foreign: Path, tmp_path: Path, unreadable: str, verb: str
) -> None:
    path = foreign / unreadable
    path.chmod(0o700 if path.is_dir() else 0o600)

    for module in IMPORTED:
        importlib.import_module(module)

    def as_nobody() -> None:
        for name in [name for name in os.environ if name.startswith(("PTP_", "AWS_"))]:
            del os.environ[name]
        os.environ |= {"PTP_HOME": str(foreign), "PTP_TASKS": "/nowhere"}
        with (tmp_path / "error").open("w") as error, redirect_stderr(error):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            main([verb])

    in_child(as_nobody, ends=1)
    error = (tmp_path / "error").read_text()
    assert error.startswith(f"error: {foreign}")
    assert "Permission denied" in error
    assert "set PTP_HOME to a folder of your own" in error
    assert len(error.splitlines()) == 1


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


def test_the_record_of_a_folder_that_was_copied_points_nobody_at_the_originals_servers(home: Path) -> None:
    record(home, {"settings": RECORDED, "processes": {}, "home": "/elsewhere/.ptp"})
    with pytest.raises(SettingsError, match=r"copied or moved here .* of /elsewhere/\.ptp: `ptp up` starts servers of"):
        load_settings()
    assert load_settings(starting=True).store == f"file://{home}/store"
    record(home, {"settings": RECORDED, "processes": {}, "home": str(home)})
    assert load_settings().store == RECORDED["store"]


def test_a_wrong_variable_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_CHECKPOINT_SECONDS", "0")
    with pytest.raises(SettingsError, match=r"PTP_CHECKPOINT_SECONDS: .*greater than 0; found '0'"):
        load_settings()
    monkeypatch.delenv("PTP_CHECKPOINT_SECONDS")
    monkeypatch.setenv("PTP_DTYPE", "float8")
    with pytest.raises(SettingsError, match=r"PTP_DTYPE: .*'auto', 'float32' or 'bfloat16'; found 'float8'"):
        load_settings()


@pytest.mark.parametrize("setting", ["PTP_MLFLOW", "PTP_PREFECT"])
@pytest.mark.parametrize(
    "address", ["http://[hidden", "http://host:hidden", "http://", "ftp://hidden", "hidden:5000", "http://hidden:99999"]
)
def test_what_is_no_address_of_a_server_is_refused_unseen(
    home: Path, monkeypatch: pytest.MonkeyPatch, setting: str, address: str
) -> None:
    monkeypatch.setenv(setting, address)
    with pytest.raises(SettingsError, match=f"{setting}: no address of a server") as refused:
        load_settings()
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("setting", ["PTP_SIGNING_KEY", "PTP_TRUSTED_KEYS"])
def test_a_key_in_the_place_of_its_path_is_not_shown(home: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(setting, "-----BEGIN PRIVATE KEY-----\nhidden\n-----END PRIVATE KEY-----")
    with pytest.raises(SettingsError, match=f"{setting}: expected the path") as refused:
        load_settings()
    assert "hidden" not in str(refused.value)


def test_an_address_of_prefect_holds_no_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_PREFECT", "https://ann:secret@prefect.example.com/api")
    with pytest.raises(SettingsError, match=r"PTP_PREFECT: .*give them in PREFECT_API_AUTH_STRING") as refused:
        load_settings()
    assert "secret" not in str(refused.value)


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
