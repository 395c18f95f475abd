"""The talk of `ptp init`: shows the columns, asks what was not given, shows what is in the chosen ones, writes."""

import sys
from collections.abc import Mapping
from pathlib import Path

import typer

from flows.cli.render import print_table
from flows.cli.terminal import escape, say
from flows.on_demand.draft import (
    Choice,
    Facts,
    Sketch,
    find_facts,
    guess_label,
    guess_text,
    list_bases,
    look,
    suggest_name,
    write,
)
from ptpipeline.errors import DataError
from ptpipeline.settings import Settings
from ptpipeline.task.advice import advise_task

SHOWN_LABELS = 20


def draft_task(settings: Settings, file: Path, form: str | None, given: Mapping[str, str | None], ask: bool) -> None:
    """Write a task file for `file`; ask for each thing that is not given, if `ask`.

    Raises DataError if nobody can be asked, or a column cannot be guessed, and what `look` and `write` raise.
    """
    if ask and not sys.stdin.isatty() and None in given.values():
        raise DataError("standard input is no terminal, so nobody can be asked: add --yes, or give all options")
    sketch = look(file, form, settings.home)
    say(f"{file}: {sketch.rows} rows")
    print_table([_column_row(one._asdict()) for one in sketch.seen], as_json=False)
    bases = list_bases(settings.tasks)
    text = _choose("text", "The column of texts", given["text"], guess_text(sketch), ask)
    label = _choose("label", "The column of labels", given["label"], guess_label(sketch, text), ask)
    base = _choose("base", f"The base model ({', '.join(bases)})", given["base"], bases[0], ask)
    name = _choose("name", "The task's name", given["name"], suggest_name(file), ask)
    choice = Choice(name, base, text, label)
    facts = find_facts(sketch, choice, settings.tasks)
    _show(facts, sketch)
    if ask and None in given.values() and not typer.confirm(f"Write {settings.tasks / name}.yaml?", default=True):
        return
    path, task = write(sketch, choice, facts, settings)
    for place, sentence in advise_task(task).items():
        say(f"note: {'.'.join(place)}: {sentence}", sys.stderr)
    say(f"wrote {path}; next: `ptp ingest {name}`, then `ptp run {name}`")


def _choose(option: str, question: str, given: str | None, guess: str | None, ask: bool) -> str:
    if given is not None:
        return given
    if ask:
        return str(typer.prompt(question, default=None if guess is None else escape(guess)))
    if guess is None:
        raise DataError(f"no column looks like the {option}: name one with --{option}")
    return guess


def _column_row(seen: Mapping[str, object]) -> dict[str, object]:
    return {**seen, "mean_length": f"{seen['mean_length']:.0f}"}


def _show(facts: Facts, sketch: Sketch) -> None:
    labels = list(facts.labels.items())
    total = sum(facts.labels.values())
    print_table(
        [{"label": label, "rows": count, "share": f"{count / total:.1%}"} for label, count in labels[:SHOWN_LABELS]],
        as_json=False,
    )
    if len(labels) > SHOWN_LABELS:
        say(f"and {len(labels) - SHOWN_LABELS} labels more, the rarest of {labels[-1][1]} rows")
    middle, most = facts.lengths[len(facts.lengths) // 2], facts.lengths[-1]
    say(
        f"texts have {middle} {facts.unit} in the middle and {most} at most; {facts.repeated} of {sketch.rows} repeat "
        f"another; {facts.unlabelled} rows have no label"
    )
