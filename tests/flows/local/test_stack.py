"""What `ptp up` says of a worker that runs with other settings."""

import os
from pathlib import Path

import pytest

from flows.local.process import spawn, stop
from flows.local.stack import _changed_settings


def test_a_changed_target_of_events_is_named_and_its_address_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "PTP_HOME": str(tmp_path), "PTP_EVENT_CHAT": "slack:https://example.com/hidden"}
    process = spawn(["sleep", "60"], environment, tmp_path / "log")
    try:
        monkeypatch.setenv("PTP_EVENT_CHAT", "slack:https://example.com/concealed")
        changes = _changed_settings(tmp_path, process)
    finally:
        stop(process)
    assert "PTP_EVENT_CHAT is another" in changes
    assert "example.com" not in changes
