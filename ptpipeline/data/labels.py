"""Which label of the task a cell names, and what a message says of cells that name none.

Labels are compared as text. A cell that is no text in its file is found under its other spellings too: `1.0` names the
integer 1, `True` the boolean true, and a number the class that it stands for in a ClassLabel column.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ptpipeline.data.checks import FIX
from ptpipeline.data.sources import SourceRows
from ptpipeline.data.table import is_utf8
from ptpipeline.data.values import write_number
from ptpipeline.task.data import Binned
from ptpipeline.task.labels import draft_words, own_words
from ptpipeline.task.task import Task

MAX_LABEL, MAX_LABEL_WORDS = 40, 5  # of a label that a message shows, in characters and in words
MAX_LABELS = 50  # different ones; more are no labels
SHOWN = 5
MAX_ADVISED = 20  # labels in a line to write
_LATIN = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf",
    "ABEKMHOPCTYXaeopcyxiABEZHIKMNOPTYXo",
)


class Labels:
    """The labels of a task over the column that a source has for them."""

    def __init__(self, task: Task, source: SourceRows) -> None:
        self.rule, self.words = task.data.label, task.labels
        self.kinds, self.columns = source.label_kinds, source.fields.values()
        self.names = dict(_spell(task.labels, source.label_kinds, source.label_codes))

    def find(self, cell: str | None) -> str | None:
        """Return the label that a cell names; None for no label, '' for a number that lies in no bin."""
        if not isinstance(self.rule, Binned):
            return None if cell is None else self.names.get(cell)
        number = _number(cell)
        if number is None:
            return None
        for label, (low, high) in self.rule.bins.items():
            if (low is None or number >= low) and (high is None or number <= high):
                return label
        return ""

    def describe(self, unknown: Iterable[str | None]) -> str:
        """Return the labels that the file has beside those that the task allows, each with its rows."""
        counts = Counter(unknown)
        show = ascii if self._look_alike(counts) else repr
        allowed = "numbers" if isinstance(self.rule, Binned) else _list([show(label) for label in self.words])
        kinds = " and ".join(self.kinds) or "nothing"
        return f"the column holds {kinds}: {self._show(counts, show)}; allowed: {allowed}"

    def _look_alike(self, unknown: Iterable[str | None]) -> bool:
        """Whether a cell that names no label looks like one that is allowed, but for how its letters are composed, or
        the script that they are of.
        """
        allowed = set(map(write_latin, self.words))
        return any(write_latin(cell) in allowed for cell in unknown if cell)

    def advise(self, unknown: Iterable[str | None], known: Iterable[str]) -> str:
        """Return the line that makes the task fit the file, or what is to be corrected in the file.

        unknown: the cells that name no label. known: the labels that other rows have.
        """
        found = {cell for cell in unknown if cell}
        if not all(map(is_utf8, found)):
            return "save the file as UTF-8 (\\udc.. stands for a byte that is not)"
        if not found:
            return "give these rows a label"
        used = set(known)
        words = {_fold(label): words for label, words in self.words.items()}
        labels = {label: self.words[label] for label in self.words if label in used}
        labels |= {cell: words.get(_fold(cell), own_words(cell)) for cell in sorted(found)}
        mixed = used and all(map(_is_code, found)) and not any(map(_is_code, used))  # numbers of classes beside names
        if mixed or len(set(map(_fold, labels))) < len(labels):
            return "give each label one spelling in the source"
        plain = self._are_labels(found) and all(map(str.isprintable, found))
        if isinstance(self.rule, Binned) or not plain or not 1 < len(labels) <= MAX_ADVISED:
            return FIX
        drafted = draft_words(labels, labels)
        written = ", ".join(f"{_quote(label)}: {_quote(words)}" for label, words in drafted.items())
        return f"{FIX}, or write in the task labels: {{{written}}}"

    def _show(self, counts: Counter[str | None], show: Callable[[str], str]) -> str:
        """The most frequent labels with their rows; only their number if they read like texts, or one is a text."""
        if not self._are_labels({cell for cell in counts if cell}):
            return f"{len(counts)} different values, which may be no labels"
        shown = [
            f"{'no label' if label is None else show(label)} ({count} {'row' if count == 1 else 'rows'})"
            for label, count in counts.most_common()
        ]
        return _list(shown)

    def _are_labels(self, cells: set[str]) -> bool:
        """Whether a message may show the cells: they are few and short, and no text of a row is among them."""
        if len(cells) > MAX_LABELS or not all(map(_is_label, cells)):
            return False
        return not any(text in cells for column in self.columns for text in column)


def write_latin(label: str) -> str:
    """Return the label with composed letters, those of Cyrillic and Greek that look like Latin ones as these."""
    return unicodedata.normalize("NFC", label).translate(_LATIN)


def _spell(labels: Mapping[str, str], kinds: Sequence[str], codes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each spelling of a cell with the label that it names; a later one wins."""
    for label in labels:
        if "booleans" in kinds:
            yield label.lower(), label
        if {"integers", "numbers"} & set(kinds) and _number(label) is not None:
            yield write_number(label), label
    yield from ((name, code) for name, code in codes.items() if code in labels)
    yield from ((label, label) for label in labels)


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _list(shown: Sequence[str]) -> str:
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more


def _is_label(cell: str) -> bool:
    return len(cell) <= MAX_LABEL and len(cell.split()) <= MAX_LABEL_WORDS


def _is_code(label: str) -> bool:
    return re.fullmatch("-?[0-9]+|true|false", label, re.IGNORECASE) is not None


def _fold(label: str) -> str:
    return " ".join(label.casefold().split())


def _quote(text: str) -> str:
    """The text in the quotes of JSON, which YAML reads the same."""
    return json.dumps(text, ensure_ascii=False)
