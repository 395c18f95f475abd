"""What people write in task files, and what lies beside these."""

from pathlib import Path

import pytest

from ptpipeline.errors import TaskFileError
from ptpipeline.task.folder import sound_tasks
from tests.cases.case import count, enter

LABELS = {
    "06-bool-csv": {"true", "false"},
    "07-bool-jsonl": {"true", "false"},
    "09-zero-labels": {"01", "02"},
    "11-null-label": {"null", "some"},
    "12-yes-no": {"yes", "no"},
}


@pytest.mark.parametrize(("name", "labels"), LABELS.items(), ids=LABELS)
def test_labels_match_what_the_file_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, labels: set[str]
) -> None:
    snapshot = enter(name, tmp_path, monkeypatch).ingest()
    assert (set(snapshot.train.labels), count(snapshot)) == (labels, 240)
    assert all(snapshot.train.labels.values())


def test_an_editors_lock_stops_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = enter("80-emacs-lock", tmp_path, monkeypatch)
    (case.folder / "tasks" / ".#good.yaml").symlink_to("user@host.12345:1700000000")
    sound, broken = sound_tasks(case.folder / "tasks")
    assert ([task.name for task in sound], broken) == (["good"], {})


def test_a_label_that_stands_there_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = enter("86-yaml-collide", tmp_path, monkeypatch)
    with pytest.raises(TaskFileError, match=r'good\.yaml:9: not valid YAML: found duplicate key "1"'):
        case.ingest()
