"""Reading csv, tsv, JSON Lines and Parquet, and the cheap key of a source."""

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ptpipeline.data.sources import read_rows, source_key
from ptpipeline.errors import DataError
from ptpipeline.task.recipe import Tune
from tests.data.declared import declared
from tests.tiny import sentences, write_csv


def write(folder: Path, body: bytes | str, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return path


def no_rows() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in ("text", "label")}), buffer)
    return buffer.getvalue()


def pairs(path: Path, home: Path, **data: Any) -> list[tuple[str | None, Any]]:
    rows = read_rows(declared(path, **data), home)
    return list(zip(rows.fields["text"], rows.labels, strict=True))


def test_csv_cells_stay_as_written(tmp_path: Path) -> None:
    path = write(tmp_path, 'text,label\nNA,001\nnull,1.0\n"a ""b"",\nc",\n')
    assert pairs(path, tmp_path / "home") == [("NA", "001"), ("null", "1.0"), ('a "b",\nc', "")]


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    assert pairs(write(tmp_path, "\n  \ntext,label\n\na,b\n\n"), tmp_path) == [("a", "b")]


def test_every_format_reads_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in sentences(9)]
    lines = ["\t".join(row.values()) for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    write_csv(tmp_path / "rows.csv", sentences(9))
    write(tmp_path, "\n".join(["text\tlabel", *lines]), "rows.tsv")
    write(tmp_path, "\n".join(map(json.dumps, rows)), "rows.jsonl")
    found = [
        pairs(tmp_path / f"rows.{form}", tmp_path, source={"format": form})
        for form in ("csv", "tsv", "jsonl", "parquet")
    ]
    assert found == [sentences(9)] * 4


def test_a_byte_order_mark_is_no_part_of_the_name(tmp_path: Path) -> None:
    assert pairs(write(tmp_path, b"\xef\xbb\xbftext,label\na,b\n"), tmp_path) == [("a", "b")]


def test_tsv_has_no_quoting_and_given_columns(tmp_path: Path) -> None:
    path = write(tmp_path, '1\t"a\tgood\n2\tb"\tbad\n', "rows.tsv")
    source = {"format": "tsv", "columns": ["id", "text", "label"]}
    assert pairs(path, tmp_path, source=source) == [('"a', "good"), ('b"', "bad")]


def test_json_lines_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff{"text": "a\\nb", "label": 1}\n{"label": 0, "text": null}\n', "rows.jsonl")
    assert pairs(path, tmp_path, source={"format": "jsonl"}) == [("a\nb", "1"), (None, "0")]


def test_parquet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["bad", "good"], "author": [1, 2]}), path)
    rows = read_rows(declared(path, source={"format": "parquet"}, split={"group": "author"}), tmp_path)
    assert (rows.fields["text"], rows.labels, rows.groups) == (["a", "b"], ["bad", "good"], ["1", "2"])


@pytest.mark.parametrize(
    ("name", "body"),
    [("rows.csv", b"text,label\ncaf\xe9,bad\n"), ("rows.jsonl", b'{"text": "caf\xe9", "label": "bad"}\n')],
)
def test_bytes_that_are_not_utf8_are_marked(tmp_path: Path, name: str, body: bytes) -> None:
    assert pairs(write(tmp_path, body, name), tmp_path, source={"format": name.split(".")[1]}) == [("caf\udce9", "bad")]


@pytest.mark.parametrize(
    ("form", "body", "expected"),
    [
        ("csv", "", "the file is empty"),
        ("csv", "text,label\n", "there are no rows"),
        ("csv", "text,score\na,1\n", "no column 'label', which data.label names; the columns are text, score"),
        ("csv", "txt,label\na,1\n", "no column 'text', which data.text names; the columns are txt, label"),
        ("csv", "text,text,label\na,b,1\n", "2 columns have the name 'text', which data.text names"),
        ("csv", "text,label\na,1\nb,2,3\n", "line 3 has 3 fields, expected 2"),
        ("csv", "text,label\na,1,2\nb,2,3\n", "line 2 has 3 fields, expected 2"),
        ("csv", 'text,label\n"a,1\n', "line 2: a quote that opens in this row is never closed"),
        ("csv", "text,label\na,bad\n".encode("utf-16"), "the file is UTF-16"),
        ("jsonl", '{"text": "a", "label": 1}\n\n{"text"\n', "not readable as jsonl: line 3, column 1"),
        ("jsonl", '{"text": "a", "label": 1}\n[1]\n', "not readable as jsonl: line 2 is not a JSON object"),
        (
            "jsonl",
            '{"text": 1, "label": 1}\n',
            "line 1: column 'text', which data.text names, holds integers; expected text",
        ),
        ("jsonl", "\n", "there are no rows"),
        ("parquet", "PAR1 no", "not readable as parquet"),
        ("parquet", no_rows(), "there are no rows"),
    ],
)
def test_an_unusable_file_is_named_with_the_reason(tmp_path: Path, form: str, body: bytes | str, expected: str) -> None:
    path = write(tmp_path, body)
    with pytest.raises(DataError) as raised:
        read_rows(declared(path, source={"format": form}), tmp_path)
    assert str(path) in str(raised.value)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_group_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "text,label\na,1\n")
    with pytest.raises(
        DataError, match=r"no column 'author', which data\.split\.group names; the columns are text, label"
    ):
        read_rows(declared(path, split={"group": "author"}), tmp_path)


@pytest.mark.parametrize("read", [read_rows, source_key])
def test_a_missing_file_is_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read(declared(tmp_path / "none.csv"), tmp_path)


def test_a_relative_path_starts_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "text,label\na,bad\n")
    monkeypatch.chdir(tmp_path)
    assert read_rows(declared("rows.csv"), tmp_path / "home").fields["text"] == ["a"]


def test_a_file_of_the_same_name_is_read_anew(tmp_path: Path) -> None:
    for text in ("one", "two"):
        path = write(tmp_path, f"text,label\n{text},bad\n")
        os.utime(path, (1, 1))
        assert pairs(path, tmp_path / "home") == [(text, "bad")]


def test_what_killed_runs_left_behind_goes_after_a_day(tmp_path: Path) -> None:
    path, home = write(tmp_path, "text,label\na,bad\n"), tmp_path / "home"
    home.mkdir()
    for name in (".unfold-new", ".unfold-old"):
        (home / name).mkdir()
        (home / name / "rows.csv").write_text("rows")
    for name in (".s3-new", ".s3-old", ".other-old"):
        (home / name).write_text("rows")
    for name in (".unfold-old", ".s3-old", ".other-old"):
        os.utime(home / name, (1, 1))
    assert pairs(path, home) == [("a", "bad")]
    assert sorted(left.name for left in home.iterdir()) == [".other-old", ".s3-new", ".unfold-new"]


def test_what_a_left_link_leads_to_stays(tmp_path: Path) -> None:
    path, home, folder = write(tmp_path, "text,label\na,bad\n"), tmp_path / "home", tmp_path / "of-a-person"
    home.mkdir()
    folder.mkdir()
    (folder / "rows.csv").write_text("rows")
    link = home / ".s3-link"
    link.symlink_to(folder)
    os.utime(link, (1, 1), follow_symlinks=False)
    assert pairs(path, home) == [("a", "bad")]
    assert (link.is_symlink(), (folder / "rows.csv").read_text()) == (False, "rows")


def test_reading_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write(tmp_path, "text,label\na,bad\n")
    code = f"""
from pathlib import Path
from ptpipeline.data.sources import read_rows
from tests.data.declared import declared
read_rows(declared({str(path)!r}), Path({str(tmp_path / "home")!r}))
"""
    places = {name: str(tmp_path / "user") for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **places}, capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- slices


def test_slice_values_are_text(tmp_path: Path) -> None:
    write(
        tmp_path,
        '{"text": "a", "label": "bad", "shop": 7, "lang": "en"}\n{"text": "b", "label": "bad", "shop": 8, '
        '"lang": null}\n',
        "rows.jsonl",
    )
    task = declared(tmp_path / "rows.jsonl", source={"format": "jsonl"}, slices=["lang", "shop"])
    assert read_rows(task, tmp_path / "home").slices == [("en", "7"), ("", "8")]


def test_a_missing_slice_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "text,label\na,bad\n")
    with pytest.raises(
        DataError, match=r"rows\.csv: no column 'shop', which data\.slices names; the columns are text, label"
    ):
        read_rows(declared(path, slices=["shop"]), tmp_path)


def test_a_slice_column_of_many_values_is_refused(tmp_path: Path) -> None:
    body = "text,label,shop\n" + "".join(f"text,bad,{number}\n" for number in range(51))
    with pytest.raises(
        DataError, match=r"column 'shop', which data\.slices names, has 51 distinct values; .* at most 50"
    ):
        read_rows(declared(write(tmp_path, body), slices=["shop"]), tmp_path)
    fifty = declared(write(tmp_path, body.replace(",50\n", ",0\n")), slices=["shop"])
    assert len(read_rows(fifty, tmp_path).slices) == 51


# ---------------------------------------------------------------- the key


def test_the_key_follows_content_not_time(tmp_path: Path) -> None:
    task = declared(write(tmp_path, "text,label\na,bad\n"))
    before = source_key(task, tmp_path)
    write(tmp_path, "text,label\na,bad\n")
    assert source_key(task, tmp_path) == before
    write(tmp_path, "text,label\nb,bad\n")
    assert source_key(task, tmp_path) != before


def test_the_key_follows_the_data_settings_only(tmp_path: Path) -> None:
    task = declared(write(tmp_path, "text,label\na,bad\n"))
    key = source_key(task, tmp_path)
    assert source_key(task.model_copy(update={"template": "{text}?"}), tmp_path) == key
    assert source_key(declared(task.data.source.path or "", split={"seed": 1}), tmp_path) != key
    assert source_key(task.model_copy(update={"labels": {"bad": " bad", "fine": " fine"}}), tmp_path) != key


def test_the_key_follows_the_longest_prompt_if_long_rows_are_left_out(tmp_path: Path) -> None:
    task = declared(write(tmp_path, "text,label\na,bad\n"), too_long="drop")

    def key(*lengths: int) -> str:
        tune = Tune.model_validate({"search": {"length": list(lengths)}})
        return source_key(task.model_copy(update={"tune": tune}), tmp_path, "a tokenizer")

    assert key(4, 8) == key(2, 8)
    assert key(4, 8) != key(4, 16)


PINNED = {"path": None, "package": "no-such-package==1", "member": "a.csv", "sha256": "a" * 64}


def test_the_key_of_a_pinned_package_needs_no_download(tmp_path: Path) -> None:
    key = source_key(declared(source=PINNED), tmp_path)
    assert key != source_key(declared(source=PINNED | {"member": "b.csv"}), tmp_path)
    assert key != source_key(declared(source=PINNED | {"sha256": "b" * 64}), tmp_path)


def test_the_key_holds_the_content_of_an_archive_not_its_name(tmp_path: Path) -> None:
    other = PINNED | {"package": "other-name==2"}
    assert source_key(declared(source=other), tmp_path) == source_key(declared(source=PINNED), tmp_path)


def test_the_line_that_pins_an_archive_changes_no_key(tmp_path: Path) -> None:
    archive = tmp_path / "downloads/no-such-package-1/wheels/x.whl"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.csv", "text,label")
    pinned = PINNED | {"sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    free = {name: value for name, value in PINNED.items() if name != "sha256"}
    assert source_key(declared(source=free), tmp_path) == source_key(declared(source=pinned), tmp_path)


def test_the_key_imports_no_slow_library() -> None:
    code = (
        "import sys, ptpipeline.data.snapshot; print([m for m in ('datasets', 'pandas', 'pyarrow', 'torch') if m "
        "in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "change", [{"split": {"reserve": 0.1}}, {"slices": ["label"]}, {"checks": {"near_duplicate": "off"}}]
)
def test_the_key_follows_what_is_held_back_sliced_or_kept_together(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path, "text,label\na,bad\n")
    assert source_key(declared(path, **change), tmp_path) != source_key(declared(path, split={}, checks={}), tmp_path)
