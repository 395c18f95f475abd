"""The local stack with real servers: up, down, refusals, and what survives."""

import os
import signal
import socket
import stat
from pathlib import Path

import httpx
import psutil
import pytest

from flows.local.process import is_alive, spawn, stop
from flows.local.stack import Ports, down, read, status, up
from ptpipeline.errors import ServiceUnavailable, StackError
from ptpipeline.settings import load_settings
from ptpipeline.storage import open_store
from tests.e2e.conftest import Project

pytestmark = pytest.mark.servers


def test_a_second_up_in_the_same_folder_is_refused(project: Project) -> None:
    assert project.refused == f"another `ptp up` or `ptp down` is at work in {project.home}: wait for it to end"


def test_all_servers_outlive_the_process_that_started_them(project: Project) -> None:
    found = status(project.home)
    assert [member.state for member in found] == ["up"] * 4
    assert all(psutil.Process(member.pid).parent() not in (None, psutil.Process()) for member in found)


def test_up_again_changes_nothing(project: Project) -> None:
    before = project.stack
    assert up(project.home) == before


def test_an_explicit_port_of_a_running_server_cannot_move(project: Project) -> None:
    with pytest.raises(StackError, match=r"prefect runs on port \d+ already, not on 9: `ptp down` first"):
        up(project.home, Ports(prefect=9))


def test_storage_keys_are_readable_by_their_owner_only(project: Project) -> None:
    assert stat.S_IMODE((project.home / "stack.env").stat().st_mode) == 0o600


def test_settings_point_at_the_stack(project: Project) -> None:
    settings = load_settings()
    store = open_store(settings.store, settings.s3_endpoint)
    store.create("snapshots/one.txt", b"bytes")
    assert store.read("snapshots/one.txt").body == b"bytes"


def test_mlflow_proxies_artifacts_into_storage(project: Project) -> None:
    url = f"{project.stack.settings['mlflow']}/api/2.0/mlflow-artifacts/artifacts/figures/one.txt"
    assert httpx.put(url, content=b"bytes").status_code == 200
    load_settings()
    store = open_store("s3://ptp-mlflow", project.stack.settings["s3_endpoint"])
    assert store.read("figures/one.txt").body == b"bytes"


def test_only_a_dead_server_is_restarted(project: Project) -> None:
    before = project.stack.processes
    os.kill(before["mlflow"].pid, signal.SIGKILL)
    psutil.wait_procs(
        [psutil.Process(before["mlflow"].pid)] if psutil.pid_exists(before["mlflow"].pid) else [], timeout=5
    )
    after = up(project.home).processes
    assert {name for name in after if after[name] != before[name]} == {"mlflow"}
    assert after["mlflow"].port == before["mlflow"].port


def test_a_given_busy_port_is_refused_by_number(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} for mlflow is busy"):
            up(tmp_path, Ports(mlflow=port))
    assert read(tmp_path) is None


def test_a_server_that_dies_at_its_start_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_bytes(b"no database" * 100)
    with pytest.raises(StackError, match=r"prefect died while starting; .*prefect\.log ends: .*not a database"):
        up(tmp_path)
    assert read(tmp_path) is None
    assert [process for process in psutil.process_iter() if str(tmp_path) in " ".join(_command(process))] == []


def test_a_foreign_process_under_a_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    started = spawn(["sleep", "60"], dict(os.environ), tmp_path / "log")
    recycled = started.model_copy(update={"created": started.created - 1000})
    stop(recycled)
    assert is_alive(started)
    stop(started)
    assert not is_alive(started)


def test_an_unreadable_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    with pytest.raises(StackError, match=r"stack\.json: not a stack record"):
        down(tmp_path)


def test_down_where_nothing_is_up_does_nothing(tmp_path: Path) -> None:
    down(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _command(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command


def test_zz_after_down_no_process_is_left_and_data_survives_moved_ports(project: Project) -> None:
    """Named to come last in this file: it takes the shared stack down and up."""
    load_settings()
    before = project.stack
    open_store("s3://ptp", before.settings["s3_endpoint"]).create("snapshots/kept.txt", b"kept")
    trees = [
        member
        for process in before.processes.values()
        for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    ]
    down(project.home)
    assert [process for process in trees if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert project.stack.settings == before.settings
    assert project.stack.processes == {}
    with pytest.raises(ServiceUnavailable, match="is it up"):
        open_store("s3://ptp", before.settings["s3_endpoint"]).read("snapshots/kept.txt")
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", before.processes["storage"].port or 0))
        holder.listen()
        after = up(project.home)
    assert after.settings["s3_endpoint"] != before.settings["s3_endpoint"]
    assert after.settings["prefect"] == before.settings["prefect"]
    assert open_store("s3://ptp", after.settings["s3_endpoint"]).read("snapshots/kept.txt").body == b"kept"
