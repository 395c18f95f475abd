"""The verbs of `ptp` about quality: what the gate asks, and how good versions are."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.app import Json, Reference, TaskName, app, numbered, open_registry
from ptpipeline.errors import NotFound

if TYPE_CHECKING:
    from flows.on_demand.measure import Diff, FileReport
    from flows.stages.context import Context
    from ptpipeline.records import Scores, TextScores

gates = typer.Typer(name="gate", help="What the gate asks of a candidate.", no_args_is_help=True)
app.add_typer(gates)


@gates.command()
def explain(task: TaskName, as_json: Json = False) -> None:
    """What tonight's candidate has to do, in plain words: the rows, the champion, the look, every check."""
    from flows.cli.render import show, show_record
    from flows.on_demand import preview
    from flows.on_demand.explanation import describe
    from flows.stages.context import Context
    from ptpipeline.settings import load_settings
    from ptpipeline.task.task import find_task

    settings = load_settings()
    found = preview.explain(Context(settings, open_registry()), find_task(settings.tasks, task))
    if as_json:
        show_record(found, as_json)
        return
    for sentence in describe(found):
        print(sentence)
    show([{"check": rule.check, "if not": rule.policy, "asks": rule.asks} for rule in found.requirements], as_json)


@app.command()
def evaluate(
    reference: Reference,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Rows with the columns that the task file names; csv and tsv with a header line.",
        ),
    ],
    form: Annotated[
        Literal["csv", "tsv", "jsonl", "parquet"] | None,
        typer.Option("--format", help="By default what the file's name ends with."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a version on rows of your own, beside the baselines; nothing is registered or kept, and no look
    is spent.
    """
    from flows.cli.render import show_record
    from flows.on_demand.measure import VersionRef, measure_file

    context = _opened(writing=False)
    found = measure_file(context, VersionRef(*numbered(context.registry, reference)), data.expanduser(), form)
    if as_json:
        show_record(found, as_json)
    else:
        _print_file(found)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="TASK@A", help="A version of the task, or one of its aliases.")],
    after: Annotated[str, typer.Argument(metavar="TASK@B", help="Another one.")],
    texts: Annotated[
        bool, typer.Option("--texts", help="Print the texts of the rows, too; nothing keeps what is printed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The test rows that two versions answer differently, with the paired test; it is no gate, and no look is spent."""
    from flows.cli.render import show_record
    from flows.on_demand.measure import VersionRef
    from flows.on_demand.measure import diff as compare

    context = _opened(writing=True)
    old, new = (VersionRef(*numbered(context.registry, reference)) for reference in (before, after))
    found = compare(context, old, new, texts)
    if as_json:
        show_record(found, as_json)
    else:
        _print_diff(found)


@app.command()
def report(
    reference: Reference,
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="Where to write it; a file that is there is replaced.")
    ],
) -> None:
    """Write a version's report as one HTML file that opens without a server."""
    from registry.card.page import render_page
    from registry.ledger.tombstone import collected_sentence
    from registry.versions.publish import load_card

    registry = open_registry()
    task, number = numbered(registry, reference)
    version = registry.ledger.version(task, number)
    if version.collected:
        raise NotFound(collected_sentence(task, version.digest))
    path = to.expanduser()
    path.write_bytes(render_page(load_card(registry, task, version.digest), version))
    print(path)


@app.command()
def neighbours(
    reference: Reference,
    text: Annotated[
        str | None,
        typer.Option(
            "--wayward",
            metavar="TEXT",
            help="Train the task anew with a pull towards this unrelated text: what are such words worth?",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """The vocabulary tokens nearest to a version's virtual tokens, with a warning about them."""
    from flows.cli.render import show, show_record
    from flows.on_demand.interpret import rank_neighbours, tabulate_neighbours, tabulate_wayward, train_wayward
    from flows.stages.context import Context
    from ptpipeline.prompts.interpretation import Neighbours
    from ptpipeline.settings import load_settings

    context = Context(load_settings(), open_registry(writing=text is not None), _tell)
    task, number = numbered(context.registry, reference)
    found = rank_neighbours(context, task, number) if text is None else train_wayward(context, task, number, text)
    if as_json:
        show_record(found, as_json)
        return
    show(
        tabulate_neighbours(found) if isinstance(found, Neighbours) else tabulate_wayward(found),
        as_json,
        getattr(found, "absent", None) or "none",
    )
    print(found.warning, file=sys.stderr)


def _opened(writing: bool) -> "Context":
    from flows.stages.context import Context
    from ptpipeline.settings import load_settings

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    return Context(load_settings(), open_registry(writing), _tell)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_file(found: "FileReport") -> None:
    from flows.cli.render import show
    from ptpipeline.records import Scores

    left = ", ".join(f"{name} {count}" for name, count in found.left_out.items())
    print(
        f"{found.task}@{found.version} on {found.rows} rows of {found.file}; left out: {left or 'none'}; 95% "
        "intervals over the rows; nothing is kept"
    )
    if found.trained_on:
        print(f"{found.trained_on} of these rows the version was trained on: they flatter it")
    show(
        [_figures(name.replace("_", "-"), scores, found.interval[name]) for name, scores in found.scores.items()],
        as_json=False,
    )
    prompt = found.scores["prompt"]
    if isinstance(prompt, Scores):
        show(
            [
                {"label": label, **figures, "answered": prompt.predicted[label]}
                for label, figures in prompt.per_label.items()
            ],
            as_json=False,
        )


def _figures(name: str, scores: "Scores | TextScores", interval: dict[str, tuple[float, float]]) -> dict[str, Any]:
    from ptpipeline.records import Scores, title_of

    found: dict[str, Any] = {"": name}
    for metric, value in scores.figures().items():
        low, high = interval[metric]
        found[title_of(metric)] = f"{value:.4f} ({low:.4f} to {high:.4f})"
    return found | {"calibration error": scores.calibration_error if isinstance(scores, Scores) else None}


def _print_diff(found: "Diff") -> None:
    from flows.cli.render import show
    from ptpipeline.gate.decide import shown

    print(
        f"{found.task}: version {found.after} against version {found.before} on {found.better.rows} test rows "
        f"of snapshot {found.snapshot[:12]}"
        + (f"; {found.better.dropped} that one of them was trained on are left out" if found.better.dropped else "")
    )
    print(f"{found.after} better than {found.before}: {shown(found.better)}")
    print(f"{found.before} better than {found.after}: {shown(found.worse)}")
    print(found.note)
    show([tally.to_json() for tally in found.tallies], as_json=False)
    show([row.to_json() for row in found.changed], as_json=False, empty="no row is answered differently")
