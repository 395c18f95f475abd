"""What is told of a file that `ptp init` can read: further lines of names, other texts, labels and values in lists."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from flows.on_demand.doubts import advise_missing, find_doubts
from flows.on_demand.draft import Choice, find_facts
from flows.on_demand.sketch import guess_label, guess_pair, guess_text, look
from ptpipeline.data.sources import read_rows
from ptpipeline.data.validation import check_rows
from ptpipeline.errors import DataError
from tests.data.declared import declared
from tests.tiny import sentences

ROWS = sentences(60)


def csv(folder: Path, *begin: str, rows: list[str]) -> Path:
    path = folder / "rows.csv"
    path.write_text("".join(f"{line}\n" for line in [*begin, *rows]))
    return path


def doubts(path: Path, text: str = "text", label: str = "label") -> list[str]:
    sketch, choice = look(path, None, path.parent), Choice("mood", "tiny", text, label)
    return list(find_doubts(sketch, choice, find_facts(sketch, choice, path.parent)))


SURVEY = [f"{number},05/01/2024,{text},{label}" for number, (text, label) in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("begin", "where"),
    [
        (["id,day,text,label", ",,Open-Ended Response,Response"], "line 2 reads like a second line of names"),
        (["id,day,text,label", "id,day,What do you think?,How good?"], "line 2 reads like a second line of names"),
        (
            ["id,day,text,label", "id,Start day,Text,Label", '"{""ImportId"":""1""}","{""ImportId"":""2""}",a,b'],
            "lines 2, 3 read like further lines of names",
        ),
        (["id,day,text,label,", ",,Open-Ended Response,positive,neither"], "line 2 reads like a second line of names"),
    ],
)
def test_further_lines_of_names_are_told_and_without_them_it_is_drafted(
    tmp_path: Path, begin: list[str], where: str
) -> None:
    with pytest.raises(DataError, match=f"{where}, by the columns id, day, which hold other things in all rows below"):
        doubts(csv(tmp_path, *begin, rows=SURVEY))
    assert doubts(csv(tmp_path, begin[0], rows=SURVEY)) == []


@pytest.mark.parametrize(
    "first",
    [
        "0,05/01/2024,a good film,rare",  # a rare label
        ",,a good film,positive",  # the first of a series has none before it
        "NA,NA,a good film,positive",
        "0,,a good film,",
        "0,,a good film,positive",
        "0,never,a good film,rare",
    ],
)
def test_a_first_row_is_a_row_even_if_it_is_odd(tmp_path: Path, first: str) -> None:
    path = csv(tmp_path, "id,day,text,label", first, rows=SURVEY)
    if first.endswith("never,a good film,rare"):  # but for one that nothing tells from a line of names
        with pytest.raises(DataError, match="or put it further down if it is a row"):
            doubts(path)
    else:
        assert all("no other row has the label of line 2, such as 'rare'" in doubt for doubt in doubts(path))


@pytest.mark.parametrize("line", ["String,String", "----,-----", "a good film,postive"])
def test_a_label_of_a_single_row_is_told(tmp_path: Path, line: str) -> None:
    (doubt,) = doubts(csv(tmp_path, "text,label", line, rows=[f"{text},{label}" for text, label in ROWS]))
    label = line.partition(",")[2]
    assert doubt.startswith(f"labels: no other row has the label of line 2, such as '{label}'; correct it if it is")


def test_a_text_beside_another_that_some_rows_lack_is_told(tmp_path: Path) -> None:
    rows = [f"name it,{text if number % 3 else ''},{label}" for number, (text, label) in enumerate(ROWS)]
    path = csv(tmp_path, "instruction,input,label", rows=rows)
    sketch, choice = look(path, None, tmp_path), Choice("mood", "tiny", "instruction", "label", "input")
    assert guess_pair(sketch) == ("instruction", "input")
    found = list(find_doubts(sketch, choice, find_facts(sketch, choice, tmp_path)))
    assert found[1] == (
        "text: 20 rows have no 'input', and `ptp ingest` leaves them out; if they need none, set "
        "data.checks.empty_text to off"
    )
    words = {"positive": " bad", "negative": " good"}
    for checks, left in (({}, 40), ({"empty_text": "off"}, 60)):  # without the advice, and with it
        few = {"duplicate": "off", "conflicting_label": "off", "rows_per_label": "off", **checks}
        made = declared(path, text=None, template="{instruction}\n{input}\n", checks=few)
        task = made.model_copy(update={"labels": words})
        assert len(check_rows(task, read_rows(task, tmp_path)).rows) == left


def test_labels_that_hardly_repeat_are_not_told_one_by_one(tmp_path: Path) -> None:
    rows = [f"{text},{number}" for number, (text, _) in enumerate(ROWS)]
    assert doubts(csv(tmp_path, "text,label", rows=rows)) == []


def test_names_of_rows_are_no_texts_if_these_may_stand_in_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": f"a{n}", "question": {"stem": text}, "answerKey": label} for n, (text, label) in enumerate(ROWS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert guess_text(look(path, None, tmp_path)) is None
    assert "if it stands within question, write each value" in advise_missing(look(path, None, tmp_path))


@pytest.mark.parametrize("cells", [["https://a.b/c", "x@y.z"], ["ACGT", "GGTA"]])
def test_texts_without_words_are_guessed_if_there_are_no_others(tmp_path: Path, cells: list[str]) -> None:
    rows = [f"{cells[number % 2]}{number},{label}" for number, (_, label) in enumerate(ROWS)]
    assert guess_text(look(csv(tmp_path, "it,label", rows=rows), None, tmp_path)) == "it"


def test_times_are_no_texts(tmp_path: Path) -> None:
    rows = [f"2024/05/01 10:00:{n:02} AM GMT+9,{text},{label}" for n, (text, label) in enumerate(ROWS)]
    path = csv(tmp_path, "Timestamp,said,label", rows=rows)
    assert guess_text(look(path, None, tmp_path)) == "said"
    assert doubts(path, text="said") == []


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("premise", "write {premise} beside {text} in the template"),
        ("Sentence 1", "write {more} beside {text} in the template, and data.fields: {more: 'Sentence 1'}"),
    ],
)
def test_another_column_of_texts_is_told_with_how_to_name_it(tmp_path: Path, column: str, told: str) -> None:
    rows = [f"{text},the {text} as they said,{label}" for text, label in ROWS]
    [doubt] = doubts(csv(tmp_path, f"text,{column},label", rows=rows))
    assert doubt.endswith(told)


@pytest.mark.parametrize(("one", "two"), [("positive", "p\u043esitive"), ("\u0391", "A"), ("caf\u00e9", "cafe\u0301")])
def test_labels_of_other_letters_that_look_alike_are_told(tmp_path: Path, one: str, two: str) -> None:
    rows = [f"{text},{two if number % 9 == 0 else one}" for number, (text, _) in enumerate(ROWS)]
    [doubt] = doubts(csv(tmp_path, "text,label", rows=rows))
    assert doubt.endswith("look alike; if they are one, give it one spelling")
    assert "\\u0" in doubt or "\\xe9" in doubt


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (",label,kind", "; columns without a name are not taken: give each one"),
        ("text,text,label", "; 'text' is the name of 2 columns: give each another name"),
    ],
)
def test_columns_that_are_not_taken_are_told_if_nothing_is_guessed(tmp_path: Path, header: str, told: str) -> None:
    rows = [",".join([text] * header.count(",") + [label]) for text, label in ROWS]
    path = csv(tmp_path, header, rows=rows)
    assert advise_missing(look(path, None, tmp_path)) == told


@pytest.mark.parametrize("sign", ["|", ";", "#", ", "])
def test_labels_that_are_several_are_told(tmp_path: Path, sign: str) -> None:
    kinds = ["a", "b", f"a{sign}b"]
    rows = [f'"{text}","{kinds[number % 3]}"' for number, (text, _) in enumerate(ROWS)]
    [doubt] = doubts(csv(tmp_path, '"text","label"', rows=rows))
    assert doubt.startswith(
        f"labels: 'a{sign}b' reads like several labels, parted by '{sign.strip()}'; if a row may have"
    )


def test_a_label_that_stands_once_for_several_rows_is_told(tmp_path: Path) -> None:
    rows = [f"{text},{label if number % 3 == 0 else ''}" for number, (text, label) in enumerate(ROWS)]
    (doubt,) = doubts(csv(tmp_path, "text,label", rows=rows))
    assert doubt.startswith("label: most rows have none, and are left out; if cells were merged in a sheet, write")


def test_texts_that_were_encoded_twice_are_told(tmp_path: Path) -> None:
    rows = [f"{text} d\u00c3\u00a9j\u00c3\u00a0 tr\u00c3\u00a8s,{label}" for text, label in ROWS]
    (doubt,) = doubts(csv(tmp_path, "text,label", rows=rows))
    assert doubt.startswith("text: 60 texts (lines 2, 3, 4 and more) read like UTF-8 that was taken for Windows-1252")


def test_a_sign_within_the_name_of_a_label_makes_no_list(tmp_path: Path) -> None:
    kinds = ["food, drink", "travel", "C#"]
    rows = [f'"{text}","{kinds[number % 3]}"' for number, (text, _) in enumerate(ROWS)]
    assert doubts(csv(tmp_path, '"text","label"', rows=rows)) == []


def test_lists_as_labels_are_told(tmp_path: Path) -> None:
    rows = [f"{text},['{label}']" for text, label in ROWS]
    [doubt] = doubts(csv(tmp_path, "text,label", rows=rows))
    assert doubt.startswith("labels: \"['negative']\" reads like a list of labels; write one label in each cell, or if")


NESTED: list[tuple[Any, str, str]] = [
    ([{"text": text, "label": [label]} for text, label in ROWS], "text", "label.0"),  # doccano
    (
        [{"text": text, "accept": [label], "options": [{"id": 1}]} for text, label in ROWS],
        "text",
        "accept.0",
    ),  # prodigy
    (
        [
            {"data": {"text": text}, "annotations": [{"result": [{"value": {"choices": [label]}}]}]}  # Label Studio
            for text, label in ROWS
        ],
        "data.text",
        "annotations.0.result.0.value.choices.0",
    ),
    (
        [
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": label}]}  # OpenAI
            for text, label in ROWS
        ],
        "messages.0.content",
        "messages.1.content",
    ),
    (
        [
            {"paragraphs": [{"context": text, "qas": [{"question": "how?", "answers": [{"text": label}]}]}]}  # SQuAD
            for text, label in ROWS
        ],
        "context",
        "answer",
    ),
]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(("rows", "text", "label"), NESTED, ids=["doccano", "prodigy", "studio", "chat", "questions"])
def test_nested_values_are_told_with_a_command_that_makes_columns(
    tmp_path: Path, rows: list[dict[str, Any]], text: str, label: str, form: str
) -> None:
    path, new = tmp_path / f"rows.{form}", tmp_path / "new.jsonl"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    try:
        said = advise_missing(look(path, None, tmp_path))
    except DataError as error:
        said = str(error)
    command = re.search("python -c '.*", said)
    assert command is not None
    written = command[0].replace("FILE", str(path)).replace("NEW.jsonl", str(new))
    subprocess.run(written.replace("python", sys.executable, 1), shell=True, check=True)
    sketch = look(new, None, tmp_path)
    assert (sketch.table.columns[text].cells, sketch.table.columns[label].cells) == tuple(
        map(list, zip(*ROWS, strict=True))
    )
    assert guess_label(sketch, text) is not None
