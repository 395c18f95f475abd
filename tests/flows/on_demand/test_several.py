"""Several files for one task: splits by their names, and files without labels."""

import subprocess
from pathlib import Path

import pytest

from flows.on_demand.draft import Choice, find_facts, suggest_name, write
from flows.on_demand.several import Labelled, add_splits, look_at, sort_files
from flows.on_demand.sketch import look
from ptpipeline.data.sources import read_rows
from ptpipeline.errors import DataError, NotFound
from ptpipeline.settings import Settings
from tests.tiny import sentences, write_csv

ROWS = sentences(120)
CHOICE = Choice("mood", "tiny", "text", "label")


def put(folder: Path, **parts: list[tuple[str, str]]) -> Path:
    folder.mkdir()
    for name, rows in parts.items():
        write_csv(folder / f"{name}.csv", rows)
    return folder


def sketched(*given: Path) -> Labelled:
    return add_splits(look_at(sort_files(given).splits, None, given[0]), CHOICE)


def read(tmp_path: Path, *given: Path) -> dict[str | None, list[tuple[str | None, str | None]]]:
    """The rows of each split, by the task file that is written."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "base_models.yaml").write_text("tiny: {path: base}\n")
    sketch = sketched(*given).sketch
    facts = find_facts(sketch, CHOICE, tmp_path / "tasks")
    settings = Settings(home=tmp_path, tasks=tmp_path / "tasks")
    source = read_rows(write(sketch, CHOICE, facts, settings)[1], tmp_path)
    found: dict[str | None, list[tuple[str | None, str | None]]] = {}
    for split, *row in zip(source.splits or [None] * 120, source.fields["text"], source.labels, strict=True):
        found.setdefault(split, []).append((row[0], row[1]))
    return found


@pytest.mark.parametrize("dev", ["dev", "validation"])
def test_names_that_tell_splits_make_a_source_for_each(tmp_path: Path, dev: str) -> None:
    folder = put(tmp_path / "rows", train=ROWS[:70], test=ROWS[90:], **{dev: ROWS[70:90]})
    assert read(tmp_path, folder) == {"train": ROWS[:70], "dev": ROWS[70:90], "test": ROWS[90:]}


def test_the_files_may_be_named_in_any_order(tmp_path: Path) -> None:
    folder = put(tmp_path / "rows", **{"reviews-train": ROWS[:80], "reviews-test": ROWS[80:]})
    given = [folder / "reviews-test.csv", folder / "reviews-train.csv"]
    assert read(tmp_path, *given) == {"train": ROWS[:80], "test": ROWS[80:]}


@pytest.mark.parametrize("names", [("2024-01", "2024-02"), ("contest", "latest"), ("attest", "test")])
def test_other_names_are_one_table(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = put(tmp_path / "rows", **{names[0]: ROWS[:80], names[1]: ROWS[80:]})
    assert read(tmp_path, folder) == {None: ROWS}


def test_a_label_that_only_test_rows_have_is_one_of_the_task(tmp_path: Path) -> None:
    folder = put(tmp_path / "rows", train=ROWS[:80], test=[(text, "rare") for text, _ in ROWS[80:]])
    assert read(tmp_path, folder)["test"][0] == (ROWS[80][0], "rare")
    assert '  "rare": " rare"' in (tmp_path / "tasks" / "mood.yaml").read_text().splitlines()


@pytest.mark.parametrize(
    "body", ["text\na good film\na bad plot\n", "text,label\na good film,\n", "text,label\na,-1\n"]
)
def test_a_file_of_a_contest_without_labels_is_left_out(tmp_path: Path, body: str) -> None:
    folder = put(tmp_path / "rows", train=ROWS)
    (folder / "test.csv").write_text(body)
    assert sketched(folder).notes == [f"{folder}/test.csv: has no labels in a column 'label', and is left out"]
    assert read(tmp_path, folder) == {None: ROWS}


def test_dev_rows_are_those_of_test_if_no_others_have_labels(tmp_path: Path) -> None:
    folder = put(tmp_path / "rows", train=ROWS[:80], dev=ROWS[80:])
    assert f"{folder}/dev.csv: gives the test rows" in sketched(folder).notes[0]
    assert read(tmp_path, folder) == {"train": ROWS[:80], "test": ROWS[80:]}


def test_what_tells_no_split_in_a_folder_is_left_out_and_told(tmp_path: Path) -> None:
    folder = put(tmp_path / "rows", train=ROWS[:80], test=ROWS[80:], sample_submission=ROWS[:3])
    assert sort_files([folder]).left == [folder / "sample_submission.csv"]
    with pytest.raises(DataError, match=r"sample_submission.csv: its name tells no split, and the other files' do"):
        sort_files([folder / "train.csv", folder / "sample_submission.csv"])


def test_files_that_are_no_table_together_are_told(tmp_path: Path) -> None:
    folder = put(tmp_path / "rows", one=ROWS)
    (folder / "two.csv").write_text("text;label\n" + "".join(f"{text};{label}\n" for text, label in ROWS))
    with pytest.raises(DataError, match=r"two.csv: is written in another way than .*one.csv: name files that are"):
        sketched(folder)
    (folder / "two.csv").write_text("a,b\nc,d\n")
    with pytest.raises(DataError, match="have no column in common: name files of the same columns"):
        sketched(folder)


def test_parts_without_a_line_of_names_are_told_with_a_command_that_puts_one_in_front(tmp_path: Path) -> None:
    """As Spark writes them by default; their first rows have a label in common."""
    folder = put(tmp_path / "rows")
    for name, first, rows in (("0", "a film that is good", ROWS[:60]), ("1", "so very bad it was", ROWS[60:])):
        lines = [f"{text},{label}\n" for text, label in rows]
        (folder / f"part-{name}.csv").write_text("".join([f"{first},positive\n", *lines]))
    with pytest.raises(DataError, match=r"have one column in common: .*, and parts without names by: ") as raised:
        sketched(folder)
    command = str(raised.value).partition("without names by: ")[2].replace("FILES", "part-*").replace("NEW", "new.csv")
    subprocess.run(["bash", "-c", command], cwd=folder, check=True)
    assert look(folder / "new.csv", None, tmp_path).rows == len(ROWS) + 2


def test_parts_of_one_file_are_told_with_a_command_that_joins_them(tmp_path: Path) -> None:
    """As `split` parts a file: the first alone has the names."""
    folder = put(tmp_path / "rows", part1=ROWS[:60])
    (folder / "part2.csv").write_text("".join(f"{text},{label}\n" for text, label in ROWS[60:]))
    with pytest.raises(DataError, match="parts of one file, of which the first alone has the names, become") as raised:
        sketched(folder)
    command = str(raised.value).partition("become one by: ")[2].partition(", and")[0]
    done = command.replace("FILES", "part*.csv").replace("NEW", "new.csv")
    subprocess.run(["bash", "-c", done], cwd=folder, check=True)
    assert look(folder / "new.csv", None, tmp_path).rows == len(ROWS)


def test_a_part_without_rows_adds_none_and_stays_a_part(tmp_path: Path) -> None:
    """As Spark writes one for each empty partition; tomorrow it may have rows."""
    folder = put(tmp_path / "rows", one=ROWS[:60], two=[], zero=ROWS[60:])
    (folder / "three.csv").touch()
    [found] = look_at({"train": sorted(folder.iterdir())}, None, tmp_path).values()
    assert found.rows == len(ROWS)
    assert found.source.paths == [str(folder / f"{name}.csv") for name in ("one", "three", "two", "zero")]
    with pytest.raises(DataError, match=r"three\.csv: there are no rows in this file, and in none of those beside it"):
        look_at({"train": [folder / "three.csv", folder / "two.csv"]}, None, tmp_path)


def test_a_test_file_without_the_texts_is_told(tmp_path: Path) -> None:
    folder = put(tmp_path / "rows", train=ROWS)
    (folder / "test.csv").write_text("review,label\na,b\n")
    with pytest.raises(DataError, match=r"test.csv: no column 'text', which .*train.csv has: give files of one kind"):
        sketched(folder)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is a folder; name a file of rows"):
        sort_files([put(tmp_path / "rows")])


def test_a_task_of_several_files_is_called_after_their_folder(tmp_path: Path) -> None:
    folder = put(tmp_path / "Movie Reviews", train=ROWS[:80], test=ROWS[80:])
    assert suggest_name([folder]) == suggest_name(sorted(folder.iterdir())) == "movie-reviews"


def test_a_file_that_is_named_twice_is_told(tmp_path: Path) -> None:
    folder = put(tmp_path / "rows", one=ROWS)
    with pytest.raises(DataError, match=r"one.csv: is named twice, so each of its rows would repeat: name each file"):
        sort_files([folder, folder / "one.csv"])


def test_further_lines_of_names_in_a_test_file_are_told(tmp_path: Path) -> None:
    folder = put(tmp_path / "rows", train=ROWS)
    rows = "".join(f"{number},{text},{label}\n" for number, (text, label) in enumerate(ROWS))
    (folder / "test.csv").write_text(f"id,text,label\n,What do you think?,Response\n{rows}")
    with pytest.raises(DataError, match=r"test.csv: line 2 reads like a second line of names"):
        sketched(folder)
