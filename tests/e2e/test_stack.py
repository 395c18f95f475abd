"""The local stack with real servers: up, down, refusals, and what survives."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from flows.local.ports import Ports
from flows.local.process import find_marked, is_alive, spawn, stop
from flows.local.servers import GRPC_OFFSET, mark_prefix
from flows.local.stack import down, read, status, up
from ptpipeline.errors import ServiceUnavailable, StackError
from ptpipeline.settings import load_settings
from ptpipeline.storage import open_store
from tests.e2e.conftest import Project

pytestmark = pytest.mark.servers


def test_a_second_up_in_the_same_folder_is_refused(project: Project) -> None:
    assert project.refused == f"another `ptp up` or `ptp down` is at work in {project.home}: wait for it to end"


def test_all_servers_outlive_the_process_that_started_them(project: Project) -> None:
    found = status(project.home)
    assert [member.state for member in found] == ["up"] * 5
    assert all(psutil.Process(member.pid).parent() not in (None, psutil.Process()) for member in found)


def test_up_again_changes_nothing(project: Project) -> None:
    before = project.stack
    assert up(project.home) == before


def test_an_explicit_port_of_a_running_server_cannot_move(project: Project) -> None:
    with pytest.raises(StackError, match=r"prefect runs on port \d+ already, not on 9: `ptp down` first"):
        up(project.home, Ports(prefect=9))


def test_what_the_stack_writes_is_readable_by_its_owner_only(project: Project) -> None:
    assert stat.S_IMODE((project.home / "stack.env").stat().st_mode) == 0o600
    assert stat.S_IMODE(project.home.stat().st_mode) == 0o700
    inside = [path for path in project.home.rglob("*") if not path.is_symlink()]
    assert len(inside) > 20
    open_to_others = [path for path in inside if stat.S_IMODE(path.stat().st_mode) & 0o077]
    # SeaweedFS sets the mode of its .vif files, Prefect copies that of its pages' folders; neither holds texts
    assert [path for path in open_to_others if path.suffix != ".vif" and "ui" not in path.parts] == []


def test_settings_point_at_the_stack(project: Project) -> None:
    settings = load_settings()
    store = open_store(settings.store, settings.s3_endpoint)
    store.create("snapshots/one.txt", b"bytes")
    assert store.read("snapshots/one.txt").body == b"bytes"


def test_mlflow_proxies_artifacts_into_storage(project: Project) -> None:
    url = f"{project.stack.settings['mlflow']}/api/2.0/mlflow-artifacts/artifacts/figures/one.txt"
    owner = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
    assert httpx.put(url, content=b"bytes", auth=owner).status_code == 200
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


def test_a_given_storage_port_needs_the_port_of_its_grpc_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        busy = holder.getsockname()[1]
        with pytest.raises(StackError, match=f"port {busy - GRPC_OFFSET} for storage is busy"):
            up(tmp_path, Ports(storage=busy - GRPC_OFFSET, mlflow=busy))
    assert read(tmp_path) is None


@pytest.mark.soak  # starts all three
def test_a_server_that_dies_at_its_start_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_bytes(b"no database" * 100)
    with pytest.raises(StackError, match=r"prefect died while starting; .*prefect\.log ends: .*not a database"):
        up(tmp_path)
    assert read(tmp_path) is None
    assert [process for process in psutil.process_iter() if str(tmp_path) in " ".join(_command(process))] == []


UP_KILLED = """
import os, signal, sys
from pathlib import Path
from flows.local.stack import up
from registry import failpoints
failpoints.watch(lambda step: step == sys.argv[2] and os.kill(os.getpid(), signal.SIGKILL))
up(Path(sys.argv[1]))
"""


def test_a_killed_up_leaves_nothing_that_blocks_the_next(tmp_path: Path) -> None:
    try:
        assert up_killed_at(tmp_path, "started storage") == -signal.SIGKILL
        assert read(tmp_path) is None
        [orphan] = find_marked(mark_prefix(tmp_path))
        assert up_killed_at(tmp_path, "started prefect") == -signal.SIGKILL
        assert not is_alive(orphan)
        stack = read(tmp_path)
        assert stack is not None
        assert set(stack.processes) == {"storage"}
        assert is_alive(stack.processes["storage"])
        assert len(find_marked(mark_prefix(tmp_path))) == 2
    finally:
        down(tmp_path)
    assert find_marked(mark_prefix(tmp_path)) == []


def test_down_finds_what_no_record_names(tmp_path: Path) -> None:
    assert up_killed_at(tmp_path, "started storage") == -signal.SIGKILL
    assert len(find_marked(mark_prefix(tmp_path))) == 1
    down(tmp_path)
    assert find_marked(mark_prefix(tmp_path)) == []


def up_killed_at(home: Path, step: str) -> int:
    """Run `up` in a process that is killed between a server's start and its record; return its exit code."""
    return subprocess.run([sys.executable, "-c", UP_KILLED, str(home), step], check=False).returncode


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
