"""Folders that are one table: each is told with a command, and the command writes its rows."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from ptpipeline.data.local import find_rows_file, list_rows_files, load_rows
from ptpipeline.data.table import Wanted
from ptpipeline.errors import DataError, NotFound
from ptpipeline.task.source import Source, find_format
from tests.tiny import sentences, write_csv

ROWS = sentences(40)
TABLE = pa.table({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]})


def follow(folder: Path, new: Path) -> list[tuple[str | None, str | None]]:
    """Run the command that the message names, and return the rows of what it writes, sorted."""
    with pytest.raises(DataError) as raised:
        list_rows_files(folder)
    command = re.search("python -c '.*", str(raised.value), re.DOTALL)
    assert command is not None
    written = command[0].replace("NEW", shlex.quote(str(new))).replace("FOLDER", shlex.quote(str(folder)))
    subprocess.run(written.replace("python", sys.executable, 1), shell=True, check=True, capture_output=True)
    found = list[tuple[str | None, str | None]]()
    for path in [new] if new.is_dir() else list(new.parent.glob(f"{new.name}.*")):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            source = Source.model_validate({"path": str(file), "format": find_format(file)})
            table = load_rows(file, str(file), source, [Wanted("text", "text"), Wanted("label", "label")], new.parent)
            found += zip(table.columns["text"].cells, table.columns["label"].cells, strict=True)
    return sorted(found, key=str)


def test_what_datasets_saved_is_written_by_the_command(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset(TABLE).save_to_disk(tmp_path / "saved")
    assert follow(tmp_path / "saved", tmp_path / "new") == sorted(ROWS)


def test_splits_that_datasets_saved_are_written_by_the_command(tmp_path: Path) -> None:
    import datasets

    parts = {"train": datasets.Dataset(TABLE.slice(0, 30)), "test": datasets.Dataset(TABLE.slice(30))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    (tmp_path / "new").mkdir()
    assert follow(tmp_path / "saved", tmp_path / "new") == sorted(ROWS)
    assert list_rows_files(tmp_path / "new") == [tmp_path / "new" / f"{split}.parquet" for split in ("test", "train")]


def test_a_table_in_parts_is_written_by_the_command_with_the_values_of_its_folders(tmp_path: Path) -> None:
    codes = {"negative": "007", "positive": "a b"}
    for label, code in codes.items():
        (tmp_path / "hive" / f"label={code.replace(' ', '%20')}").mkdir(parents=True)
        rows = pa.table({"text": [text for text, other in ROWS if other == label]})
        pyarrow.parquet.write_table(rows, tmp_path / "hive" / f"label={code.replace(' ', '%20')}" / "part-0.parquet")
    expected = sorted((text, codes[label]) for text, label in ROWS)
    assert follow(tmp_path / "hive", tmp_path / "new") == expected


def test_a_file_for_each_text_is_written_by_the_command(tmp_path: Path) -> None:
    for number, (text, label) in enumerate(ROWS):
        (tmp_path / "train" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / label / f"{number}_7.txt").write_text(f"{text}\n“그래”\n", encoding="utf-8")
    assert follow(tmp_path / "train", tmp_path / "new") == sorted((f"{text}\n“그래”\n", label) for text, label in ROWS)
    with pytest.raises(DataError, match="holds folders of texts: name one of them, such as 'train'"):
        list_rows_files(tmp_path)


@pytest.mark.parametrize(
    ("mark", "lake"), [("_delta_log/0.json", "Delta"), (".hoodie/x", "Hudi"), ("metadata/v1.metadata.json", "Iceberg")]
)
def test_a_table_that_keeps_what_was_deleted_is_not_read_by_its_files(tmp_path: Path, mark: str, lake: str) -> None:
    (tmp_path / mark).parent.mkdir()
    (tmp_path / mark).touch()
    pyarrow.parquet.write_table(TABLE, tmp_path / "part-0.parquet")
    with pytest.raises(DataError, match=f"is a table of {lake}, whose folder also keeps rows that were deleted"):
        list_rows_files(tmp_path)


def test_the_files_of_a_folder_are_those_whose_names_tell_a_format(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", ".a.csv.swp", "._a.csv", "_metadata.csv", "notes.txt"):
        write_csv(tmp_path / name, ROWS)
    assert list_rows_files(tmp_path) == [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(NotFound, match=r"a\.csv'$"):
        find_rows_file(tmp_path)
