"""Rows in HTML, XML, YAML, SQL and ARFF, which are not read: how such a file is known, and what makes rows of it."""

import re
from typing import NamedTuple


class Kind(NamedTuple):
    """What a file is that is not of the expected format, and what to do with it."""

    name: str
    fix: str


# What may stand in front any number of times is passed for good (`*+`): a comment that might end at each later end of
# one would be tried in all ways, which takes for ever.
_TAG = r"<([A-Za-z_][\w.:-]*)(?:\s[^<>]*)?>"
_ELEMENTS = re.compile(rf"\s*(?:<!--.*?-->\s*)*+{_TAG}\s*<[A-Za-z_!]", re.DOTALL)
_LIST = re.compile(r"(?:[ \t]*(?:#.*)?\n|---.*\n)*- [\w\"' -]+:(?: .*)?\n(?:[ \t]*\n)* +[\w\"' -]+:")

# A row is one of the most brothers of one name; a value is in the column of its path, as `advise_nested` calls them.
XML = Kind(
    "XML",
    "if its elements are rows, write each as a line of JSON by: "
    "python -c 'import collections, json, sys, xml.etree.ElementTree as e; tree = e.parse(sys.argv[1]); "
    'name = lambda x: x.tag.rpartition("}")[2]; '
    "tag = max((n, tag) for x in tree.iter() for tag, n in collections.Counter(y.tag for y in x).items())[1]; "
    'own = lambda x: "".join(x.itertext() if any((y or "").strip() for y in [x.text, *(z.tail for z in x)]) else "")'
    ".strip(); "
    'unfold = lambda x, at: {**({at[:-1] or "text": own(x)} if own(x) else {}), **{at + k: v for k, v in '
    "x.attrib.items()}, **{k: v for n, y in enumerate(x) for k, v in unfold(y, at + name(y) + "
    '(f".{n}." if len(x.findall(y.tag)) > 1 else ".")).items()}}; '
    '[print(json.dumps(unfold(row, ""))) for row in tree.iter(tag)]\' FILE > NEW.jsonl; if it is a page or the answer '
    "of a server, download the rows themselves",
)
HTML = Kind("a page of HTML", "download the rows themselves")
TABLES = Kind(
    HTML.name,
    f"{HTML.fix}, or write the largest table in it as csv by: python -c 'import pandas, sys; "
    'max(pandas.read_html(sys.argv[1], encoding="utf8", keep_default_na=False), key=len)'
    ".to_csv(sys.argv[2], index=False)' FILE NEW.csv, which needs lxml (pip install lxml)",
)
_PAGE = re.compile(r"\s*(?:<!doctype html|<(?:html|table)\b[^>]*>\s*<|<\?xml.*<html)", re.IGNORECASE | re.DOTALL)
YAML = Kind(
    "YAML",
    "write its rows as JSON Lines by: python -c 'import json, sys; from ruamel.yaml import YAML; "
    'rows = YAML(typ="base").load(open(sys.argv[1], encoding="utf8")); '
    "[print(json.dumps(row)) for row in (rows if isinstance(rows, list) else "
    "max(rows.values(), key=lambda one: isinstance(one, list) * len(one)))]' FILE > NEW.jsonl",
)

_DUMP = re.compile(  # comments and settings above the first statement that makes something
    r"(?:\s|--.*\n|/\*(?:.|\n)*?\*/;?|(?:SET|PRAGMA|BEGIN|USE|LOCK|DROP|SELECT)\b[^;]*;)*+"
    r"(?:CREATE|INSERT)\s(?:[A-Z\s]*\s)?(?:TABLE|INTO|DATABASE|SCHEMA|TYPE|SEQUENCE|EXTENSION)\s[^\n]*[(;]\s*$",
    re.IGNORECASE | re.MULTILINE,
)
SQL = Kind(
    "a dump of SQL",
    "load it into a database (make its tables there first, if it makes none) and write the rows as csv, for example "
    "in SQLite by: sqlite3 NEW.db < FILE && "
    "sqlite3 -header -csv NEW.db 'SELECT * FROM TABLE' > NEW.csv",
)
_RELATION = re.compile(r"(?:\s*(?:%.*)?\n)*+\s*@relation\s", re.IGNORECASE)  # below comments
ARFF = Kind(
    "ARFF, as Weka writes it",
    "write its rows as csv by: python -c 'import csv, re, sys; "
    'head, body = re.split("(?im)^@data.*", open(sys.argv[1], encoding="utf8").read(), maxsplit=1); '
    'lines = [line for line in body.splitlines() if line.strip() and line[0] != "%"]; '
    'quote = chr(39 if re.search(r"(?m)(^|,)\\s*\\x27", body) else 34); '
    'rows = csv.reader(lines, quotechar=quote, escapechar="\\\\", skipinitialspace=True); '
    'names = re.findall(r"(?im)^@attribute\\s+(\\x27.*?\\x27|\\x22.*?\\x22|\\S+)\\s", head); '
    'csv.writer(sys.stdout).writerows([[name.strip("\\x22\\x27") for name in names], *rows])\' FILE > NEW.csv',
)


def find_markup(begin: str, end: str) -> Kind | None:
    """Return HTML, XML, YAML, SQL or ARFF if a file begins and ends so; None if it may be a table of text.

    A first cell may hold elements; so without XML's own first line the last line has to close the first element.
    """
    if _PAGE.match(begin):
        return TABLES if "</table>" in f"{begin}{end}".lower() else HTML
    if begin.lstrip().startswith("<?xml"):
        return XML
    element = _ELEMENTS.match(begin)
    if element is not None and end.rstrip().endswith(f"</{element[1]}>"):
        return XML
    if _DUMP.match(begin) is not None:
        return SQL
    if _RELATION.match(begin) is not None:
        return ARFF
    return YAML if _LIST.match(begin) else None
