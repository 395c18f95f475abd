"""What `ptp up` refuses before it starts a server; what it starts is tested in `tests/e2e`."""

from pathlib import Path

from tests.flows.cli.test_cli import environment_of, ptp


def test_up_in_a_folder_without_task_files_starts_nothing(tmp_path: Path) -> None:
    environment = environment_of(tmp_path)
    try:
        done = ptp(environment, "up")
        assert (done.returncode, "no folder" in done.stderr) == (1, True)
        assert not (tmp_path / "home").exists()
    finally:
        ptp(environment, "down")
