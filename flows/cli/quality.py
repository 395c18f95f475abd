"""Verbs of `ptp` about quality: what the gate requires, and how good versions are."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.app import (
    Json,
    Reference,
    Reveal,
    TaskName,
    app,
    find_kept,
    find_version,
    open_registry,
    spend_look,
    write_file,
)
from flows.cli.display import choose_display
from flows.cli.options import naming_options, read_delimiter
from flows.cli.terminal import log_plainly, say, say_progress

if TYPE_CHECKING:
    from flows.on_demand.diff import Diff
    from flows.on_demand.measure import FileReport
    from flows.stages.context import Context
    from ptpipeline.records.reports import Scores, TextScores

gates = typer.Typer(name="gate", help="Explain what the gate requires of a candidate.", no_args_is_help=True)
app.add_typer(gates)


@gates.command()
def explain(task: TaskName, as_json: Json = False) -> None:
    """Explain what tonight's candidate has to pass.

    It names the test rows, the champion, the look at the rows, and every check.
    """
    from flows.cli.render import print_record, print_table
    from flows.on_demand import preview
    from flows.on_demand.explanation import describe
    from flows.stages.context import Context
    from ptpipeline.settings import load_settings
    from ptpipeline.task.folder import find_task

    settings = load_settings()
    explanation = preview.explain(Context(settings, open_registry()), find_task(settings.tasks, task))
    if as_json:
        print_record(explanation, as_json)
        return
    for sentence in describe(explanation):
        say(sentence)
    rules = [{"check": rule.check, "if not": rule.policy, "asks": rule.asks} for rule in explanation.requirements]
    print_table(rules, as_json)


@app.command()
def evaluate(
    reference: Reference,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE",
            readable=False,
            help="Rows with the columns that the task file names; csv and tsv need a header line.",
        ),
    ],
    form: Annotated[
        Literal["csv", "tsv", "jsonl", "parquet"] | None,
        typer.Option("--format", help="By default the ending of the file's name."),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(metavar="CHARACTER", help="Between the fields of a csv file; by default as in the task file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a version on your own rows.

    The baselines are measured beside it. Nothing is registered or stored, and no look at the test rows is used up.
    """
    from flows.cli.render import print_record
    from flows.on_demand.measure import measure_file
    from ptpipeline.data.local import find_rows_file

    context = _open_context(writing=False)
    version, path = find_version(context.registry, reference), find_rows_file(data)
    with naming_options():
        measured = measure_file(context, version, path, form, read_delimiter(delimiter))
    if as_json:
        print_record(measured, as_json)
    else:
        _print_file(measured)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="TASK@A", help="A version of the task, or one of its aliases.")],
    after: Annotated[str, typer.Argument(metavar="TASK@B", help="Another version of the same task.")],
    texts: Annotated[
        bool, typer.Option("--texts", help="Also print the texts of the rows; they are stored nowhere.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the test rows that two versions answer differently.

    It also prints the paired test. It is no decision of the gate, and no look at the test rows is used up.
    """
    from flows.cli.render import print_record
    from flows.on_demand.diff import diff as compare

    context = _open_context(writing=True)
    old, new = (find_version(context.registry, reference) for reference in (before, after))
    difference = compare(context, old, new, texts)
    if as_json:
        print_record(difference, as_json)
    else:
        _print_diff(difference)


@app.command()
def report(
    reference: Reference,
    to: Annotated[
        Path,
        typer.Option("--to", metavar="FILE", readable=False, help="Write to this file; an existing one is replaced."),
    ],
    reveal: Reveal = False,
) -> None:
    """Write a version's report as one HTML file.

    A browser opens it without a server.
    """
    from registry.card.page import render_page
    from registry.versions.publish import load_card

    registry = open_registry(writing=reveal)
    task, number = find_version(registry, reference)
    version = find_kept(registry, task, number)
    if reveal:
        spend_look(version)
    say(str(write_file(to, render_page(load_card(registry, task, version.digest), version))))


@app.command()
def neighbours(
    reference: Reference,
    text: Annotated[
        str | None,
        typer.Option(
            "--wayward",
            metavar="TEXT",
            help="Train the task again, pulled towards this unrelated text, to see what such words are worth.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the tokens nearest to a version's virtual tokens.

    A warning says how little these words mean.
    """
    from flows.cli.render import print_record, print_table
    from flows.on_demand.interpret import rank_neighbours, tabulate_neighbours, tabulate_wayward, train_wayward
    from flows.stages.context import Context
    from ptpipeline.prompts.interpretation import Neighbours
    from ptpipeline.settings import load_settings

    context = Context(load_settings(), open_registry(writing=text is not None), say_progress, choose_display())
    task, number = find_version(context.registry, reference)
    result = rank_neighbours(context, task, number) if text is None else train_wayward(context, task, number, text)
    if as_json:
        print_record(result, as_json)
        return
    rows = tabulate_neighbours(result) if isinstance(result, Neighbours) else tabulate_wayward(result)
    print_table(rows, as_json, getattr(result, "absent", None) or "none")
    say(result.warning, sys.stderr)


def _open_context(writing: bool) -> "Context":
    from flows.stages.context import Context
    from ptpipeline.settings import load_settings

    log_plainly()
    return Context(load_settings(), open_registry(writing), say_progress, choose_display())


def _print_file(measured: "FileReport") -> None:
    from flows.cli.render import print_table
    from ptpipeline.records.reports import Scores

    left_out = ", ".join(f"{reason} {count}" for reason, count in measured.left_out.items()) or "none"
    say(
        f"{measured.task}@{measured.version} on {measured.rows} rows of {measured.file}; left out: {left_out}; "
        "in brackets: 95% intervals over the rows; nothing is stored"
    )
    if measured.trained_on:
        say(f"the version was trained on {measured.trained_on} of these rows, so its figures are too good")
    print_table(
        [
            _figure_row(name.replace("_", "-"), scores, measured.interval[name])
            for name, scores in measured.scores.items()
        ],
        as_json=False,
    )
    prompt = measured.scores["prompt"]
    if isinstance(prompt, Scores):
        print_table(
            [
                {"label": label, **figures, "support": int(figures["support"]), "answered": prompt.predicted[label]}
                for label, figures in prompt.per_label.items()
            ],
            as_json=False,
        )


def _figure_row(name: str, scores: "Scores | TextScores", interval: dict[str, tuple[float, float]]) -> dict[str, Any]:
    from ptpipeline.records.reports import Scores, title_of

    row: dict[str, Any] = {"": name}
    for metric, value in scores.figures().items():
        low, high = interval[metric]
        row[title_of(metric)] = f"{value:.4f} ({low:.4f} to {high:.4f})"
    return row | {"calibration error": scores.calibration_error if isinstance(scores, Scores) else None}


def _print_diff(difference: "Diff") -> None:
    from flows.cli.render import print_table
    from ptpipeline.gate.decide import describe_difference

    better, dropped = difference.better, difference.better.dropped
    say(
        f"{difference.task}: version {difference.after} against version {difference.before} on {better.rows} test rows "
        f"of snapshot {difference.snapshot[:12]}"
        + (f"; {dropped} rows are left out: one of the versions was trained on them" if dropped else "")
    )
    say(f"{difference.after} better than {difference.before}: {describe_difference(difference.better)}")
    say(f"{difference.before} better than {difference.after}: {describe_difference(difference.worse)}")
    say(difference.note)
    print_table([tally.to_json() for tally in difference.tallies], as_json=False)
    print_table([row.to_json() for row in difference.changed], as_json=False, empty="no row is answered differently")
