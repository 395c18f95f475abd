"""JSON Lines as people's programs write them, and what is said of what is none."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptpipeline.data import json_lines
from ptpipeline.data.table import NoRows, Wanted
from ptpipeline.errors import DataError
from tests.data.tables import WANTED, load, pairs, read

GOOD = '{"text": "a", "label": "bad"}'


def told(folder: Path, body: bytes | str) -> str:
    with pytest.raises(DataError) as raised:
        load(folder, body, "jsonl")
    assert "\n" not in str(raised.value)
    return str(raised.value).partition("rows.jsonl: ")[2]


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("value", "cell", "kind"),
    [
        ("true", "true", "booleans"),
        ("false", "false", "booleans"),
        ("1", "1", "integers"),
        ("-7", "-7", "integers"),
        ("1.0", "1", "numbers"),
        ("1.50", "1.5", "numbers"),
        ("-0.0", "0", "numbers"),
        ("1e2", "100", "numbers"),
        ("1e400", "1e400", "numbers"),
        ("Infinity", "Infinity", "numbers"),
        ("12345678901234567890123", "12345678901234567890123", "integers"),
        ('"1.0"', "1.0", "text"),
        ('"true"', "true", "text"),
        ('""', "", "text"),
    ],
)
def test_a_label_is_written_as_a_person_would(tmp_path: Path, value: str, cell: str, kind: str) -> None:
    table = load(tmp_path, f'{{"text": "a", "label": {value}}}\n', "jsonl")
    assert (table.columns["label"].cells, table.columns["label"].kinds) == ([cell], (kind,))


@pytest.mark.parametrize("order", [1, -1])
def test_a_column_that_two_fields_name_is_text_if_one_of_them_needs_it(tmp_path: Path, order: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"both": 1}\n')
    wanted = [Wanted("both", "text", text=True), Wanted("both", "label")][::order]
    with pytest.raises(DataError, match=r"which data\.text names, holds integers; expected text"):
        json_lines.read_json_lines("rows.jsonl", path, wanted)


def test_what_is_missing_is_none_whatever_stands_for_it(tmp_path: Path) -> None:
    body = '{"text": "a", "label": null}\n{"text": "b"}\n{"text": "c", "label": NaN}\n{"text": null, "label": 1}\n'
    assert pairs(load(tmp_path, body, "jsonl")) == [("a", None), ("b", None), ("c", None), (None, "1")]


def test_columns_that_begin_in_a_later_row_are_known(tmp_path: Path) -> None:
    table = load(tmp_path, '{"text": "a"}\n{"label": "bad", "more": 1}\n', "jsonl")
    assert (table.names, pairs(table)) == (["text", "label", "more"], [("a", None), (None, "bad")])


def test_labels_of_several_types_are_read(tmp_path: Path) -> None:
    table = load(tmp_path, '{"text": "a", "label": 1}\n{"text": "b", "label": "0"}\n', "jsonl")
    assert (table.columns["label"].cells, table.columns["label"].kinds) == (["1", "0"], ("integers", "text"))


@pytest.mark.parametrize(
    "more",
    [
        '{"deep": [[1, {"x": null}]]}',
        "[1, 2]",
        "NaN",
        "-Infinity",
        "9" * 5000,
        "1" + "0" * 5000 + ".5",
        '"\\ud800"',
        '{"x": 1, "x": 2}',
        '"caf\udce9"',
    ],
)
def test_what_the_task_does_not_name_decides_nothing(tmp_path: Path, more: str) -> None:
    body = f'{{"text": "a", "label": "bad", "more": {more}}}\n{{"text": "b", "label": "good", "more": "text"}}\n'
    assert pairs(load(tmp_path, body.encode(errors="surrogateescape"), "jsonl")) == [("a", "bad"), ("b", "good")]


def test_a_name_twice_that_is_not_named_decides_nothing(tmp_path: Path) -> None:
    body = '{"text": "a", "more": 1, "label": "bad", "more": 2}\n'
    assert pairs(load(tmp_path, body, "jsonl")) == [("a", "bad")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\r\n \t\r\n"])
def test_lines_end_as_the_machine_that_wrote_them_ends_them(tmp_path: Path, end: str) -> None:
    table = load(tmp_path, f"\ufeff{GOOD}{end}{GOOD}{end}{GOOD}", "jsonl")
    assert pairs(table) == [("a", "bad")] * 3


def test_files_written_behind_each_other_are_read(tmp_path: Path) -> None:
    assert pairs(load(tmp_path, f"\ufeff{GOOD}\n\ufeff{GOOD}\n", "jsonl")) == [("a", "bad")] * 2


def test_a_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x7f"
    assert pairs(load(tmp_path, f'{{"text": "{text}", "label": "bad"}}\n', "jsonl")) == [(text, "bad")]


def test_the_line_of_a_row_is_that_of_the_file(tmp_path: Path) -> None:
    table = load(tmp_path, f"\n{GOOD}\r\n\r\n\n{GOOD}\n", "jsonl")
    assert table.places.describe([1, 2]) == "lines 2, 5"


def test_half_a_surrogate_pair_and_a_byte_that_is_not_utf8_are_kept_apart_from_valid_text(tmp_path: Path) -> None:
    texts = [rb"\ud83d", b"\xff", rb"\ud83d\ude00" + "\ufffd".encode()]
    body = b"\n".join(b'{"text": "%s", "label": "1"}' % text for text in texts)
    assert [text for text, _ in pairs(load(tmp_path, body, "jsonl"))] == ["\ud83d", "\udcff", "\U0001f600\ufffd"]


# ---------------------------------------------------------------- what is told


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (f'{GOOD}\n{{"text": "b", "label"}}\n', "not readable as jsonl: line 2, column 22: Expecting ':' delimiter"),
        (f'{GOOD}\n\n{{"text": "b", \n', "not readable as jsonl: line 3, column"),
        (f"{GOOD}\n{GOOD}{GOOD}\n", "not readable as jsonl: line 2, column 30: Extra data"),
        (f"{GOOD}\n['b']\n", "not readable as jsonl: line 2, column 2: Expecting value"),
        (f"{GOOD}\n3\n", "not readable as jsonl: line 2 is not a JSON object"),
        (f"{GOOD}\n{'[' * 100_000}\n", "not readable as jsonl: line 2 is nested too deep"),
        (
            f"{GOOD}\n" + '{"text": "a\tb", "label": "bad"}\n',
            "not readable as jsonl: line 2, column 12: Invalid control",
        ),
        (
            "text,label\na,bad\n",
            "not readable as jsonl: line 1 is not a JSON object; if the file is a table of text, set "
            "data.source.format: csv",
        ),
        (
            f'{GOOD}\n{{"text": "b", "label": [1]}}\n',
            "line 2: column 'label', which data.label names, holds lists; expected text",
        ),
        (
            f'{GOOD}\n{{"text": {{"en": "b"}}, "label": 1}}\n',
            "line 2: column 'text', which data.text names, holds objects; expected text",
        ),
        (
            f'{GOOD}\n{{"text": 12, "label": 1}}\n',
            "line 2: column 'text', which data.text names, holds integers; expected text",
        ),
        (
            f'{GOOD}\n{{"text": "b", "label": 1, "text": "c"}}\n',
            "line 2 names 'text' twice, which data.text names; leave one of them out",
        ),
        ('{"review": "a", "label": 1}\n', "no column 'text', which data.text names; the columns are review, label"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(tmp_path: Path, body: str, sentence: str) -> None:
    assert told(tmp_path, body).startswith(sentence)


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_an_array_is_told_with_a_command_that_works(tmp_path: Path, indent: int | None) -> None:
    rows = [{"text": "a \u00e9", "label": "bad"}, {"text": "b", "label": "good"}]
    found = told(tmp_path, json.dumps(rows, indent=indent))
    command = re.search(r"for example by: (python .*)$", found.partition("; give")[0])
    assert command, found
    done = command[1].replace("python", "python3", 1).replace("FILE", "rows.jsonl").replace("NEW", "new")
    subprocess.run(["bash", "-c", done], cwd=tmp_path, check=True)
    assert pairs(load(tmp_path, (tmp_path / "new.jsonl").read_bytes(), "jsonl")) == [("a \u00e9", "bad"), ("b", "good")]


@pytest.mark.parametrize(
    ("rest", "line"),
    [
        ("{'text': 'a'}\n]", "3"),
        ("{text: 1}\n]", "3"),
        ("]\n]", "[23]"),  # the comma before it, as Python 3.13 tells it
        ('{"text": "a"}\n', "4"),
    ],
)
def test_an_array_that_is_no_json_is_told_with_its_place(tmp_path: Path, rest: str, line: str) -> None:
    said = told(tmp_path, f"[\n{GOOD},\n{rest}")
    assert re.match(
        rf"not readable as jsonl: the file is one JSON array, but no valid JSON: line {line}, column \d+: ", said
    )
    assert said.endswith("; correct it there, then write one object a line")


@pytest.mark.parametrize("lines", [True, False])
def test_lists_as_rows_are_told_with_a_command_that_names_their_values(tmp_path: Path, lines: bool) -> None:
    rows = [[row["text"], row["label"]] for row in RECORDS]
    body = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    command = re.search(r"by: (python -c .*)$", told(tmp_path, body))
    assert command is not None
    done = command[1].replace("python", sys.executable, 1).replace("FILE", "rows.jsonl")
    subprocess.run(["bash", "-c", done], cwd=tmp_path, check=True)
    found = pairs(load(tmp_path, (tmp_path / "NEW.jsonl").read_bytes(), "jsonl"))
    assert found == [(row["text"], row["label"]) for row in RECORDS]


def test_a_list_above_other_lines_is_told_as_a_line(tmp_path: Path) -> None:
    body = f"[{GOOD}]\n{GOOD}\n\n[{GOOD}, {GOOD}]\n"
    assert told(tmp_path, body).startswith(
        "not readable as jsonl: line 1 is a list of objects; write one object a line"
    )
    assert follow(tmp_path, body) == [("a", "bad")] * 4
    assert told(tmp_path, f"{GOOD}\n[1, 2]\n") == "not readable as jsonl: line 2 is not a JSON object"


def test_an_object_over_several_lines_is_told(tmp_path: Path) -> None:
    body = json.dumps({"text": "a", "label": "bad"}, indent=2)
    assert "line 1 ends within an object; write each object in one line" in told(tmp_path, body)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE", 40)
    assert (
        told(tmp_path, f'{GOOD}\n{{"text": "{"a" * 50}"}}\n')
        == "line 2 has more than 40 characters; expected one object"
    )


# ---------------------------------------------------------------- what programs write

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["", "\u2028", "\n", "\r", "\\", '"', "\ufffd"]
)
LABELS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.sampled_from(["1", "a", "true", ""])
FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(label: Any) -> str | None:
    return label if label is None or isinstance(label, str) else json.dumps(label)


@FEW
@given(st.lists(st.tuples(TEXTS, LABELS), min_size=1, max_size=6), st.booleans())
def test_what_the_json_module_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, Any]], escaped: bool) -> None:
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=escaped) for text, label in rows]
    assert pairs(load(tmp_path, "\n".join(lines), "jsonl")) == [(text, written(label)) for text, label in rows]


@FEW
@given(st.lists(st.tuples(TEXTS, st.none() | st.integers(-(2**50), 2**50)), min_size=1, max_size=6), st.booleans())
def test_what_pandas_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, Any]], escaped: bool) -> None:
    frame = pd.DataFrame({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    body = frame.to_json(orient="records", lines=True, force_ascii=escaped)
    assert pairs(load(tmp_path, body, "jsonl")) == [(text, written(label)) for text, label in rows]


@FEW
@given(st.lists(st.tuples(TEXTS, st.none() | st.integers(-(2**50), 2**50)), min_size=1, max_size=6))
def test_what_polars_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, Any]]) -> None:
    frame = pl.DataFrame(rows, schema={"text": pl.String, "label": pl.Int64}, orient="row")
    frame.write_ndjson(tmp_path / "polars.jsonl")
    assert pairs(read(tmp_path / "polars.jsonl", "jsonl")) == [(text, written(label)) for text, label in rows]


def test_a_column_that_two_fields_name_is_read_once(tmp_path: Path) -> None:
    both = (Wanted("text", "text", text=True), Wanted("label", "label"), Wanted("label", "slices"))
    assert pairs(load(tmp_path, f"{GOOD}\n", "jsonl", both)) == [("a", "bad")]
    with pytest.raises(DataError, match=r"column 'text', which data\.text names, holds integers"):
        load(tmp_path, '{"text": 1, "label": 2}\n', "jsonl", (Wanted("text", "slices"), *both))


# ---------------------------------------------------------------- JSON that is one row a line in no way

FRAME = pd.DataFrame({"text": ["a", "b"], "label": ["bad", "good"]})
OBJECT = "the file is one JSON object, and not one for each row; write one object a line"


@pytest.mark.parametrize(
    "body",
    [
        FRAME.to_json(),
        FRAME.to_json(orient="split"),
        FRAME.to_json(orient="table"),
        FRAME.to_json(orient="index"),
        json.dumps({"data": FRAME.to_dict("records")}),
        json.dumps({"meta": {"n": 2}, "rows": FRAME.to_dict("list")}) + "\n\n",
    ],
)
def test_an_object_that_holds_all_rows_is_told(tmp_path: Path, body: str) -> None:
    assert OBJECT in told(tmp_path, body)
    assert pairs(load(tmp_path, FRAME.to_json(orient="records", lines=True), "jsonl")) == [("a", "bad"), ("b", "good")]


LISTS = [["a", "bad"], ["b", "good"], ["c", "bad"]]


@pytest.mark.parametrize(
    "body",
    [
        {"train": LISTS, "test": LISTS[:1]},  # as CLINC150 is given
        {"meta": {"view": {"columns": [{"name": "text"}, {"name": "label"}]}}, "data": LISTS},  # as Socrata exports it
        {"columns": [{"name": "text"}, {"name": "label"}], "data": LISTS},
        {"columns": ["text", "label"], "data": LISTS},
        {"text": ["a", "b", "c"], "label": ["bad", "good", "bad"], "tokens": [[1], [], [2]]},
    ],
)
def test_lists_within_an_object_are_told_with_a_command_that_makes_rows_of_the_longest(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    assert follow(tmp_path, json.dumps(body)) == [(text, label) for text, label in LISTS]


def test_an_array_of_nothing_has_no_rows(tmp_path: Path) -> None:
    for body in ("[]", "[ ]\n\n", "\ufeff[]"):
        with pytest.raises(NoRows, match="there are no rows"):
            load(tmp_path, body, "jsonl")
    assert "the lines are JSON lists, and no objects" in told(tmp_path, f"[]\n\n{GOOD}\n")


@pytest.mark.parametrize("texts", ['["a b", "it\'s"]', '[\n"a b",\n"it\'s"\n]', '"a b"\n"it\'s"\n'])
def test_texts_alone_are_told_with_a_command_that_works(tmp_path: Path, texts: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(texts)
    with pytest.raises(DataError, match=r"JSON (array of )?texts.*; write each text as an object by: ") as raised:
        read(path, "jsonl", WANTED[:1])
    command = str(raised.value).partition("object by: ")[2].replace("python", sys.executable, 1)
    subprocess.run(["bash", "-c", command.replace("FILE", str(path))], cwd=tmp_path, check=True)
    assert read(tmp_path / "NEW.jsonl", "jsonl", WANTED[:1]).columns["text"].cells == ["a b", "it's"]


def test_an_object_within_an_object_is_told_without_a_command(tmp_path: Path) -> None:
    """As a server says what is wrong."""
    assert told(tmp_path, '{"error": {"code": 401, "message": "no"}}').endswith(f"{OBJECT}")


def test_one_row_is_one_row(tmp_path: Path) -> None:
    assert pairs(load(tmp_path, '{"text": "a", "label": "bad", "more": {"x": [1]}}\n', "jsonl")) == [("a", "bad")]


@pytest.mark.parametrize("end", ["]", "]\n", "\n]\n", "\n]\n\n"])
@pytest.mark.parametrize("begin", ["[", "[\n", " [ "])
def test_an_array_of_an_object_a_line_is_told(tmp_path: Path, begin: str, end: str) -> None:
    assert "the file is one JSON array" in told(tmp_path, f"{begin}{GOOD},\n{GOOD},\n{GOOD}{end}")


def test_commas_between_the_lines_are_told_with_a_command_that_works(tmp_path: Path) -> None:
    found = told(tmp_path, f"{GOOD},\n{GOOD},\n{GOOD}\n")
    command = re.search(r"for example by: (sed .*)$", found.partition("; give")[0])
    assert command, found
    done = command[1].replace("FILE", "rows.jsonl").replace("NEW", "new.jsonl")
    subprocess.run(["bash", "-c", done], cwd=tmp_path, check=True)
    assert pairs(load(tmp_path, (tmp_path / "new.jsonl").read_bytes(), "jsonl")) == [("a", "bad")] * 3


def follow(folder: Path, body: str) -> list[tuple[str | None, str | None]]:
    """The rows of the file that the command writes which a message tells of this one."""
    command = re.search(r"by: ((?:python -c|sed) .*)$", told(folder, body))
    assert command is not None
    done = command[1].replace("python", sys.executable, 1).replace("FILE", "rows.jsonl")
    subprocess.run(["bash", "-c", done], cwd=folder, check=True)
    return pairs(load(folder, (folder / "NEW.jsonl").read_bytes(), "jsonl"))


@pytest.mark.parametrize(
    ("begin", "end"),
    [("callback(", ");"), ("window.YTD.tweets.part0 = ", "\n"), ("var rows=", ";\n"), (")]}'\n", ""), ("for(;;);", "")],
)
def test_json_within_a_script_is_told_with_a_command_that_takes_it_out(tmp_path: Path, begin: str, end: str) -> None:
    rows = [{"text": "a", "label": "bad"}, {"text": "it's", "label": "good"}]
    body = f"{begin}{json.dumps(rows, indent=1)}{end}"
    assert "the file is a script that holds JSON" in told(tmp_path, body)
    assert follow(tmp_path, body) == [("a", "bad"), ("it's", "good")]


def test_text_in_front_of_what_is_no_json_is_no_script(tmp_path: Path) -> None:
    assert "set data.source.format: csv" in told(tmp_path, "text, label\n[a], b\n")


def test_objects_behind_each_other_in_a_line_are_told_with_a_command_that_works(tmp_path: Path) -> None:
    said = told(tmp_path, GOOD * 3)
    assert "line 1, column 30: Extra data; the line holds more than one object; write each object in one line" in said
    assert follow(tmp_path, GOOD * 3) == [("a", "bad")] * 3


@pytest.mark.parametrize("begin", ["data: ", "rows.jsonl:", "12:", "web_1  | ", "2024-05-01T10:00:00Z INFO [x] "])
def test_what_stands_in_front_of_objects_is_told_with_a_command_that_works(tmp_path: Path, begin: str) -> None:
    """As grep, the logs of containers and event streams write it."""
    body = f"{begin}{GOOD}\n\n" * 2
    assert "line 1 has something in front of its object" in told(tmp_path, body)
    assert follow(tmp_path, body) == [("a", "bad")] * 2


def test_a_sequence_of_json_texts_is_read(tmp_path: Path) -> None:
    """RFC 7464, as `jq --seq` writes it: each text stands behind a record separator."""
    assert pairs(load(tmp_path, f"\x1e{GOOD}\n\x1e{GOOD}\n", "jsonl")) == [("a", "bad")] * 2


def test_the_end_of_file_of_dos_is_no_row(tmp_path: Path) -> None:
    assert pairs(load(tmp_path, f"{GOOD}\r\n{GOOD}\r\n\x1a", "jsonl")) == [("a", "bad")] * 2


def test_marks_at_the_begin_are_no_part_of_the_first_row(tmp_path: Path) -> None:
    assert pairs(load(tmp_path, f"\ufeff\ufeff{GOOD}\n", "jsonl")) == [("a", "bad")]


def test_a_comment_is_told(tmp_path: Path) -> None:
    for comment in ("// rows", " /* rows */", "# rows"):
        assert told(tmp_path, f"{comment}\n{GOOD}\n") == (
            "not readable as jsonl: line 1 begins a comment, which JSON has not: delete it"
        )


RECORDS = [{"text": "it's \u201cgood\u201d", "label": "1"}, {"text": "bad", "label": "0"}]


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"version": "2", "data": RECORDS}),
        json.dumps({"tickets \u7968": RECORDS, "users": {"id": [1]}, "count": 2}),
        json.dumps({"schema": {"fields": ["text"]}, "data": RECORDS}),  # pandas' table
        json.dumps({"columns": ["text", "label"], "data": [[row["text"], row["label"]] for row in RECORDS]}),
        json.dumps(
            {"rows": [[row["text"], row["label"]] for row in RECORDS], "columns": ["text", "label"], "ok": True}
        ),
        json.dumps({"took": 1, "hits": {"total": 2, "hits": RECORDS}}),  # Elasticsearch, and answers of GraphQL
        json.dumps({"features": [{"name": "text"}], "rows": RECORDS}),
        json.dumps({f"-N{n}": row for n, row in enumerate(RECORDS)}),  # Firebase
        json.dumps(dict(enumerate(RECORDS))),  # pandas' index
        json.dumps({name: [row[name] for row in RECORDS] for name in ("text", "label")}),
        json.dumps({name: {str(n): row[name] for n, row in enumerate(RECORDS)} for name in ("text", "label")}),
    ],
)
def test_an_object_of_rows_is_told_with_a_command_that_works(tmp_path: Path, body: str) -> None:
    command = re.search(r"for example .*by: (python -c .*)$", told(tmp_path, body))
    assert command is not None
    done = command[1].replace("python", sys.executable, 1).replace("FILE", "rows.jsonl")
    subprocess.run(["bash", "-c", done], cwd=tmp_path, check=True)
    found = pairs(load(tmp_path, (tmp_path / "NEW.jsonl").read_bytes(), "jsonl"))
    assert found == [(row["text"], row["label"]) for row in RECORDS]


def test_questions_about_paragraphs_are_told_with_a_command_that_makes_a_row_of_each(tmp_path: Path) -> None:
    answers = [{"text": "it's Paris", "answer_start": 3}, {"text": "Paris", "answer_start": 8}]
    asked = [{"id": "1", "question": "where?", "answers": answers}, {"id": "2", "question": "who?", "answers": []}]
    article = {"title": "A", "paragraphs": [{"context": "one", "qas": asked}, {"context": "two", "qas": asked[:1]}]}
    command = re.search(r"by: (python -c .*)$", told(tmp_path, json.dumps({"version": "2.0", "data": [article] * 2})))
    assert command is not None
    done = command[1].replace("python", sys.executable, 1).replace("FILE", "rows.jsonl")
    subprocess.run(["bash", "-c", done], cwd=tmp_path, check=True)
    rows = list(map(json.loads, (tmp_path / "NEW.jsonl").read_text().splitlines()))
    assert [(row["title"], row["context"], row["question"], row["answer"]) for row in rows] == [
        ("A", "one", "where?", "it's Paris"),
        ("A", "one", "who?", None),
        ("A", "two", "where?", "it's Paris"),
    ] * 2


def test_objects_as_python_prints_them_are_told_with_a_command_that_works(tmp_path: Path) -> None:
    rows = [{**row, "score": None} for row in RECORDS[::-1]]
    command = re.search(r"by: (python -c .*)$", told(tmp_path, "\n".join(map(repr, rows))))
    assert command is not None
    done = command[1].replace("python", sys.executable, 1).replace("FILE", "rows.jsonl")
    subprocess.run(["bash", "-c", done], cwd=tmp_path, check=True)
    found = pairs(load(tmp_path, (tmp_path / "NEW.jsonl").read_bytes(), "jsonl"))
    assert found == [(row["text"], row["label"]) for row in rows]


def test_objects_over_several_lines_are_told_with_a_command_that_works(tmp_path: Path) -> None:
    command = re.search(r"by: (python -c .*)$", told(tmp_path, "\n".join(json.dumps(row, indent=2) for row in RECORDS)))
    assert command is not None
    done = command[1].replace("python", sys.executable, 1).replace("FILE", "rows.jsonl")
    subprocess.run(["bash", "-c", done], cwd=tmp_path, check=True)
    found = pairs(load(tmp_path, (tmp_path / "NEW.jsonl").read_bytes(), "jsonl"))
    assert found == [(row["text"], row["label"]) for row in RECORDS]


def test_objects_within_texts_are_told_with_a_command_that_takes_them_out(tmp_path: Path) -> None:
    """As a queue writes them that encodes what is JSON already."""
    body = "".join(f"{json.dumps(json.dumps({'text': text, 'label': 'bad'}))}\n" for text in ("a é", "it's"))
    assert "the lines are JSON texts that hold objects, and no objects; take" in told(tmp_path, body)
    assert follow(tmp_path, body) == [("a é", "bad"), ("it's", "bad")]


def test_texts_in_lists_by_their_labels_are_told_with_a_command_that_makes_rows(tmp_path: Path) -> None:
    body = json.dumps({"bad": ["a", "it's"], "good": ["b"]})
    assert "if its names are the labels of the texts" in told(tmp_path, body)
    assert follow(tmp_path, body) == [("a", "bad"), ("it's", "bad"), ("b", "good")]
