"""`ptp init`: shows the columns of a file, asks what was not given, shows what is in the chosen ones, writes a task."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.app import app
from flows.cli.options import naming_options, read_delimiter
from flows.cli.terminal import escape, is_asking, say
from ptpipeline.errors import DataError

if TYPE_CHECKING:
    from flows.on_demand.draft import Choice, Facts
    from flows.on_demand.sketch import Sketch
    from ptpipeline.settings import Settings

SHOWN_LABELS, SHOWN_COLUMNS = 20, 50
_FREE = "; if the answers are texts, name their column with --target (docs/tasks.md, Text generation)"


@app.command()
def init(
    file: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            readable=False,
            help="Rows with a header: csv, tsv, jsonl or parquet; several files of one task, or their folder.",
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="The task's name; by default after the file's.")] = None,
    text: Annotated[str | None, typer.Option("--text", metavar="COLUMN", help="The column of texts.")] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="COLUMN", help="The column of labels.")] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="COLUMN", help="The column of the texts to generate, without labels."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="A base model of base_models.yaml.")] = None,
    form: Annotated[
        Literal["csv", "tsv", "jsonl", "parquet"] | None,
        typer.Option("--format", help="By default the ending of the file's name."),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(metavar="CHARACTER", help="Between the fields of a csv file; by default what parts its lines."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is guessed.")] = False,
) -> None:
    """Write a task file for a file of rows.

    It looks at the columns, guesses which hold the text and the label or target, shows what is in them, and asks.
    Several files are one table, unless their names tell train, dev and test.
    """
    from ptpipeline.settings import load_settings

    if label is not None and target is not None:
        raise DataError("--label and --target are both given; give --target if the answers are texts, else --label")
    given = {"name": name, "base": base, "text": text, "label": label if target is None else target}
    draft_task(load_settings(), file, form, read_delimiter(delimiter), given, not yes, free=target is not None)


def draft_task(
    settings: "Settings",
    given_files: list[Path],
    form: str | None,
    delimiter: str | None,
    given: Mapping[str, str | None],
    ask: bool,
    free: bool = False,
) -> None:
    """Write a task file for the files; ask for each thing that is not given, if `ask`.

    free: the label that is given is a column of texts to generate. Raises DataError if nobody can be asked, or a column
    cannot be guessed, and what `look` and `write` raise.
    """
    from flows.on_demand.doubts import find_doubts
    from flows.on_demand.draft import find_facts, write
    from flows.on_demand.inspection import inspect_task
    from flows.on_demand.several import add_splits, look_at, sort_files

    if ask and not is_asking() and None in given.values():
        raise DataError("standard input is no terminal, so nobody can be asked: add --yes, or give all options")
    with naming_options(named=False):
        files = sort_files(given_files)
        sketches = look_at(files.splits, form, settings.home, delimiter)
    for one in sketches.values():
        say(f"{one.name}: {one.rows} rows")
    _show_columns(sketches["train"])
    choice = _choose_columns(sketches["train"], settings.tasks, given_files, given, ask, free)
    sketch, notes = add_splits(sketches, choice)
    facts = find_facts(sketch, choice, settings.tasks)
    _show(facts, sketch)
    if (
        ask
        and None in given.values()
        and not typer.confirm(f"Write {settings.tasks / choice.name}.yaml?", default=True)
    ):
        return
    path, task = write(sketch, choice, facts, settings)
    notes += [f"{left}: its name tells no split, and it is left out" for left in files.left]
    for doubt in [*notes, *find_doubts(sketch, choice, facts)]:
        say(f"note: {doubt}", sys.stderr)
    found = inspect_task(settings.tasks, task)
    for sentence in [*found.problems, *found.advice]:
        say(f"note: {sentence}", sys.stderr)
    say(f"wrote {path}; next: `ptp ingest {choice.name}`, then `ptp run {choice.name}`")


def _show_columns(sketch: "Sketch") -> None:
    from flows.cli.render import print_table
    from flows.on_demand.sketch import tell_twice
    from ptpipeline.data.table import tell_names

    print_table([_column_row(one._asdict()) for one in sketch.seen[:SHOWN_COLUMNS]], as_json=False)
    if len(sketch.seen) > SHOWN_COLUMNS:
        say(f"and {len(sketch.seen) - SHOWN_COLUMNS} columns more")
    if sketch.twice:
        say(f"columns of one name are not taken: {tell_twice(sketch)}")
    if sketch.unnamed:
        say(
            f"columns without a name are not taken: {sketch.unnamed}; if a title stands above the names of the columns,"
            " delete it"
        )
    if sketch.nested:
        say(f"columns of lists or objects are not taken: {tell_names(sketch.nested)}")


def _choose_columns(
    sketch: "Sketch", tasks: Path, files: list[Path], given: Mapping[str, str | None], ask: bool, free: bool
) -> "Choice":
    """Return what was given, guessed or answered; two columns of texts if their names say so and none was given."""
    from flows.on_demand.doubts import advise_missing
    from flows.on_demand.draft import Choice, list_bases, suggest_name
    from flows.on_demand.sketch import explain_no_label, guess_label, guess_pair, guess_target, guess_text

    bases = list_bases(tasks)
    pair = guess_pair(sketch) if given["text"] is None else None
    more = advise_missing(sketch)
    if given["text"] is None and pair is None and guess_text(sketch) is None and sketch.twice:
        raise DataError(f"no column looks like the text: name one with --text{more}")
    guess = pair[0] if pair else guess_text(sketch)
    text = _choose("text", "The column of texts", given["text"], guess, ask, more)
    second = pair[1] if pair and text == pair[0] else ""
    answer = guess_target(sketch, [text, second] if second else [text]) if given["label"] is None else None
    if answer is not None:
        free = True
        label = _choose("target", "The column of the texts to generate", None, answer, ask)
    else:
        asked, why = "The column of labels", f"{explain_no_label(sketch)}{_FREE}{more}"
        label = _choose("label", asked, given["label"], guess_label(sketch, text), ask, why)
    base = _choose("base", f"The base model ({', '.join(bases)})", given["base"], bases[0], ask)
    name = _choose("name", "The task's name", given["name"], suggest_name(files), ask)
    return Choice(name, base, text, label, second, free)


def _choose(option: str, question: str, given: str | None, guess: str | None, ask: bool, more: str = "") -> str:
    if given is not None:
        return given
    if ask:
        return str(typer.prompt(question, default=None if guess is None else escape(guess)))
    if guess is None:
        raise DataError(f"no column looks like the {option}: name one with --{option}{more}")
    return guess


def _column_row(seen: Mapping[str, object]) -> dict[str, object]:
    return {**seen, "mean_length": f"{seen['mean_length']:.0f}"}


def _show(facts: "Facts", sketch: "Sketch") -> None:
    from flows.cli.render import print_table

    labels = list(facts.labels.items())
    total = sum(facts.labels.values())
    shown = [{"label": label, "rows": count, "share": f"{count / total:.1%}"} for label, count in labels[:SHOWN_LABELS]]
    if shown:
        print_table(shown, as_json=False)
    if len(labels) > SHOWN_LABELS:
        say(f"and {len(labels) - SHOWN_LABELS} labels more, the rarest of {labels[-1][1]} rows")
    middle, most = facts.lengths[len(facts.lengths) // 2], facts.lengths[-1]
    say(
        f"texts have {middle} {facts.unit} in the middle and {most} at most; {facts.repeated} of {sketch.rows} repeat "
        f"another; {facts.unlabelled} rows have no {'label' if labels else 'target'}"
    )
