"""Rows in several files, in those of a pattern, and in compressed ones."""

import gzip
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ptpipeline.data import joined
from ptpipeline.data.local import find_rows_file, tell_format
from ptpipeline.data.sources import describe_key, read_rows, source_key
from ptpipeline.data.validation import check_rows
from ptpipeline.errors import DataError, NotFound
from tests.data.declared import declared
from tests.http_server import Quiet, serve

HEAD = "text,label\n"


def write(path: Path, body: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body)
    return str(path)


def texts(folder: Path, **source: object) -> list[str | None]:
    return read_rows(declared(source={"path": None, **source}), folder / "home").fields["text"]


def test_the_files_of_a_list_are_read_in_its_order(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.csv", f"{HEAD}{name},bad\n") for name in ("b", "a", "c")]
    assert texts(tmp_path, path=paths) == ["b", "a", "c"]
    rows = read_rows(declared(source={"path": paths}), tmp_path / "home")
    assert rows.source == ", ".join(paths)


def test_files_may_differ_in_columns_that_the_task_does_not_name(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", "text,label\na,bad\n")
    two = write(tmp_path / "b.csv", "id,label,text\n1,bad,b\n")
    assert texts(tmp_path, path=[one, two]) == ["a", "b"]


def test_all_files_together_have_no_more_rows_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "MAX_ROWS", 3)
    one, two = write(tmp_path / "a.csv", f"{HEAD}a,bad\nb,bad\n"), write(tmp_path / "b.csv", f"{HEAD}c,bad\n")
    assert texts(tmp_path, path=[one, two]) == ["a", "b", "c"]
    write(tmp_path / "b.csv", f"{HEAD}c,bad\nd,bad\n")
    with pytest.raises(DataError, match=r"a\.csv, .*b\.csv: more than 3 rows together"):
        texts(tmp_path, path=[one, two])


def test_a_file_without_a_named_column_is_named_with_it(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.csv", "text,label\na,bad\n"), write(tmp_path / "b.csv", "text,lable\nb,bad\n")
    with pytest.raises(DataError, match=r"b\.csv: no column 'label', which data\.label names"):
        texts(tmp_path, path=[one, two])


def test_a_row_is_told_by_its_file_and_line(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", f"{HEAD}a,bad\nb,wrong\n")
    two = write(tmp_path / "b.csv", f"{HEAD}c,bad\nd,wrong\ne,wrong\nf,wrong\n")
    task = declared(source={"path": [one, two]})
    with pytest.raises(DataError, match=r"a\.csv line 3, .*b\.csv lines 3, 4 and more"):
        check_rows(task, read_rows(task, tmp_path))


@pytest.mark.parametrize(
    ("name", "body"), [("b.csv", "text;label\nc;bad\n"), ("b.csv", '{"text": "c", "label": "bad"}\n')]
)
def test_a_file_that_is_written_unlike_the_others_is_told_with_what_reads_all(
    tmp_path: Path, name: str, body: str
) -> None:
    """The setting that reads it would read none of those before it."""
    one, two = write(tmp_path / "a.csv", f"{HEAD}a,bad\n"), write(tmp_path / name, body)
    with pytest.raises(DataError, match=r"b\.csv: .*, write this file as those before it, as all") as raised:
        texts(tmp_path, path=[one, two])
    assert "data.source." not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ("https://host/rows.csv?key=secret", "curl -fL ADDRESS -o FILE"),
        ("s3://secret/rows.csv", "source: {s3: {url: ADDRESS}, format: csv}"),
        ("https://huggingface.co/datasets/lab/secret", "source: {hub: OWNER/NAME, revision: COMMIT, split: train}"),
        ("postgresql+psycopg://me:secret@host/db", "source: {sql: {url_env: VARIABLE, query: SELECT}}"),
        ("file:///secret.csv", "write the path alone"),
    ],
)
def test_an_address_in_the_place_of_a_file_is_told_with_what_reads_it(given: str, fix: str) -> None:
    with pytest.raises(NotFound, match=re.escape(fix)) as raised:
        find_rows_file(Path(given))
    assert "secret" not in str(raised.value)


def test_an_address_is_told_with_a_command_that_fetches_it(tmp_path: Path) -> None:
    class Rows(Quiet):
        def do_GET(self) -> None:  # noqa: N802 - as http.server calls it
            self.answer(200, f"{HEAD}a,bad\n".encode(), "text/csv")

    with serve(Rows) as address:
        with pytest.raises(NotFound, match="for example by `curl ") as raised:
            find_rows_file(Path(f"{address}/rows.csv"))
        command = re.search("`(curl .*?)`", str(raised.value))
        assert command
        done = command[1].replace("ADDRESS", f"{address}/rows.csv").replace("FILE", "rows.csv")
        subprocess.run(["bash", "-c", f"no_proxy='*' {done}"], cwd=tmp_path, check=True, capture_output=True)
    assert texts(tmp_path, path=str(find_rows_file(tmp_path / "rows.csv"))) == ["a"]


def test_a_folder_in_the_place_of_a_file_is_told_with_what_it_holds(tmp_path: Path) -> None:
    for name in ("notes.txt", "b.json", "a.csv.gz"):
        write(tmp_path / name, "x")
    with pytest.raises(NotFound, match=r"is a folder; name a file of rows, such as '.*/a\.csv\.gz'$"):
        find_rows_file(tmp_path)


def test_a_missing_file_of_a_list_is_named(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", f"{HEAD}a,bad\n")
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        source_key(declared(source={"path": [one, str(tmp_path / "none.csv")]}), tmp_path)


@pytest.mark.parametrize("name", ["rows[12].csv", "rows*.csv", "rows?.csv", "a::b.csv", "~x.csv", "$HOME.csv"])
def test_a_path_is_never_a_pattern(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for other in ("rows1.csv", "rows12.csv", "a.csv", "b.csv"):
        write(tmp_path / other, f"{HEAD}wrong,bad\n")
    write(tmp_path / name, f"{HEAD}right,bad\n")
    assert texts(tmp_path, path=str(tmp_path / name)) == ["right"]
    assert texts(tmp_path, path=[str(tmp_path / name)]) == ["right"]


# ---------------------------------------------------------------- patterns


def test_the_files_of_a_pattern_are_read_by_name(tmp_path: Path) -> None:
    for name in ("part-2.csv", "part-1.csv", "deep/part-3.csv", ".part-4.csv", "other.csv"):
        write(tmp_path / name, f"{HEAD}{name},bad\n")
    (tmp_path / "part-5.csv").mkdir()
    assert texts(tmp_path, glob=f"{tmp_path}/part-*.csv") == ["part-1.csv", "part-2.csv"]
    assert texts(tmp_path, glob=f"{tmp_path}/**/part-*.csv") == ["deep/part-3.csv", "part-1.csv", "part-2.csv"]


def test_a_pattern_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.source\.glob: .*: no file matches \(relative patterns start at "):
        source_key(declared(source={"path": None, "glob": str(tmp_path / "*.csv")}), tmp_path)


def test_the_key_follows_the_files_of_a_pattern(tmp_path: Path) -> None:
    task = declared(source={"path": None, "glob": str(tmp_path / "*.csv")})
    path = Path(write(tmp_path / "a.csv", f"{HEAD}a,bad\n"))
    key = source_key(task, tmp_path)
    os.utime(path, (1, 1))
    assert source_key(task, tmp_path) == key
    write(tmp_path / "b.csv", f"{HEAD}b,bad\n")
    assert source_key(task, tmp_path) != key
    assert describe_key(task) == "size and sha256 of each file"


# ---------------------------------------------------------------- compressed files


def packed(path: Path, body: bytes, kind: str) -> Path:
    with pa.CompressedOutputStream(str(path), kind) as file:
        file.write(body)
    return path


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_compressed_text_is_read(tmp_path: Path, form: str, kind: str) -> None:
    rows = [("one", "bad"), ("two", "good")]
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    if form != "jsonl":
        lines = [("\t" if form == "tsv" else ",").join(row) for row in [("text", "label"), *rows]]
    path = packed(tmp_path / f"rows.{form}.x", "\n".join(lines).encode(), kind)
    assert texts(tmp_path, path=str(path), format=form) == ["one", "two"]
    assert sorted(tmp_path.glob("home/.*")) == []


def test_the_key_of_a_compressed_file_is_of_its_own_bytes(tmp_path: Path) -> None:
    path = packed(tmp_path / "rows.csv.gz", b"text,label\na,bad\n", "gzip")
    key = source_key(declared(path), tmp_path)
    packed(path, b"text,label\nb,bad\n", "gzip")
    assert source_key(declared(path), tmp_path) != key


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_compressed_file_that_is_cut_off_is_told_by_name(tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path / "rows.csv.x", HEAD.encode() + os.urandom(9000).hex().encode() + b",bad\n", kind)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"rows\.csv\.x: .*the compressed file is damaged or cut off"):
        texts(tmp_path, path=str(path))


def test_a_row_of_a_compressed_file_is_told_by_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"text,score\na,1\n"))
    with pytest.raises(DataError, match=r"rows\.csv\.gz: no column 'label'"):
        texts(tmp_path, path=str(path))


def test_parquet_is_compressed_within(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "label": ["bad"]})
    pq.write_table(table, tmp_path / "rows.parquet", compression="gzip")
    assert texts(tmp_path, path=str(tmp_path / "rows.parquet"), format="parquet") == ["a"]


@pytest.mark.parametrize("read", [read_rows, source_key])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a" * 300, "cannot be read (File name too long); name a file that you may read"),
        ("~nobody-of-this-name/rows.csv", "no such file"),
        ("/proc/self/mem", "cannot be read (Input/output error)"),
        ("/dev/null", "is no regular file"),
        ("x\0y", "no such file"),
        ("", "is a folder"),
        ("loop", "is a link that leads to no file"),
        ("pipe", "is no regular file"),
    ],
)
def test_what_is_no_file_to_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str, read: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    with pytest.raises(DataError) as raised:
        read(declared(name), tmp_path / "home")
    assert what in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("there", "named"), [("re\u0301sume\u0301.csv", "r\u00e9sum\u00e9.csv"), ("Rows.CSV", "rows.csv")]
)
def test_a_file_whose_name_is_written_otherwise_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / there).write_text("text,label\na,bad\n")
    with pytest.raises(DataError, match="no such file; there is") as raised:
        read_rows(declared(named), tmp_path / "home")
    assert f"there is {there!a}, which is written otherwise" in str(raised.value)
    assert read_rows(declared(there), tmp_path / "home").labels == ["bad"]


@pytest.mark.parametrize(
    ("pattern", "told"), [("", "names a folder, whose files are those of FOLDER/"), ("/{a,b}.csv", "braces")]
)
def test_what_is_no_pattern_is_told(tmp_path: Path, pattern: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_rows(declared(source={"path": None, "glob": f"{tmp_path}{pattern}"}), tmp_path / "home")


def test_a_folder_or_pattern_as_a_path_is_told_with_what_reads_it(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,bad\n")
    for path in (tmp_path, tmp_path / "*.csv", f"{tmp_path}/a.csv,{tmp_path}/b.csv"):
        with pytest.raises(DataError, match="several files are a list, or a pattern as `glob`"):
            read_rows(declared(path), tmp_path / "home")
    assert read_rows(declared(source={"path": None, "glob": str(tmp_path / "*.csv")}), tmp_path / "home").labels == [
        "bad"
    ]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("$HOME/rows.csv", "no variable is put in: write the path itself"),
        ("${DATA}/rows.csv", "no variable is put in: write the path itself"),
        ("{{ data }}/rows.csv", "no variable is put in: write the path itself"),
        ("%DATA%/rows.csv", "no variable is put in: write the path itself"),
        (".\\rows.csv", "write / between folders"),
        ("dbfs:/a/rows.csv", "`path` names files of this machine: download what another place holds"),
        ("kaggle:user/data", "`path` names files of this machine: download what another place holds"),
    ],
)
def test_what_a_missing_path_may_mean_is_told(tmp_path: Path, path: str, told: str) -> None:
    with pytest.raises(DataError, match=f"no such file .*; {re.escape(told)}"):
        read_rows(declared(path), tmp_path / "home")


def test_a_name_that_looks_like_none_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("$rows.csv", "a:b.csv", "a\\b.csv", "{rows}.csv"):
        (tmp_path / name).write_text("text,label\na,bad\n")
        assert read_rows(declared(name), tmp_path / "home").labels == ["bad"]


def test_a_name_that_begins_like_a_home_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~rows.csv").write_text("text,label\na,bad\n")
    assert read_rows(declared("~rows.csv"), tmp_path / "home").labels == ["bad"]
    with pytest.raises(DataError, match=r"~nosuchuser/rows\.csv: no such file"):
        read_rows(declared("~nosuchuser/rows.csv"), tmp_path / "home")


def test_a_part_without_rows_adds_none(tmp_path: Path) -> None:
    """As Spark writes one for each empty partition, and an empty file that says that it is done."""
    write(tmp_path / "part-0.csv", f"{HEAD}a,bad\n")
    write(tmp_path / "part-1.csv", HEAD)
    write(tmp_path / "part-2.csv", "")
    write(tmp_path / "part-3.csv", f"{HEAD}b,bad\n")
    assert texts(tmp_path, glob=f"{tmp_path}/part-*") == ["a", "b"]
    pq.write_table(pa.table({"text": ["a"], "label": ["bad"]}), tmp_path / "1.parquet")
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), tmp_path / "2.parquet"
    )
    assert texts(tmp_path, glob=f"{tmp_path}/*.parquet", format="parquet") == ["a"]


def test_parts_without_any_rows_are_told(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.csv", HEAD), write(tmp_path / "b.csv", "")]
    with pytest.raises(DataError, match="there are no rows in any of its files"):
        texts(tmp_path, path=paths)
    for path in paths:
        with pytest.raises(DataError, match=r"there are no rows|the file is empty"):
            texts(tmp_path, path=path)


def test_an_advice_about_a_compressed_file_is_about_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(f"{HEAD}a,bad\n".encode("utf-16")))
    with pytest.raises(DataError, match=r"iconv -f UTF-16 -t UTF-8 FILE > NEW; FILE is the decompressed file$"):
        texts(tmp_path, path=str(path))
    plain = gzip.decompress(path.read_bytes()).decode("utf-16")
    path.write_bytes(gzip.compress(plain.encode()))
    assert texts(tmp_path, path=str(path)) == ["a"]


@pytest.mark.parametrize("name", ["rows.tar.gz", "rows.csv.TGZ", "rows.tar.bz2"])
def test_a_compressed_archive_is_told_with_one_command(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / name, "w:bz2" if name.endswith("bz2") else "w:gz") as archive:
        archive.add(write(tmp_path / "rows.csv", f"{HEAD}a,good\n"), "rows.csv")
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(DataError, match=r"the file is a compressed tar archive; unpack it by: tar -xf FILE$") as raised:
        tell_format(tmp_path / name)
    command = str(raised.value).partition("unpack it by: ")[2].replace("FILE", name)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert texts(tmp_path, path=str(tmp_path / "rows.csv")) == ["a"]


@pytest.mark.parametrize("name", ["rows", "rows.gzip", "rows.csv.backup"])
def test_the_format_of_a_compressed_file_is_asked_for_as_that_of_any_other(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(f"{HEAD}a,bad\n".encode()))
    with pytest.raises(DataError, match="its name does not tell its format; give --format csv, tsv, jsonl or parquet"):
        tell_format(tmp_path / name)
    assert texts(tmp_path, path=str(tmp_path / name)) == ["a"]
