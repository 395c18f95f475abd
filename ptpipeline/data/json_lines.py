"""Reads JSON Lines: one object a line. What a column holds that the task does not name is not looked at.

Lines end with a line feed, a carriage return, or both; no other separator ends one, because JSON allows it in texts.
Numbers keep the digits of the file.
"""

import json
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

from ptpipeline.data.dialect import PAGE, is_page
from ptpipeline.data.table import (
    MAX_ROWS,
    Column,
    Listed,
    NoRows,
    Places,
    Table,
    Wanted,
    check_wanted,
    collect,
    expect_text,
    is_utf8,
    line_numbers,
    too_many,
)
from ptpipeline.data.values import write_number
from ptpipeline.errors import DataError
from ptpipeline.foreign import shorten

MAX_LINE = 64 * 2**20  # characters
LOOKED_AT = 1000  # rows that tell the names of the columns
MAX_COLUMNS = 1000  # whose names are remembered for a message

_LOADED = 'json.load(open(sys.argv[1], encoding="utf8"))'
_OBJECT = "the file is one JSON object, and not one for each row; write one object a line"
_LISTED = f"python -c 'import json, sys; [print(json.dumps(row)) for row in {_LOADED}KEY]' FILE > NEW.jsonl"
_ARRAY = f"the file is one JSON array; write one object a line, for example by: {_LISTED.replace('KEY', '')}"
SQUAD = (  # the data sets of questions about paragraphs, as SQuAD writes them: of ARTICLES, a row for each question
    "python -c 'import json, sys; "
    '[print(json.dumps({"title": article.get("title"), "context": part["context"], "question": one["question"], '
    '"answer": [*one.get("answers", []), {}][0].get("text")})) for article in ARTICLES for part in '
    'article["paragraphs"] for one in part["qas"]]\' FILE > NEW.jsonl'
)
_TABLED = (
    ', for example by: python -c \'import json, sys; table = json.load(open(sys.argv[1], encoding="utf8")); '
    '[print(json.dumps(dict(zip(table["columns"], row)))) for row in table[KEY]]\' FILE > NEW.jsonl'
)
_KEYED = (
    ", for example by: python -c 'import json, sys; "
    '[print(json.dumps({"id": key, **row})) for key, row in json.load(open(sys.argv[1], encoding="utf8")).items()]\' '
    "FILE > NEW.jsonl"
)
_COLUMNS = (
    ", for example by: python -c 'import json, pandas, sys; "
    'pandas.DataFrame(json.load(open(sys.argv[1], encoding="utf8")), dtype=object)'
    '.to_json(sys.argv[2], orient="records", lines=True, force_ascii=False)\' FILE NEW.jsonl'
)
_SPREAD = (
    "write each object in one line, for example by: python -c 'import json, sys; "
    'text = open(sys.argv[1], encoding="utf8").read().strip(); read = json.JSONDecoder().raw_decode; '
    '[print(json.dumps((one := read(text))[0])) or (text := text[one[1]:].lstrip()) for _ in iter(lambda: text > "", '
    "False)]' FILE > NEW.jsonl"
)
_NAMED = (
    "; name the values of each list in their order, such as text and label, by: python -c 'import json, sys; "
    '[print(json.dumps(dict(zip(sys.argv[2].split(","), row)))) for row in ROWS]\' FILE text,label > NEW.jsonl'
)
_PLAIN = (
    "; write each text as an object by: python -c 'import json, sys; "
    '[print(json.dumps({"text": row})) for row in ROWS]\' FILE > NEW.jsonl'
)
_LISTS = (
    "write one object a line by: python -c 'import json, sys; [print(json.dumps(row)) for line in "
    'open(sys.argv[1], encoding="utf8") if line.strip() for rows in [json.loads(line)] for row in '
    "(rows if isinstance(rows, list) else [rows])]' FILE > NEW.jsonl"
)
_COMMENT = "begins a comment, which JSON has not: delete it"
_PYTHON = (
    "is an object as Python prints it; write each as JSON by: python -c 'import ast, json, sys; "
    '[print(json.dumps(ast.literal_eval(line.strip()))) for line in open(sys.argv[1], encoding="utf8") if '
    "line.strip()]' FILE > NEW.jsonl"
)
_BEGUN = "has something in front of its object; take it out by: sed 's/^[^{]*//' FILE > NEW.jsonl"
_COMMA = "take the commas between the objects out, for example by: sed 's/,[[:space:]]*$//' FILE > NEW"
_BEFORE, _BEHIND = "\ufeff\x1e", "\x1a"  # an object: marks, the record separator of RFC 7464; the end of a file in DOS
_KINDS = {bool: "booleans", list: "lists", dict: "objects"}


class _Integer(str):
    """The digits of a number without point."""


class _Number(str):
    """The digits of any other number."""


class _Repeated(dict[str, Any]):
    """An object in which a name stands twice; `twice` are these names."""

    twice: frozenset[str]


def read_json_lines(name: str, path: Path, wanted: Sequence[Wanted]) -> Table:
    """Return the wanted columns of a file of JSON Lines, and the line of each row.

    Raises DataError naming the line if it is no JSON object, or a wanted cell is not what its field needs.
    """
    lines, names = line_numbers(), dict[str, None]()
    cells: dict[str, list[str | None]] = {one.column: [] for one in wanted}
    kinds: dict[str, dict[str, None]] = {one.column: {} for one in wanted}
    columns = {one.column: one for one in sorted(wanted, key=lambda one: one.text)}  # as text, if two fields name it
    adders = [(one, collect(cells[name]), kinds[name], cells[name]) for name, one in columns.items()]
    for number, row in _rows(name, path, [one.column for one in wanted]):
        lines.append(number)
        if not names.keys() >= row.keys() and len(names) < MAX_COLUMNS:
            names.update(dict.fromkeys(row))
        if isinstance(row, _Repeated):
            _check_repeated(name, number, row, wanted)
        for one, add, kind, column in adders:
            value = row.get(one.column)
            if type(value) is str:
                kind["text"] = None
                add(value)
            elif value is None:
                column.append(None)
            else:
                add(_write(name, number, one, value, kind))
        if len(lines) > MAX_ROWS:
            raise too_many(name)
    if lines:
        check_wanted(name, list(names), wanted)
    read = {column: Column(values, tuple(kinds[column])) for column, values in cells.items()}
    return Table(list(names), read, Places("line", lines))


def _write(name: str, number: int, one: Wanted, value: Any, kinds: dict[str, None]) -> str:
    """Return a value that is no text as a person would write it."""
    kind = "integers" if isinstance(value, _Integer) else _KINDS.get(type(value), "numbers")
    if one.text or kind in ("lists", "objects"):
        raise DataError(f"{name}: line {number}: {expect_text(one, kind)}")
    kinds[kind] = None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, _Integer) else write_number(value)


# ---------------------------------------------------------------- lines


def list_keys(name: str, path: Path) -> Listed:
    """Return the keys of the first rows whose values are texts, numbers, booleans or missing, and the other keys."""
    nested: dict[str, bool] = {}
    for _, row in islice(_rows(name, path, ()), LOOKED_AT):
        for key, value in row.items():
            nested[key] = nested.get(key, False) or isinstance(value, dict | list)
    return Listed([key for key in nested if not nested[key]], [key for key in nested if nested[key]])


def _rows(name: str, path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each object with the number of its line; DataError if there is one alone, in which all rows stand."""
    objects = _objects(name, path)
    first = list(islice(objects, 1))
    if first and any(isinstance(value, dict | list) for value in first[0][1].values()):
        first += islice(objects, 1)
        columns = [first[0][1].get(column, {}) for column in wanted] or first[0][1].values()
        if len(first) == 1 and any(isinstance(value, dict | list) for value in columns):
            raise DataError(f"{name}: not readable as jsonl: {_OBJECT}{_advise_object(first[0][1])}")
    yield from chain(first, objects)


def _advise_object(row: dict[str, Any]) -> str:
    """Return the command that makes rows of an object: of its columns, of the longest list of objects or lists in it,
    or of the objects that it names.
    """
    key = next((key for key in ("data", "rows") if _holds(row.get(key), list)), None)
    if key is not None and _holds(row.get("columns"), str):
        return _TABLED.replace("KEY", json.dumps(key))
    columns = [value for name, value in row.items() if _is_column(name, value)]
    plain = any(not _holds(value, list) for value in columns)
    if plain and len(columns) == len(row) and len({len(value) for value in columns}) == 1:
        return _COLUMNS
    lists = _find_lists(row)
    if ("data",) in lists and isinstance(row["data"][0], dict) and "paragraphs" in row["data"][0]:
        articles = f'{_LOADED}["data"]'
        return f", for example a row for each question by: {SQUAD.replace('ARTICLES', articles)}"
    if lists:
        place = "".join(f"[{json.dumps(key)}]" for key in lists[0])
        name = shorten(".".join(lists[0]))
        if "'" in place or not all(map(is_utf8, lists[0])):
            return ""
        if _holds(reduce(lambda value, key: value[key], lists[0], row), list):
            return f", for example those of {name}{_NAMED.replace('ROWS', f'{_LOADED}{place}')}"
        return f", for example those of {name} by: {_LISTED.replace('KEY', place)}"
    return _KEYED if len(row) > 1 and all(map(_has_texts, row.values())) else ""


def _find_lists(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the keys that lead to each list of objects or lists, the longest list first."""
    found: list[tuple[int, tuple[str, ...]]] = []

    def look(value: dict[str, Any], at: tuple[str, ...]) -> None:
        for key, inner in value.items():
            if isinstance(inner, list) and any(isinstance(one, dict | list) for one in inner):
                found.append((len(inner), (*at, key)))
            elif isinstance(inner, dict):
                look(inner, (*at, key))

    look(row, ())
    return [keys for _, keys in sorted(found, key=lambda one: -one[0])]


def _has_texts(value: Any) -> bool:
    return isinstance(value, dict) and any(type(one) is str for one in value.values())


def _is_column(key: str, value: Any) -> bool:
    """Whether it is a list of cells, or cells by the number of their row."""
    if isinstance(value, list):
        return not _holds(value, dict)
    return isinstance(value, dict) and all(map(str.isdigit, value)) and not key.isdigit()


def _objects(name: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each object with the number of its line."""
    decoder = json.JSONDecoder(
        parse_int=_Integer, parse_float=_Number, parse_constant=_constant, object_pairs_hook=_object
    )
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise DataError(f"{name}: line {number} has more than {MAX_LINE} characters; expected one object")
            plain = line.lstrip(_BEFORE).rstrip(_BEHIND)
            if not plain.strip():
                continue
            try:
                row = decoder.decode(plain)
            except (ValueError, RecursionError) as error:
                _refuse(name, path, number, plain, error)
            if not isinstance(row, dict):
                array = isinstance(row, list) and number == 1 and not file.read(MAX_LINE).strip()
                if array and not row:
                    raise NoRows(f"{name}: there are no rows")
                reason = _describe_list(row, array) if number == 1 else ""
                reason = reason or f"line {number} is {_name_other(row)}"
                raise DataError(f"{name}: not readable as jsonl: {reason}")
            yield number, row


def _name_other(row: Any) -> str:
    """Return what a line is that is no object, with the command that writes its objects if it is a list of these."""
    listed = isinstance(row, list) and any(isinstance(one, dict) for one in row)
    return f"a list of objects; {_LISTS}" if listed else "not a JSON object"


def _describe_list(row: Any, array: bool) -> str:
    """Return what to do with a list that holds all rows (`array`), or with a line that is no object; nothing if it may
    be a slip.
    """
    rows = _LOADED if array else 'map(json.loads, filter(str.strip, open(sys.argv[1], encoding="utf8")))'
    begin = "the file is one JSON array of {}" if array else "the lines are JSON {}, and no objects"
    first = next(iter(row), None) if array else row
    if type(first) is str:
        return begin.format("texts") + _PLAIN.replace("ROWS", rows)
    if isinstance(first, list) and (array or not any(isinstance(value, dict | list) for value in first)):
        return begin.format("lists") + _NAMED.replace("ROWS", rows)
    return _ARRAY if array else ""


def _holds(value: Any, kind: type) -> bool:
    """Whether it is a list whose first value is of that type."""
    return isinstance(value, list) and isinstance(next(iter(value), None), kind)


def _describe_array(path: Path) -> str:
    """Return what to do with a file that is one array: the command that makes rows of it fails if it is no JSON."""
    if path.stat().st_size > MAX_LINE:
        return _ARRAY
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        return _describe_list(json.loads(text, parse_int=_Integer), array=True)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        return f"the file is one JSON array, but no valid JSON: {place}; correct it there, then write one object a line"
    except (ValueError, RecursionError):
        return "the file is one JSON array that is nested too deep; write one object a line"


def _refuse(name: str, path: Path, number: int, line: str, error: Exception) -> NoReturn:
    rest = line[error.pos :].strip() if isinstance(error, json.JSONDecodeError) else ""
    begin = line.lstrip()[:2]
    if number == 1 and begin[0] == "[":
        reason = _describe_array(path)
    elif begin in ("//", "/*") or begin[0] == "#":
        reason = f"line {number} {_COMMENT}"
    elif begin == "{'":
        reason = f"line {number} {_PYTHON}"
    elif line.strip() == "{":
        reason = f"line {number} ends within an object; {_SPREAD}"
    elif number == 1 and is_page(line):
        reason = PAGE
    elif begin[0] != "{" and _is_object(line[line.find("{") :]):
        reason = f"line {number} {_BEGUN}"
    elif number == 1 and line.lstrip()[0] not in "{[":
        reason = "line 1 is not a JSON object; if the file is a table of text, set data.source.format: csv"
    elif rest == ",":
        reason = f"line {number} ends with a comma; {_COMMA}"
    elif isinstance(error, json.JSONDecodeError):
        fix = f"the line holds more than one object; {_SPREAD}" if rest[:1] == "{" else "correct or delete the line"
        reason = f"line {number}, column {error.colno}: {error.msg}; {fix}"
    else:
        reason = f"line {number} is nested too deep"
    raise DataError(f"{name}: not readable as jsonl: {reason}") from None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated, seen = _Repeated(found), set[str]()
    repeated.twice = frozenset(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return repeated


def _constant(word: str) -> Any:
    """A cell of NaN is what pandas writes for a missing one; Infinity is a number without digits."""
    return None if word == "NaN" else _Number(word)


def _check_repeated(name: str, number: int, row: _Repeated, wanted: Sequence[Wanted]) -> None:
    for one in wanted:
        if one.column in row.twice:
            raise DataError(
                f"{name}: line {number} names {one.column!r} twice, which data.{one.field} names; leave one of them out"
            )
