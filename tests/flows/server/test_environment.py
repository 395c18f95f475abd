"""What the processes that talk to Prefect find in their environment."""

import pytest
from pydantic import ValidationError

from flows.server.environment import clean_environment
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
