"""The rows of the tasks, from Debian's archive of packages and from WordNet, which is one of these packages.

Everything is chosen by hash, so each machine with the same release of Debian makes the same rows.
"""

import csv
import gzip
import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

SECTIONS = ("admin", "doc", "fonts", "games", "science", "sound", "video", "web")
KINDS = {  # WordNet's files of nouns (lexnames(5WN)) by the word that names them
    "04": "act", "05": "animal", "06": "artifact", "14": "group", "15": "location", "18": "person", "20": "plant",
    "26": "state",
}  # fmt: skip
MOST = 2_000  # rows of each task's table
_LONGEST = 300  # characters of a description

Row = TypeVar("Row")


class Package(NamedTuple):
    """A package of Debian's main archive. source: what it was built from, which many packages share."""

    name: str
    source: str
    section: str
    synopsis: str
    description: str


def read_packages(folder: Path) -> list[Package]:
    """Return the packages of the release that apt's sources on this machine name, fetched into the folder.

    Raises subprocess.CalledProcessError if apt fails.
    """
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    if not list((folder / "lists").glob("*Translation-en*")):
        _run_apt(folder, "update")
    texts = {
        entry["Description-md5"]: entry["Description-en"]
        for entry in _read_entries(folder, "*_main_i18n_Translation-en*")
        if "Description-en" in entry
    }
    found = dict[str, Package]()
    for entry in _read_entries(folder, "*_main_binary-*_Packages*"):
        text = texts.get(entry.get("Description-md5", ""), "")
        synopsis, _, description = text.partition("\n")
        source = entry.get("Source", entry["Package"]).partition(" ")[0]
        if description:
            found[entry["Package"]] = Package(
                entry["Package"], source, entry.get("Section", ""), synopsis.strip(), _join(description)
            )
    return _shuffle(found.values())


def write_matches(packages: list[Package], path: Path) -> None:
    """Write descriptions beside their own synopsis, or that of another package of the same section, half and half."""
    rows, seen = [], set[str]()
    by_section = {section: [one for one in packages if one.section == section] for section in SECTIONS}
    for section in SECTIONS:
        for one, other in zip(by_section[section], by_section[section][1:], strict=False):
            if one.source in seen or one.source == other.source:
                continue
            seen.add(one.source)
            own = _draw(one.name) < 0.5
            rows.append([(one if own else other).synopsis, one.description, "yes" if own else "no"])
    _write_csv(path, ["synopsis", "description", "fits"], _shuffle(rows)[:MOST])


def write_sections(packages: list[Package], path: Path) -> None:
    """Write descriptions with their section and the split that is given: by source package, 70, 10 and 20 %."""
    rows = []
    for one in packages:
        if one.section in SECTIONS:
            draw = _draw(one.source)
            part = "train" if draw < 0.7 else "validation" if draw < 0.8 else "test"
            rows.append([one.description, one.section, part])
    _write_csv(path, ["text", "section", "part"], _shuffle(rows)[:MOST])


def read_glosses(folder: Path) -> list[tuple[str, str]]:
    """Return definitions of nouns and the kind of thing that they define, from the package wordnet-base.

    Raises subprocess.CalledProcessError if apt or dpkg-deb fails.
    """
    if not (archives := list(folder.glob("wordnet-base_*.deb"))):
        _run_apt(folder, "download", "wordnet-base")
        archives = list(folder.glob("wordnet-base_*.deb"))
    command = ["dpkg-deb", "--fsys-tarfile", archives[0].name]
    packed = subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout
    taken = subprocess.run(
        ["tar", "xO", "./usr/share/wordnet/data.noun"], input=packed, capture_output=True, check=True
    )
    rows = list[tuple[str, str]]()
    for line in taken.stdout.decode().splitlines():
        if (found := re.match(r"\d{8} (\d\d) n .* \| ([^;]+)", line)) and found[1] in KINDS:
            rows.append((found[2].strip(), KINDS[found[1]]))
    unique = {text: (text, kind) for text, kind in rows}
    return _shuffle(unique.values())


def pack_lines(rows: Iterable[tuple[str, str]]) -> bytes:
    """Return rows as JSON Lines under gzip."""
    lines = [json.dumps({"gloss": text, "kind": kind}) for text, kind in rows]
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


def _run_apt(folder: Path, *command: str) -> None:
    options = [f"Dir::State::lists={folder / 'lists'}", f"Dir::Cache={folder / 'cache'}", "Acquire::Languages=en"]
    given = [word for option in options for word in ("-o", option)]
    subprocess.run(["apt-get", "-qq", *given, *command], cwd=folder, check=True)


def _read_entries(folder: Path, pattern: str) -> Iterator[dict[str, str]]:
    """The entries of apt's lists of that name; fields that go over several lines keep their line ends."""
    for path in sorted((folder / "lists").glob(pattern)):
        command = ["/usr/lib/apt/apt-helper", "cat-file", str(path)]
        text = subprocess.run(command, capture_output=True, check=True).stdout.decode()
        for entry in text.split("\n\n"):
            fields = re.findall(r"^([A-Za-z0-9-]+): ?((?:.*)(?:\n .*)*)", entry, re.MULTILINE)
            if fields:
                yield dict(fields)


def _join(description: str) -> str:
    """Return the first paragraphs of a description as one line."""
    paragraphs = re.sub(r"\n \.\n", "\n", description)
    text = " ".join(line.strip() for line in paragraphs.splitlines() if line.strip() != ".")
    return text[:_LONGEST]


def _draw(word: str) -> float:
    """A number from 0 to 1 that is the same for each use of a word."""
    return int(hashlib.sha256(word.encode()).hexdigest()[:8], 16) / 2**32


def _shuffle(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: _draw(repr(row)))


def _write_csv(path: Path, head: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
