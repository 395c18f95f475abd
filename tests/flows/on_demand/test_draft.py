"""What a first task file guesses of a file of rows, and what it asks of so few of them."""

import subprocess
from pathlib import Path

import pytest

from flows.on_demand.draft import Choice, Facts, find_facts, render, write
from flows.on_demand.inspection import inspect_folder
from flows.on_demand.sketch import (
    Seen,
    Sketch,
    explain_no_label,
    guess_label,
    guess_pair,
    guess_target,
    guess_text,
    look,
)
from ptpipeline.errors import DataError, TaskFileError
from ptpipeline.settings import Settings
from tests.tiny import sentences, tiny_base, write_csv

CHOICE = Choice("mood", "tiny", "text", "label")


@pytest.fixture
def sketch(tmp_path: Path) -> Sketch:
    return look(write_csv(tmp_path / "rows.csv", sentences(120)), None, tmp_path)


def seen(sketch: Sketch, *columns: Seen) -> Sketch:
    return sketch._replace(seen=list(columns))


@pytest.mark.parametrize(
    ("columns", "guess"),
    [
        ([Seen("a", "text", 100, 90, 20.0), Seen("b", "text", 100, 90, 40.0)], "b"),
        ([Seen("Review ", "text", 100, 90, 20.0), Seen("b", "text", 100, 90, 40.0)], "Review "),
        ([Seen("text", "text", 100, 50, 20.0), Seen("b", "text", 100, 51, 10.0)], "b"),  # half of it repeats
        ([Seen("text", "whole numbers", 100, 90, 20.0)], None),
        ([Seen("label", "text", 100, 2, 4.0), Seen("text", "text", 100, 33, 20.0)], "text"),  # three labels of each
        ([Seen("label", "text", 100, 2, 4.0), Seen("text", "text", 100, 1, 20.0)], None),
    ],
)
def test_the_text_is_a_column_that_mostly_differs(sketch: Sketch, columns: list[Seen], guess: str | None) -> None:
    assert guess_text(seen(sketch, *columns)) == guess


@pytest.mark.parametrize(
    ("header", "unnamed"), [("Review,,Kind", 1), (",text,label", 0), ("text,label,", 1), ("text,lang,label", 0)]
)
def test_columns_without_a_name_are_counted_but_for_an_index(tmp_path: Path, header: str, unnamed: int) -> None:
    (tmp_path / "rows.csv").write_text(f"{header}\na,b,c\nd,e,f\n")
    found = look(tmp_path / "rows.csv", None, tmp_path)
    assert (found.unnamed, found.twice) == (unnamed, {})


@pytest.mark.parametrize(
    ("column", "taken"),
    [
        (Seen("l", "text", 100, 2, 5.0), True),
        (Seen("l", "text", 100, 1, 5.0), False),
        (Seen("l", "text", 100, 50, 5.0), True),
        (Seen("l", "text", 100, 51, 5.0), False),  # hardly any of them repeats
        (Seen("l", "text", 1000, 101, 5.0), False),  # more than a task may have
        (Seen("l", "text", 100, 2, 60.0), True),
        (Seen("l", "text", 100, 2, 61.0), False),
        (Seen("text", "text", 100, 2, 5.0), False),  # it is the text
    ],
)
def test_a_label_is_one_of_a_few_short_values_that_repeat(sketch: Sketch, column: Seen, taken: bool) -> None:
    assert (guess_label(seen(sketch, column), "text") == column.column) == taken


@pytest.mark.parametrize(
    ("labels", "unlabelled", "lines"),
    [
        ({"a": 100, "b": 100}, 0, ["gate: {metric: accuracy, minimum: 0}"]),
        ({"a": 700, "b": 300}, 0, ["gate: {metric: accuracy, minimum: 0}"]),
        ({"a": 701, "b": 299}, 0, ["gate: {metric: macro_f1, minimum: 0}"]),
        ({"a": 99, "b": 99}, 0, ["  checks: {rows_per_label: warn}"]),  # a split of dev may miss one
        ({"a": 100, "b": 100}, 1, ["  checks: {unknown_label: warn}"]),
    ],
)
def test_the_gate_and_the_checks_follow_the_rows_of_each_label(
    sketch: Sketch, labels: dict[str, int], unlabelled: int, lines: list[str]
) -> None:
    facts = Facts(labels, unlabelled, 0, [10], "tokens")
    written = render(sketch, CHOICE, facts).splitlines()
    assert set(lines) <= set(written)
    assert any("checks:" in line for line in written) == any("checks:" in line for line in lines)


def test_a_comma_needs_no_delimiter_and_another_sign_does(sketch: Sketch, tmp_path: Path) -> None:
    assert sketch.source.delimiter is None
    (tmp_path / "other.csv").write_text("text;label\n" + "".join(f"{text};{label}\n" for text, label in sentences(9)))
    assert look(tmp_path / "other.csv", None, tmp_path).source.delimiter == ";"


def test_a_file_that_would_not_load_is_not_left_behind(sketch: Sketch, tmp_path: Path) -> None:
    (tmp_path / "base_models.yaml").write_text("tiny: {path: base}\n")
    settings = Settings(home=tmp_path, tasks=tmp_path)
    facts = Facts({"the only one": 60}, 0, 0, [10], "tokens")
    with pytest.raises(TaskFileError):
        write(sketch, CHOICE._replace(base="tiny"), facts, settings)
    assert not (tmp_path / "mood.yaml").exists()


@pytest.mark.parametrize("labels", [("pos", "positive"), ("a", "a b"), ("1", "10"), ("good", "good. film")])
def test_labels_of_which_one_begins_another_are_drafted_so_that_the_model_tells_them_apart(
    sketch: Sketch, tmp_path: Path, labels: tuple[str, str]
) -> None:
    tiny_base(tmp_path / "base")
    (tmp_path / "base_models.yaml").write_text(f'tiny: {{path: "{tmp_path}/base"}}\n')
    facts = Facts(dict.fromkeys(labels, 60), 0, 0, [10], "tokens")
    write(sketch, CHOICE, facts, Settings(home=tmp_path, tasks=tmp_path))
    found = inspect_folder(tmp_path)
    assert (found.problems, found.advice) == ([], [])
    assert "each ends with a sign, because the name of one begins another's" in (tmp_path / "mood.yaml").read_text()


def test_what_is_written_is_its_owners_alone(sketch: Sketch, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, tasks=tmp_path / "tasks")
    facts = Facts({"negative": 60, "positive": 60}, 0, 0, [10], "tokens")
    path, _ = write(sketch, CHOICE._replace(base="smollm2-135m-wheel"), facts, settings)
    assert [place.stat().st_mode & 0o077 for place in (path, path.parent)] == [0, 0]


def test_of_no_columns_nothing_is_guessed(sketch: Sketch) -> None:
    assert (guess_text(seen(sketch)), guess_label(seen(sketch), "")) == (None, None)


def test_base_models_that_are_declared_stay_as_they_are(sketch: Sketch, tmp_path: Path) -> None:
    (tmp_path / "base_models.yaml").write_text("tiny: {path: base}\n")
    facts = Facts({"negative": 60, "positive": 60}, 0, 0, [10], "tokens")
    write(sketch, CHOICE, facts, Settings(home=tmp_path, tasks=tmp_path))
    assert (tmp_path / "base_models.yaml").read_text() == "tiny: {path: base}\n"


def columns(folder: Path, *names: str) -> Sketch:
    """A file whose columns of these names hold texts; `label` and `title` have two values, `score` has numbers."""
    rows = [
        [
            {"label": label, "title": label, "score": f"{number / 120:.4f}"}.get(name, f"{text} {name} {number}")
            for name in names
        ]
        for number, (text, label) in enumerate(sentences(120))
    ]
    path = folder / "rows.csv"
    path.write_text("".join(f"{','.join(row)}\n" for row in [names, *rows]))
    return look(path, None, folder)


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("hypothesis", "Premise", "label"), ("Premise", "hypothesis")),
        (("sentence_1", "sentence_2", "label"), ("sentence_1", "sentence_2")),
        (("question", "context", "title"), ("context", "question")),
        (("sentence 1", "sentence 2", "label"), None),  # no template can name them as they are
        (("sentence1", "text", "label"), None),
    ],
)
def test_two_texts_are_known_by_their_names(
    tmp_path: Path, names: tuple[str, ...], pair: tuple[str, str] | None
) -> None:
    assert guess_pair(columns(tmp_path, *names)) == pair


@pytest.mark.parametrize(
    ("names", "target"),
    [
        (("article", "highlights"), "highlights"),
        (("prompt", "Completion"), "Completion"),
        (("article", "summary", "label"), None),  # labels are what most people ask for
        (("article", "notes"), None),
    ],
)
def test_answers_are_known_by_their_name_if_nothing_looks_like_labels(
    tmp_path: Path, names: tuple[str, ...], target: str | None
) -> None:
    sketch = columns(tmp_path, *names)
    assert guess_target(sketch, [names[0]]) == target
    assert guess_text(sketch) == names[0]


def test_the_answer_to_a_question_is_its_target_whatever_describes_the_text(tmp_path: Path) -> None:
    sketch = columns(tmp_path, "title", "context", "question", "answer")
    assert guess_target(sketch, ["context", "question"]) == "answer"
    assert guess_label(sketch, "context") == "title"


def test_why_nothing_is_taken_as_labels_is_told(tmp_path: Path) -> None:
    assert explain_no_label(columns(tmp_path, "text", "class")).startswith(
        "; 'class' has 120 different values, and labels"
    )
    assert explain_no_label(columns(tmp_path, "text", "score")).startswith(
        "; a number such as 'score' is cut into labels"
    )
    assert explain_no_label(columns(tmp_path, "text", "notes")) == ""
    (tmp_path / "long.csv").write_text("text,label\n" + "".join(f"a {n},{'ab'[n % 2] * 80}\n" for n in range(9)))
    assert explain_no_label(look(tmp_path / "long.csv", None, tmp_path)).startswith(
        "; 'label' has values of 80 characters: name it, if these are labels"
    )
    (tmp_path / "one.csv").write_text("text,label\na b,good\n")
    assert explain_no_label(look(tmp_path / "one.csv", None, tmp_path)).startswith(
        "; 'label' has one value, and labels"
    )
    (tmp_path / "merged.csv").write_text("label,text\n" + "".join(f"{'' if n else 'a'},{n} b c\n" for n in range(9)))
    assert explain_no_label(look(tmp_path / "merged.csv", None, tmp_path)).endswith(
        "if cells were merged in a sheet, write their value into each of them"
    )


@pytest.mark.parametrize(
    ("choice", "template", "generated"),
    [
        (CHOICE._replace(second="b"), "{text}\n{b}\nLabel:", None),
        (CHOICE._replace(label="summary", free=True), "{text}\nSummary:", 9),
        (CHOICE._replace(label="answers.text.0", second="b", free=True), "{text}\n{b}\nAnswer:", 1024),
    ],
)
def test_a_pair_and_a_target_are_drafted(
    sketch: Sketch, tmp_path: Path, choice: Choice, template: str, generated: int | None
) -> None:
    labels = {} if choice.free else {"negative": 60, "positive": 60}
    facts = Facts(labels, 0, 0, [10], "tokens", longest=generated if generated == 9 else 5000)
    _, task = write(sketch, choice._replace(base="smollm2-135m-wheel"), facts, Settings(home=tmp_path, tasks=tmp_path))
    assert task.template == template
    assert (task.data.target, task.data.label) == ((choice.label, None) if choice.free else (None, "label"))
    assert (task.generate.max_new_tokens if task.generate else None) == generated


def test_the_longest_answer_counts_with_the_blank_before_it_and_the_end_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,answer\na,\u00e9\u00e9 \nb,x\nc,\n", encoding="utf-8")
    facts = find_facts(look(path, None, tmp_path), CHOICE._replace(label="answer", free=True), tmp_path)
    assert (facts.longest, facts.unlabelled, facts.labels) == (len(" \u00e9\u00e9".encode()) + 1, 1, {})


def test_texts_in_another_encoding_are_told_with_a_command_that_works(tmp_path: Path) -> None:
    path = tmp_path / "FILE"
    rows = "".join(f"{text} \u00e9,{label}\n" for text, label in sentences(120))
    path.write_bytes(f"text,label\n{rows}".encode("latin-1"))
    source = look(path, "csv", tmp_path)
    with pytest.raises(DataError, match="no text of the column 'text' is UTF-8") as raised:
        find_facts(source, CHOICE, tmp_path)
    command = str(raised.value).partition(" by: ")[2].replace("ENCODING", "LATIN1")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert find_facts(look(tmp_path / "NEW", "csv", tmp_path), CHOICE, tmp_path).broken == ""
