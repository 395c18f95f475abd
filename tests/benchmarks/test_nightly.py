"""The benchmark of a night trains what changed, and gives no figures of a night in which a task failed."""

import json
from pathlib import Path

import pytest

from benchmarks import nightly

SHORT = ["--tasks", "2", "--direct"]


def test_only_the_changed_tasks_train(capsys: pytest.CaptureFixture[str]) -> None:
    nightly.main([*SHORT, "--changed", "1"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["tasks"], figures["trained"]) == (2, 1)
    assert all(figures[stage] > 0 for stage in ("plan", "train", "gate", "publish"))


def test_a_night_in_which_a_task_failed_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_few(path: Path, rows: int, seed: int) -> None:
        path.write_text("text,label\n" if seed == 1 else whole(path, rows, seed))

    def whole(path: Path, rows: int, seed: int) -> str:
        write_rows(path, rows, seed)
        return path.read_text()

    write_rows = nightly.write_rows
    monkeypatch.setattr(nightly, "write_rows", write_few)
    with pytest.raises(SystemExit, match="task-001"):
        nightly.main(SHORT)
