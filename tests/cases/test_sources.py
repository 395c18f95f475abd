"""Where people's rows are."""

from pathlib import Path

import pytest

from tests.cases.case import count, enter


def test_a_compressed_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(enter("22-gz", tmp_path, monkeypatch).ingest()) == 240
