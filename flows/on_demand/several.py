"""Several files of rows for one task: which splits their names tell, and which of them have labels."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flows.on_demand.draft import Choice, check_names
from flows.on_demand.sketch import Sketch, join_sketches, join_tables, look
from ptpipeline.data.local import Several, find_rows_file, list_rows_files
from ptpipeline.data.table import NO_CLASS
from ptpipeline.errors import DataError
from ptpipeline.settings import resolve_path

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Sorted(NamedTuple):
    """Files by the split that their names tell, all as `train` if they tell none; and those of a folder left out."""

    splits: dict[str, list[Path]]
    left: list[Path]


class Labelled(NamedTuple):
    """What was seen of all files that have labels, and what a person should know of the others."""

    sketch: Sketch
    notes: list[str]


def sort_files(given: Sequence[Path]) -> Sorted:
    """Return the files, and those in folders, by their splits.

    Raises NotFound if there is nothing to read, DataError if a file is named twice, or a name tells no split beside
    others that do.
    """
    inside = [file for path in given if resolve_path(path).is_dir() for file in list_rows_files(path)]
    files = [path for path in given if not resolve_path(path).is_dir()] + inside
    for path in given if not files else ():
        find_rows_file(path)
    if twice := next((path for number, path in enumerate(files) if path in files[:number]), None):
        raise DataError(f"{twice}: is named twice, so each of its rows would repeat: name each file once")
    told = {path: _tell_split(path) for path in files}
    if "train" not in told.values() or len(files) == 1:
        return Sorted({"train": files}, [])
    left = [path for path in files if told[path] is None]
    if named := [path for path in left if path not in inside]:
        raise DataError(
            f"{named[0]}: its name tells no split, and the other files' do: name it as train, dev or test too, or give "
            "the files of one split alone"
        )
    splits = {split: [path for path in files if told[path] == split] for split in ("train", "dev", "test")}
    return Sorted({split: paths for split, paths in splits.items() if paths}, left)


def _tell_split(path: Path) -> str | None:
    words = re.split("[^a-z]+", path.name.partition(".")[0].lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def look_at(
    splits: Mapping[str, Sequence[Path]], form: str | None, home: Path, delimiter: str | None = None
) -> dict[str, Sketch]:
    """Return what the files of each split hold; one without rows adds none. Raises what `look` and `join_sketches`
    raise.
    """
    found: dict[str, Sketch] = {}
    for split, paths in splits.items():
        known = found["train"].table.columns if found else ()
        sketches, several = [], Several(len(paths))
        for path in paths:
            with several.reading():
                sketches.append(look(path, form, home, known, delimiter))
        if not sketches:
            raise DataError(f"{paths[0]}: there are no rows in this file, and in none of those beside it")
        joined = join_sketches(sketches)
        names = [str(path) for path in paths] if len(paths) > 1 else str(paths[0])
        found[split] = joined._replace(source=joined.source.model_copy(update={"path": names}))
    return found


def add_splits(sketches: Mapping[str, Sketch], choice: Choice) -> Labelled:
    """Return the training files with the dev and test files that have labels too; the test rows are those of dev if
    no test file has labels, as in a contest.

    Raises DataError if a file lacks the column of texts, or begins with further lines of names.
    """
    train, given, notes = sketches["train"], dict[str, Sketch](), list[str]()
    for split in ("dev", "test"):
        sketch = sketches.get(split)
        if sketch is None:
            continue
        if lacking := [column for column in choice.texts if column not in sketch.table.columns]:
            raise DataError(f"{sketch.name}: no column {lacking[0]!r}, which {train.name} has: give files of one kind")
        label = sketch.table.columns.get(choice.label)
        if label is None or not any(cell and cell.strip() not in ("", NO_CLASS) for cell in label.cells):
            notes.append(
                f"{sketch.name}: has no {'targets' if choice.free else 'labels'} in a column {choice.label!r}, and is "
                "left out"
            )
        else:
            if not choice.free:
                check_names(sketch, choice.label)
            given[split] = sketch
    if "dev" in given and "test" not in given:
        given = {"test": given["dev"]}
        notes.append(f"{given['test'].name}: gives the test rows, as no test file has labels; dev is cut from train")
    if not given or not {*choice.texts, choice.label} <= train.table.columns.keys():
        return Labelled(train, notes)
    names = list(dict.fromkeys((*choice.texts, choice.label)))
    table = join_tables((train, *given.values()), names)
    rows = train.rows + sum(one.rows for one in given.values())
    sources = {split: one.source for split, one in given.items()}
    return Labelled(train._replace(table=table, rows=rows, given=sources), notes)
