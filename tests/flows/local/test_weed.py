"""The storage of a stack beside another SeaweedFS, whose settings lie where it looks for its own."""

from pathlib import Path

import pytest

from benchmarks.fixtures.s3_server import free_ports
from flows.local import certificate
from flows.local.keys import load_keys
from flows.local.process import spawn, stop
from flows.local.servers import StackConfig, define_server
from flows.local.weed import PREFIX, make_environment
from tests.waiting import wait_for


def test_no_variable_of_another_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = set(make_environment({}, certificate.locate(tmp_path)))
    monkeypatch.setenv("WEED_LEVELDB2_DIR", "/elsewhere")
    assert {name for name in make_environment({}, certificate.locate(tmp_path)) if name.startswith(PREFIX)} <= own


@pytest.mark.servers
def test_a_stack_keeps_its_index_under_its_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stacks would share one, or a stack lose all its objects with the file of settings that moved it."""
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "user" / ".seaweedfs").mkdir(parents=True)
    (tmp_path / "user" / ".seaweedfs" / "filer.toml").write_text(
        f'[leveldb2]\nenabled = true\ndir = "{elsewhere}/file"\n'
    )
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("WEED_LEVELDB2_DIR", f"{elsewhere}/variable")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    certificate.ensure(home)
    (port,) = free_ports(1)
    server = define_server("storage", StackConfig(home, {"storage": port}, load_keys(home)))
    process = spawn(server.command, server.environment, home / "storage.log", port, server.folder)
    try:
        wait_for(lambda: server.ready(process), 60)
    finally:
        stop(process)
    assert not elsewhere.exists()
    assert (home / "s3" / "filerldb2").is_dir()
