"""`ptp init`: the task file that it writes for a file of rows runs as it is."""

import csv
import json
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from flows.cli.drafting import _choose_columns
from flows.on_demand.draft import DEFAULT_BASE
from flows.on_demand.sketch import look
from ptpipeline.task.folder import load_task
from tests.flows.cli.pty_reader import Typed
from tests.flows.cli.test_cli import Done, environment_of, error_of, ptp
from tests.flows.cli.test_ingest import on_terminal
from tests.tiny import sentences, tiny_base

ROWS = sentences(120)
SHIPPED = Path(__file__).parents[3] / "tasks"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base model declared and no task."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "base_models.yaml").write_text("tiny: {path: base}\n")
    return tmp_path


def init(folder: Path, *arguments: str) -> Done:
    return ptp(environment_of(folder), "init", *arguments)


def write(path: Path, rows: list[dict[str, object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def labelled(text: str = "text", label: str = "label", **values: str) -> list[dict[str, object]]:
    return [
        {"id": number, text: sentence, label: values.get(kind, kind)} for number, (sentence, kind) in enumerate(ROWS)
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("text", "label", "values"),
    [
        ("text", "label", {}),
        ("Review", "Sentiment", {"positive": "1", "negative": "0"}),
        ("a column: of #words", "yes", {"positive": "true", "negative": "null"}),
        ("본문", "라벨", {"positive": "좋음", "negative": "a: {b}, 'c'"}),
    ],
)
def test_what_it_writes_runs_as_it_is(
    folder: Path, text: str, label: str, values: dict[str, str], delimiter: str
) -> None:
    write(folder / "My Reviews.csv", labelled(text, label, **values), delimiter)
    done = init(folder, "My Reviews.csv", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"wrote {folder}/tasks/my-reviews.yaml; next: `ptp ingest my-reviews`" in done.stdout
    task = load_task(folder / "tasks" / "my-reviews.yaml")
    assert (task.data.text, task.data.label) == (text, label)
    assert set(task.labels) == {values.get(kind, kind) for kind in ("positive", "negative")}
    ingested = ptp(environment_of(folder), "ingest", "my-reviews", "--json")
    assert ingested.returncode == 0, ingested.stderr
    record = json.loads(ingested.stdout)
    assert sum(record[split]["rows"] for split in ("train", "dev", "test")) == len(ROWS)
    assert ptp(environment_of(folder), "tasks").returncode in (0, 1)  # 1: the base is declared, its folder is not there


def write_questions(path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"title": kind, "context": f"{text} {number}", "question": f"how was {number}?", "answer": f"{kind} {number}"}
        for number, (text, kind) in enumerate(ROWS)
    ]
    write(path, rows)


@pytest.mark.parametrize(
    ("given", "label", "target", "second"),
    [
        (["--text", "context"], "title", None, False),
        (["--text", "context", "--target", "answer"], None, "answer", False),
        (["--target", "answer"], None, "answer", True),
        (["--label", "title"], "title", None, True),
    ],
)
def test_columns_that_are_given_stand_before_those_that_names_tell(
    folder: Path, given: list[str], label: str | None, target: str | None, second: bool
) -> None:
    write_questions(folder / "qa.csv")
    done = init(folder, "qa.csv", "--yes", *given)
    assert done.returncode == 0, done.stderr
    task = load_task(folder / "tasks" / "qa.yaml")
    assert (task.data.text, task.data.label, task.data.target) == ("context", label, target)
    assert ("{question}" in task.template) == second


def test_another_text_than_the_first_of_a_pair_stands_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who is asked may answer with the second one."""
    write_questions(folder / "qa.csv")
    sketch = look(folder / "qa.csv", None, folder)
    monkeypatch.setattr(typer, "prompt", lambda question, default: {"context": "question"}.get(default, default))
    given = dict.fromkeys(("name", "base", "text", "label"))
    choice = _choose_columns(sketch, folder / "tasks", [folder / "qa.csv"], given, ask=True, free=False)
    assert (choice.text, choice.second) == ("question", "")


def test_columns_of_one_name_beside_a_text_are_told_and_stop_nothing(folder: Path) -> None:
    lines = ["text,label,x,x", *(f"{text},{label},1,2" for text, label in ROWS)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    done = init(folder, "rows.csv", "--yes")
    assert done.returncode == 0, done.stderr
    assert "columns of one name are not taken: 'x' is the name of 2 columns" in done.stdout


def test_a_file_whose_name_tells_no_split_is_told(folder: Path) -> None:
    (folder / "Mood").mkdir()
    for name, rows in (("train", labelled()[:90]), ("test", labelled()[90:]), ("notes", labelled()[:9])):
        write(folder / "Mood" / f"{name}.csv", rows)
    assert "notes.csv: its name tells no split, and it is left out" in init(folder, "Mood", "--yes").stderr


@pytest.mark.parametrize(("labels", "more"), [(20, ""), (21, "and 1 labels more, the rarest of 3 rows")])
def test_labels_beyond_those_that_are_shown_are_counted(folder: Path, labels: int, more: str) -> None:
    rows: list[dict[str, object]] = [{"text": text, "label": f"l{n % labels}"} for n, (text, _) in enumerate(ROWS[:63])]
    write(folder / "rows.csv", rows)
    shown = init(folder, "rows.csv", "--yes").stdout
    assert ("labels more" in shown, more in shown) == (bool(more), True)


@pytest.mark.parametrize("columns", [50, 51])
def test_columns_beyond_those_that_are_shown_are_counted(folder: Path, columns: int) -> None:
    write(folder / "rows.csv", [{**row, **{f"c{n}": "0" for n in range(columns - 3)}} for row in labelled()])
    shown = init(folder, "rows.csv", "--yes").stdout
    assert ("and 1 columns more" in shown, "columns more" in shown) == (columns == 51,) * 2


def test_a_question_about_a_text_and_its_answer_run_as_they_are(folder: Path) -> None:
    write_questions(folder / "qa.csv")
    done = init(folder, "qa.csv", "--yes")
    assert done.returncode == 0, done.stderr
    assert "note: template: reads 'context' and 'question', as their names say; if one text is enough" in done.stderr
    task = load_task(folder / "tasks" / "qa.yaml")
    assert (task.template, task.data.text, task.data.target) == (
        "{text}\n{question}\nAnswer:",
        "context",
        "answer",
    )
    tiny_base(folder / "base")
    assert ptp(environment_of(folder), "ingest", "qa").returncode == 0


@pytest.mark.parametrize(
    ("name", "begin", "delimiter", "quoting", "header"),
    [
        ("rows.csv", "\n \n", ";", csv.QUOTE_MINIMAL, "text"),
        ("rows.csv", "", ";", csv.QUOTE_ALL, "text, as typed, by users, or not"),
        ("rows.csv", "sep=|\n", "|", csv.QUOTE_ALL, "text"),
        ("rows.csv", "", "\t", csv.QUOTE_ALL, "text"),
        ("rows.tsv", "", "\t", csv.QUOTE_ALL, "text"),
        ("rows.tsv", "", "\t", csv.QUOTE_MINIMAL, 'the "text"'),
        ("rows.tsv", "", ",", csv.QUOTE_MINIMAL, "text"),
    ],
)
def test_the_dialect_of_a_table_is_found(
    folder: Path, name: str, begin: str, delimiter: str, quoting: int, header: str
) -> None:
    rows = [(f'{text}, "so"', label) for text, label in ROWS]
    with (folder / name).open("w", newline="") as file:
        file.write(begin)
        csv.writer(file, delimiter=delimiter, quoting=quoting).writerows([(header, "label"), *rows])
    assert init(folder, name, "--yes").returncode == 0
    done = ptp(environment_of(folder), "ingest", "rows", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert sum(record[split]["rows"] for split in ("train", "dev", "test")) == len(ROWS)
    task = load_task(folder / "tasks" / "rows.yaml")
    assert (task.data.text, set(task.labels)) == (header, {"positive", "negative"})


@pytest.mark.parametrize(("given", "sign"), [("~", "~"), ("\\u0001", "\x01"), ("\\t", "\t"), (",", ",")])
def test_a_delimiter_that_is_given_is_taken_and_written(folder: Path, given: str, sign: str) -> None:
    write(folder / "rows.csv", [{**row, "text": f"{row['text']}; so, we say"} for row in labelled()], sign)
    done = init(folder, "rows.csv", "--delimiter", given, "--yes")
    assert done.returncode == 0, done.stderr
    assert load_task(folder / "tasks" / "rows.yaml").data.source.delimiter == sign
    assert ptp(environment_of(folder), "ingest", "rows").returncode == 0


@pytest.mark.parametrize(("name", "given"), [("rows.csv", ";;"), ("rows.csv", '"'), ("rows.jsonl", ";")])
def test_a_delimiter_that_separates_nothing_is_told(folder: Path, name: str, given: str) -> None:
    write(folder / name, labelled())
    assert f"{name}: --delimiter: " in error_of(init(folder, name, "--delimiter", given, "--yes"), 1)


def test_a_tsv_that_quotes_what_people_said_stays_one(folder: Path) -> None:
    (folder / "rows.tsv").write_text("text\tlabel\n" + "".join(f'"{text}"\t{label}\n' for text, label in ROWS))
    assert init(folder, "rows.tsv", "--yes").returncode == 0
    assert load_task(folder / "tasks" / "rows.yaml").data.source.format == "tsv"


def test_texts_that_are_not_utf8_are_told_with_their_lines(folder: Path) -> None:
    tiny_base(folder / "base")
    rows = write(folder / "rows.csv", labelled()).read_bytes().splitlines(keepends=True)
    rows[3] = rows[3].replace(b",", b",caf\xe9 ", 1)
    (folder / "rows.csv").write_bytes(b"".join(rows))
    done = init(folder, "rows.csv", "--yes")
    assert done.returncode == 0, done.stderr
    assert "note: text: 1 texts (line 4) are not UTF-8, and `ptp ingest` leaves their rows out" in done.stderr
    assert ptp(environment_of(folder), "ingest", "rows").returncode == 0


def test_a_long_text_is_measured_in_characters(folder: Path) -> None:
    tiny_base(folder / "base")
    write(folder / "rows.csv", [*labelled(), {"id": 0, "text": "a " * 1_000_001, "label": "positive"}])
    done = init(folder, "rows.csv", "--yes")
    assert "characters in the middle and 2000002 at most" in done.stdout


def test_many_columns_are_counted(folder: Path) -> None:
    write(folder / "rows.csv", [{**row, **{f"c{n}": "0" for n in range(3000)}} for row in labelled()])
    shown = init(folder, "rows.csv", "--yes").stdout
    assert "and 2953 columns more" in shown
    assert len(shown.splitlines()) < 70


def test_columns_of_lists_and_objects_are_told(folder: Path) -> None:
    lines = [json.dumps({**row, "label": [row["label"]], "kind": row["label"]}) for row in labelled()]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    assert "columns of lists or objects are not taken: label" in init(folder, "rows.jsonl", "--yes").stdout
    told = error_of(init(folder, "rows.jsonl", "--yes", "--name", "b", "--label", "label"), 1)
    assert "the column 'label', which --label names, holds lists or objects; expected plain values" in told


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"positive": "\\N"}, "note: labels: '\\\\N' reads like a missing value"),
        ({"positive": "caf\u00e9", "negative": "cafe\u0301"}, "and 'caf\\xe9' look alike; if they are one"),
    ],
)
def test_labels_that_may_be_none_or_one_are_told(folder: Path, values: dict[str, str], note: str) -> None:
    write(folder / "rows.csv", labelled(**values))
    assert note in init(folder, "rows.csv", "--yes").stderr


def test_a_first_line_that_may_be_a_row_is_told(folder: Path) -> None:
    write(folder / "rows.csv", labelled(text="we were told that this is good", label="\\N"))
    assert "note: source: the first line was taken for the names of columns" in init(folder, "rows.csv", "--yes").stderr


def test_labels_that_differ_in_case_are_told(folder: Path) -> None:
    write(
        folder / "rows.csv",
        [{**row, "label": str(row["label"]).title()} if n % 5 else row for n, row in enumerate(labelled())],
    )
    done = init(folder, "rows.csv", "--yes")
    assert done.returncode == 0
    assert "note: labels: 'Negative' and 'negative' differ in case alone" in done.stderr


def test_a_folder_of_given_splits_runs_as_it_is(folder: Path) -> None:
    (folder / "Mood").mkdir()
    write(folder / "Mood" / "train.csv", labelled()[:90])
    write(folder / "Mood" / "test.csv", labelled()[90:])
    done = init(folder, "Mood", "--yes")
    assert done.returncode == 0, done.stderr
    assert "Mood/train.csv: 90 rows\n" in done.stdout
    ingested = ptp(environment_of(folder), "ingest", "mood", "--json")
    assert ingested.returncode == 0, ingested.stderr
    assert json.loads(ingested.stdout)["test"]["rows"] == 30


def test_json_lines_with_nested_columns_are_read(folder: Path) -> None:
    lines = [json.dumps({**row, "tags": ["a"], "meta": {"b": 1}}) for row in labelled()]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    assert init(folder, "rows.jsonl", "--yes").returncode == 0
    assert ptp(environment_of(folder), "ingest", "rows").returncode == 0


def test_parquet_is_read(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(labelled()), folder / "rows.parquet")
    assert init(folder, "rows.parquet", "--yes").returncode == 0
    assert ptp(environment_of(folder), "ingest", "rows").returncode == 0


def test_rows_without_label_and_rare_labels_do_not_stop_the_ingest(folder: Path) -> None:
    rows = labelled()
    rows[0]["label"], rows[1]["label"] = "", "rare"
    write(folder / "rows.csv", rows)
    done = init(folder, "rows.csv", "--yes")
    assert "1 rows have no label" in done.stdout
    assert ptp(environment_of(folder), "ingest", "rows").returncode == 0


def test_it_shows_what_is_in_the_columns(folder: Path) -> None:
    tiny_base(folder / "base")
    rows = labelled()
    write(folder / "rows.csv", [*rows, rows[0]])
    shown = init(folder, "rows.csv", "--yes").stdout
    assert "rows.csv: 121 rows" in shown
    assert [line.split()[0] for line in shown.splitlines()[1:5]] == ["column", "id", "text", "label"]
    assert "tokens in the middle" in shown
    assert "1 of 121 repeat another" in shown
    assert "positive" in shown


def test_what_is_given_is_taken(folder: Path) -> None:
    write(folder / "rows.csv", labelled("a", "b"))
    options = ("--name", "mood", "--text", "a", "--label", "b", "--base", "tiny")
    assert init(folder, "rows.csv", *options).returncode == 0
    task = load_task(folder / "tasks" / "mood.yaml")
    assert (task.base_model, task.data.text, task.data.label) == ("tiny", "a", "b")


@pytest.mark.parametrize("columns", [60, 120])
def test_a_person_is_asked_and_may_answer_otherwise(folder: Path, columns: int) -> None:
    write(folder / "rows.csv", labelled())
    seen = on_terminal(environment_of(folder), columns, "init", "rows.csv", typed=Typed("\n\n\nmood\n\n"))
    for question in ("The column of texts [text]:", "The column of labels [label]:", "The base model (tiny) [tiny]:"):
        assert question in seen
    assert load_task(folder / "tasks" / "mood.yaml").labels.keys() == {"positive", "negative"}
    refused = on_terminal(environment_of(folder), columns, "init", "rows.csv", typed=Typed("\n\n\nother\nn\n"))
    assert "wrote" not in refused
    assert not (folder / "tasks" / "other.yaml").exists()


def test_a_folder_without_base_models_gets_the_shipped_one(folder: Path) -> None:
    (folder / "tasks" / "base_models.yaml").unlink()
    write(folder / "rows.csv", labelled())
    assert init(folder, "rows.csv", "--yes").returncode == 0
    shipped, written = (
        YAML(typ="safe").load(path.read_text())
        for path in (SHIPPED / "base_models.yaml", folder / "tasks/base_models.yaml")
    )
    assert written == shipped == YAML(typ="safe").load(DEFAULT_BASE)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("none.csv", "--yes"), "none.csv: no such file; name a file of rows"),
        (("tasks", "--yes"), "tasks: is a folder"),
        (
            ("rows.csv", "train.csv", "--yes"),
            "rows.csv: its name tells no split, and the other files' do: name it as train, dev or test too",
        ),
        (
            ("https://a/rows.csv", "--yes"),
            "https:// begins an address, and a file of this machine is expected; download",
        ),
        (("rows.txt", "--yes"), "its name does not tell its format; give --format"),
        (("rows.csv", "--yes", "--text", "x"), "no column 'x' for --text; there are id, text, label"),
        (("rows.csv", "--yes", "--label", "id"), "the column 'id' has 120 different values; expected 2 to 100 labels"),
        (("rows.csv", "--yes", "--name", "A B"), "a task name has lower-case letters"),
        (
            ("rows.csv", "--yes", "--name", "taken"),
            "taken.yaml: there is a task of that name; give another with --name",
        ),
        (("rows.csv",), "nobody can be asked: add --yes"),
        (("texts.csv", "--yes"), "there is one column (text); expected one of texts and one of labels"),
        (("empty.csv", "--yes"), "empty.csv: "),
        (("rows.csv", "--yes", "--base", "nope"), "--base nope: no such base model; there are "),
        (("rows.csv", "--yes", "--text", "label", "--label", "label"), "--text and --label both name 'label'"),
        (("rows.csv", "--yes", "--target", "id", "--label", "label"), "--label and --target are both given"),
        (("bytes.csv", "--yes"), "the name of a column, or a label, is not UTF-8"),
        (("headless.csv", "--yes"), "the first line reads like a row, as its 'positive' is a label of other rows too"),
        (("blanks.csv", "--yes"), "the labels 'negative' and 'negative ' differ in white space alone: give them one"),
        (
            ("twice.csv", "--yes"),
            "no column looks like the text: name one with --text; 'text' is the name of 2 columns",
        ),
        (
            ("twice.csv", "--yes", "--text", "text"),
            "2 columns have the name 'text', which --text names; give each another",
        ),
        (("nothing.jsonl", "--yes"), "no row has a value; expected at least one column of texts and one of labels"),
        (("pandas.jsonl", "--yes"), "the file is one JSON object, and not one for each row"),
        (("array.jsonl", "--yes"), "the file is one JSON array; write one object a line"),
        (("page.csv", "--yes"), "the file is a page of HTML; download"),
        (("book.xlsx", "--yes"), "book.xlsx: the file is an Excel workbook; save the sheet as CSV UTF-8"),
        (("numbers.jsonl", "--yes"), "the column 'text' holds integers; a text has to be text: write these values as"),
        (("chat.jsonl", "--yes"), "no column of plain values (messages: lists or objects); expected at least one of"),
        (
            ("title.csv", "--yes"),
            "expected one of texts and one of labels: if the first line is a title, delete it",
        ),
        (("keys.jsonl", "--yes"), "keys.jsonl: line 1 names 'text' twice; leave one of them out"),
        (("latin.csv", "--yes"), "no text of the column 'text' is UTF-8; save the file as UTF-8"),
        (("quotes.csv", "--yes"), "the labels hold their quotes, such as ' \"negative\"': a quote that encloses"),
        (("circle.csv", "--yes"), "circle.csv: is a link that leads to no file; name a file of rows"),
        (("caf\udce9.csv", "--yes"), "the file's name is not UTF-8, and a task file has to be; rename it"),
    ],
)
def test_what_it_cannot_do_is_one_sentence_and_leaves_nothing(
    folder: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    write(folder / "rows.csv", labelled())
    write(folder / "train.csv", labelled())
    write(folder / "texts.csv", [{"text": text} for text, _ in ROWS])
    (folder / "rows.txt").write_text("text,label\n")
    (folder / "empty.csv").touch()
    bytes_ = (folder / "rows.csv").read_bytes().replace(b"positive", b"positi\xff")
    (folder / "bytes.csv").write_bytes(bytes_)
    (folder / "headless.csv").write_text("".join(f"{text},{label}\n" for text, label in ROWS))
    write(
        folder / "blanks.csv", [{**row, "label": f"{row['label']}{' ' * (n % 2)}"} for n, row in enumerate(labelled())]
    )
    (folder / "twice.csv").write_text("text,text,label\n" + "".join(f"{text},x,{label}\n" for text, label in ROWS))
    records = [{"text": text, "label": label} for text, label in ROWS]
    (folder / "array.jsonl").write_text("[" + ",\n".join(map(json.dumps, records)) + "]\n")
    (folder / "pandas.jsonl").write_text(
        json.dumps({key: {str(n): row[key] for n, row in enumerate(records)} for key in ("text", "label")})
    )
    (folder / "nothing.jsonl").write_text("\n\n")
    (folder / "page.csv").write_text("<!DOCTYPE html>\n<html></html>\n")
    (folder / "book.xlsx").write_bytes(b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml" + bytes(100))
    numbers = [{"text": n if n == 7 else text, "label": label} for n, (text, label) in enumerate(ROWS)]
    (folder / "numbers.jsonl").write_text("\n".join(map(json.dumps, numbers)))
    (folder / "chat.jsonl").write_text("\n".join(json.dumps({"messages": [row]}) for row in records))
    (folder / "keys.jsonl").write_text('{"text": "a", "text": "b", "label": "c"}\n')
    (folder / "title.csv").write_text("# exported on a Monday\ntext,label\na,b\n")
    latin = "text,label\n" + "".join(f"\u00e9 {text},{label}\n" for text, label in ROWS)
    (folder / "latin.csv").write_bytes(latin.encode("latin-1"))
    (folder / "quotes.csv").write_text("text,label\n" + "".join(f'{text}, "{label}"\n' for text, label in ROWS))
    (folder / "circle.csv").symlink_to("circle.csv")
    (folder / "caf\udce9.csv").write_bytes((folder / "rows.csv").read_bytes())
    (folder / "tasks" / "taken.yaml").touch()
    before = sorted(folder.rglob("*"))
    assert sentence in error_of(init(folder, *arguments), 1)
    assert sorted(folder.rglob("*")) == before


def test_labels_that_the_base_cannot_tell_apart_are_told(folder: Path) -> None:
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    Tokenizer(WordLevel({"?": 0}, unk_token="?")).save(str(folder / "base" / "tokenizer.json"))
    write(folder / "rows.csv", labelled())
    said = init(folder, "rows.csv", "--yes").stderr
    assert "tasks/rows.yaml:11: labels: task rows: labels.positive: its words have the same tokens as those of " in said
