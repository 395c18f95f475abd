"""XML and YAML are told as such, with a command that writes their rows as JSON Lines; tables that hold some are not."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ptpipeline.data.local import tell_format
from ptpipeline.data.markup import find_markup
from ptpipeline.errors import DataError
from tests.data.tables import load, pairs

ROWS = [("a é & b", "bad"), ("it's <good>", "007"), ("x", "yes")]
PROLOG = "<?xml version='1.0' encoding='UTF-8'?>\n"


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def elements(row: str) -> str:
    return "".join(row.format(escape(text), label) for text, label in ROWS)


FLAT = "<rows>\n" + elements('<row id="1"><text>{}</text><label>{}</label></row>') + "\n</rows>\n"
NAMED = "<d xmlns='urn:x'><n>2</n><rows>" + elements('<row label="{1}"><text>{0}</text></row>') + "</rows></d>"
GROUPS = "<!-- a -->\n<d><part>" + elements('<row label="{1}">{0}</row>') + "</part><part></part></d>"
MIXED = "<d>" + elements("<row><text><b>{0:.1}</b>{0}</text><label>{1}</label></row>") + "</d>"
LIST = "# rows\n" + "".join(f"- text: {json.dumps(text)}\n  label: {label}\n" for text, label in ROWS)
BELOW = "version: '2'\nrows:\n" + "".join(f"- label: {label}\n  text: {json.dumps(text)}\n" for text, label in ROWS)


def follow(folder: Path, told: str) -> list[tuple[str | None, str | None]]:
    """Run the command that the message names, and return the rows of what it writes."""
    command = told[told.index("python -c") : told.index("> NEW.jsonl") + len("> NEW.jsonl")]
    done = command.replace("python", sys.executable, 1)
    subprocess.run(["bash", "-c", done], cwd=folder, check=True)
    return pairs(load(folder, (folder / "NEW.jsonl").read_bytes(), "jsonl"))


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize(
    "body", [FLAT, PROLOG + FLAT, NAMED, PROLOG + GROUPS], ids=["flat", "prolog", "named", "groups"]
)
def test_xml_is_told_with_a_command_that_writes_its_rows(tmp_path: Path, body: str, form: str) -> None:
    (tmp_path / "FILE").write_text(body, encoding="utf-8")
    with pytest.raises(DataError, match=f"not readable as {form}: the file is XML; if its elements are rows") as raised:
        load(tmp_path, body, form)
    assert follow(tmp_path, str(raised.value)) == ROWS


def test_text_among_elements_stays_whole(tmp_path: Path) -> None:
    (tmp_path / "FILE").write_text(MIXED, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        load(tmp_path, MIXED)
    assert follow(tmp_path, str(raised.value)) == [(text[0] + text, label) for text, label in ROWS]


@pytest.mark.parametrize(("name", "body"), [("FILE.yaml", LIST), ("FILE.yml", BELOW), ("FILE.xml", FLAT)])
def test_a_name_that_tells_no_format_is_told_with_a_command_that_works(tmp_path: Path, name: str, body: str) -> None:
    (tmp_path / name).write_text(body, encoding="utf-8")
    with pytest.raises(DataError, match=f"the file is {'XML' if name == 'FILE.xml' else 'YAML'}; ") as raised:
        tell_format(tmp_path / name)
    assert follow(tmp_path, str(raised.value).replace(" FILE ", f" {name} ")) == ROWS


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_a_list_of_yaml_is_told_whatever_its_name(tmp_path: Path, form: str) -> None:
    with pytest.raises(DataError, match=f"not readable as {form}: the file is YAML; write its rows as JSON Lines by"):
        load(tmp_path, LIST, form)


@pytest.mark.parametrize(
    "text",
    [
        "<p><b>good</b></p>",
        "- ok: fine",
        "<rows> <a>",
        "--- a",
        "<?php",
        "- a: b\n- c: d",
        "<table><tr>",
        "-- a note",
        "INSERT INTO a VALUES (1);",
    ],
)
def test_texts_of_markup_are_read(tmp_path: Path, text: str) -> None:
    body = f'"{text}","bad"\n"<p>{text}</p>","good"\n'
    assert pairs(load(tmp_path, body, columns=["text", "label"]))[0] == (text, "bad")


@pytest.mark.parametrize("text", ["create table a (b int);", "CREATE TABLE a (b int);", "SELECT 1;"])
def test_texts_of_sql_are_read(tmp_path: Path, text: str) -> None:
    assert pairs(load(tmp_path, f"{text}\tbad\n", "tsv", columns=["text", "label"])) == [(text, "bad")]


@pytest.mark.parametrize(
    "begin", ["/**/", "<!---->", "/*", "create ", "create table ", "set x;", "--\n", "\n", "- a:\n"]
)
def test_a_beginning_that_repeats_is_looked_at_in_no_time(begin: str) -> None:
    """Each of these could be parted in 2^1000 ways, which would take for ever."""
    assert find_markup(begin * 1000 + "x", "x") is None


@pytest.mark.parametrize("quote", ["'", '"'])
def test_arff_is_told_with_a_command_that_writes_its_rows(tmp_path: Path, quote: str) -> None:
    names = f"@attribute text string\n@ATTRIBUTE {quote}label{quote} {{bad, good}}\n"
    rows = f"{quote}a \\{quote}b\\{quote}, c{quote}, bad\n% no row\n{quote}d{quote},good\n"
    body = f"% of Weka\n\n@RELATION mood\n{names}\n@DATA\n{rows}"
    (tmp_path / "FILE").write_text(body)
    with pytest.raises(DataError, match="the file is ARFF, as Weka writes it; write its rows as csv by:") as raised:
        load(tmp_path, body)
    command = str(raised.value).partition(" by: ")[2].replace("python", sys.executable, 1)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert pairs(load(tmp_path, (tmp_path / "NEW.csv").read_bytes())) == [
        (f"a {quote}b{quote}, c", "bad"),
        ("d", "good"),
    ]


@pytest.mark.parametrize(
    "begin", ["<table>", "<!DOCTYPE html>\n<html><body><table><tr><td>x</td></tr></table>\n<table border=1>"]
)
def test_a_table_of_html_is_told_with_a_command_that_writes_it(tmp_path: Path, begin: str) -> None:
    """As programs write it that export to Excel; the largest one counts."""
    cells = "".join(f"<tr><td>{escape(text)}</td><td>{label}</td></tr>\n" for text, label in [*ROWS, ("NA", "n/a")])
    (tmp_path / "FILE").write_text(f"{begin}<tr><th>text</th><th>label</th></tr>{cells}</table>", encoding="utf-8")
    (tmp_path / "rows.xls").write_bytes((tmp_path / "FILE").read_bytes())
    with pytest.raises(DataError, match="the file is a page of HTML; download the rows themselves, or write") as raised:
        tell_format(tmp_path / "rows.xls")
    command = str(raised.value).partition(" by: ")[2].partition(", which needs lxml")[0]
    subprocess.run(["bash", "-c", command.replace("python", sys.executable, 1)], cwd=tmp_path, check=True)
    assert pairs(load(tmp_path, (tmp_path / "NEW.csv").read_bytes())) == [*ROWS, ("NA", "n/a")]


def test_a_page_without_a_table_is_to_be_downloaded_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the file is a page of HTML; download the rows themselves$"):
        load(tmp_path, "<!DOCTYPE html><html><body>Sign in</body></html>")


def test_a_dump_of_sql_is_told_with_a_command_that_writes_its_rows(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "rows.db") as database:
        database.execute("CREATE TABLE rows (text TEXT, label TEXT)")
        database.executemany("INSERT INTO rows VALUES (?, ?)", ROWS)
        (tmp_path / "FILE").write_text("\n".join(database.iterdump()) + "\n", encoding="utf-8")
    database.close()
    with pytest.raises(DataError, match="the file is a dump of SQL; load it into a database") as raised:
        load(tmp_path, (tmp_path / "FILE").read_bytes())
    command = str(raised.value).partition(" by: ")[2].replace("TABLE", "rows")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert pairs(load(tmp_path, (tmp_path / "NEW.csv").read_bytes())) == ROWS
