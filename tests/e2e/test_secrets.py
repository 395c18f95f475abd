"""What must not leak: the stack's secrets out of their own file, texts of rows into logs, MLflow or Prefect."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Project

pytestmark = pytest.mark.servers


def files(project: Project) -> list[Path]:
    """Everything that the stack and its runs wrote, the object server's own volumes left out of the second look."""
    return [path for path in project.home.rglob("*") if path.is_file() and not path.is_socket()]


def holding(paths: list[Path], needle: bytes) -> list[str]:
    return [str(path) for path in paths if needle in path.read_bytes()]


def test_the_stacks_secrets_stand_in_their_own_file_alone(project: Project) -> None:
    lines = (project.home / "stack.env").read_text().splitlines()
    values = {line.partition("=")[2].rpartition(":")[2] for line in lines}
    hidden = {value for value in values if len(value) >= 40}
    assert len(hidden) == 3  # S3's, the web servers', and what MLflow encrypts with
    others = [path for path in files(project) if path.name != "stack.env"]
    assert len(others) > 10
    assert [path for secret in hidden for path in holding(others, secret.encode())] == []


def test_row_texts_stay_in_the_object_store(project: Project) -> None:
    shown = [path for path in files(project) if "s3" not in path.relative_to(project.home).parts]
    assert any(path.suffix == ".log" for path in shown)
    assert holding(shown, b"apple pear plum") == []
