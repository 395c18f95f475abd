"""What a file of JSON is that does not hold one object a line, and the command that makes rows of it."""

import json
import re
from functools import reduce
from pathlib import Path
from typing import Any

from ptpipeline.data.table import is_utf8
from ptpipeline.foreign import shorten

MAX_READ = 64 * 2**20  # bytes of a file that is looked at as a whole

_LOADED = 'json.load(open(sys.argv[1], encoding="utf8"))'
OBJECT = "the file is one JSON object, and not one for each row; write one object a line"
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
_GROUPED = (
    ", for example, if its names are the labels of the texts in their lists, by: python -c 'import json, sys; "
    '[print(json.dumps({"text": text, "label": label})) for label, texts in '
    'json.load(open(sys.argv[1], encoding="utf8")).items() for text in texts]\' FILE > NEW.jsonl'
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
_ENCODED = (
    "; take them out of their quotes by: python -c 'import json, sys; [print(row) for row in ROWS]' FILE > NEW.jsonl"
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
_SCRIPT = (
    "the file is a script that holds JSON; write its objects one a line by: python -c 'import json, sys; "
    'text = open(sys.argv[1], encoding="utf-8-sig").read(); begin = min(at for at in map(text.find, "[{") if at >= 0); '
    "rows = json.JSONDecoder().raw_decode(text[begin:])[0]; "
    "[print(json.dumps(row)) for row in (rows if isinstance(rows, list) else [rows])]' FILE > NEW.jsonl"
)
_CALL = re.compile(r"[^\[{]{0,200}+")  # what may stand before the JSON of a script: a name and `=` or `(`, or a guard


def advise_object(row: dict[str, Any]) -> str:
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
    if len(row) > 1 and all(_holds(value, str) for value in row.values()):
        return _GROUPED
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


def name_other(row: Any) -> str:
    """Return what a line is that is no object, with the command that writes its objects if it is a list of these."""
    listed = isinstance(row, list) and any(isinstance(one, dict) for one in row)
    return f"a list of objects; {_LISTS}" if listed else "not a JSON object"


def describe_list(row: Any, array: bool) -> str:
    """Return what to do with a list that holds all rows (`array`), or with a line that is no object; nothing if it may
    be a slip.
    """
    rows = _LOADED if array else 'map(json.loads, filter(str.strip, open(sys.argv[1], encoding="utf8")))'
    begin = "the file is one JSON array of {}" if array else "the lines are JSON {}, and no objects"
    first = next(iter(row), None) if array else row
    if type(first) is str and _is_object(first):
        return begin.format("texts that hold objects") + _ENCODED.replace("ROWS", rows)
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
    if path.stat().st_size > MAX_READ:
        return _ARRAY
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        return describe_list(json.loads(text, parse_int=str), array=True)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        return f"the file is one JSON array, but no valid JSON: {place}; correct it there, then write one object a line"
    except (ValueError, RecursionError):
        return "the file is one JSON array that is nested too deep; write one object a line"


def explain(path: Path, number: int, line: str, error: Exception) -> str:
    """Return what is wrong with a line that is no JSON, and what to do about it."""
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
    elif begin[0] != "{" and _is_object(line[line.find("{") :]):
        reason = f"line {number} {_BEGUN}"
    elif number == 1 and line.lstrip()[0] not in "{[" and _is_script(path):
        reason = _SCRIPT
    elif number == 1 and line.lstrip()[0] not in "{[":
        reason = "line 1 is not a JSON object; if the file is a table of text, set data.source.format: csv"
    elif rest == ",":
        reason = f"line {number} ends with a comma; {_COMMA}"
    elif isinstance(error, json.JSONDecodeError):
        fix = f"the line holds more than one object; {_SPREAD}" if rest[:1] == "{" else "correct or delete the line"
        reason = f"line {number}, column {error.colno}: {error.msg}; {fix}"
    else:
        reason = f"line {number} is nested too deep"
    return reason


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_script(path: Path) -> bool:
    """Whether there is one JSON value between the begin of an assignment or a call and its end."""
    if path.stat().st_size > MAX_READ:
        return False
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    begin = _CALL.match(text)
    try:
        value, end = json.JSONDecoder(parse_int=str).raw_decode(text, begin.end() if begin else 0)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list) and not text[end:].strip().strip(");")
