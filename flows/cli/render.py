"""What `ptp` prints: records as aligned tables for people, or one JSON object per line for programs.

Other people's words are in the cells, so control characters are written out there, as `terminal` does in lines; JSON
escapes them anyway.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table

from flows.cli.terminal import say
from ptpipeline.foreign import escape_controls
from ptpipeline.records.base import Record
from ptpipeline.records.data import Snapshot
from ptpipeline.records.prompts import Cost, PromptManifest, Trial, TunedPrompt
from ptpipeline.records.reports import Report, Scores, TextScores, title_of
from ptpipeline.records.serving import Answer
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import PromptVersion
from ptpipeline.task.template import Fields

if TYPE_CHECKING:
    from registry.lineage.trace import Lineage, Origin

Row = Mapping[str, Any] | Record

MAX_COLUMNS = 8  # labels of a report that stand side by side


class VersionDetails(NamedTuple):
    """A version with all that is known about it."""

    version: PromptVersion
    manifest: PromptManifest
    training: TunedPrompt | None
    report: Report | None
    verdict: Verdict | None


def print_table(rows: Sequence[Row], as_json: bool, empty: str = "none") -> None:
    """Print one line per record, without the columns that are empty in every line; `empty` if there are no records."""
    plain = [_plain(row) for row in rows]
    if as_json:
        for row in plain:
            print(json.dumps(row))
        return
    if not plain:
        say(empty, sys.stderr)
        return
    named = dict.fromkeys(name for row in plain for name in row)  # a failed task's row has fewer than the others
    columns = [name for name in named if any(row.get(name) not in (None, "") for row in plain)]
    console = _console()
    lines = [[_cell(row.get(name)) for name in columns] for row in plain]
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = [escape_controls(name.replace("_", " ")) for name in columns]
    widths = _column_widths([headings, *lines], console.width - 2 * (len(columns) - 1))
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, overflow="fold", width=width)
    for line in lines:
        table.add_row(*line)
    console.print(table)


def _column_widths(lines: list[list[str]], available: int) -> list[int | None]:
    """Widths that break no word, if there is room for that; else None, which lets rich break words."""
    cells = list(zip(*lines, strict=True))
    full = [max(map(len, column)) for column in cells]
    least = [max(len(word) for cell in column for word in cell.split() or [""]) for column in cells]
    if sum(full) <= available or sum(least) > available:
        return [None] * len(cells)
    spare, wanted = available - sum(least), sum(full) - sum(least)
    return [low + spare * (high - low) // wanted for low, high in zip(least, full, strict=True)]


def print_record(record: Row, as_json: bool) -> None:
    """Print one record, a field per line."""
    plain = _plain(record)
    if as_json:
        print(json.dumps(plain))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in plain.items():
        table.add_row(escape_controls(name.replace("_", " ")), _cell(value))
    _console().print(table)


def print_snapshot(snapshot: Snapshot, as_json: bool) -> None:
    """Print the rows of each label and split, then what the checks found, no line wider than the terminal."""
    if as_json:
        print_record(snapshot, as_json)
        return
    splits, console = snapshot.splits(), _console()
    console.print(escape_controls(f"{snapshot.task}: snapshot {snapshot.digest[:12]} of {snapshot.source}"))
    rows: list[Row] = [
        {"label": label, **{name: info.labels.get(label, 0) for name, info in splits.items()}}
        for label in snapshot.train.labels
    ]
    rows.append({"label": "all rows", **{name: info.rows for name, info in splits.items()}})
    console.print()
    print_table(rows, as_json=False)
    found = [check for check in snapshot.checks if check.count]
    console.print()
    print_table(
        [{"check": one.name, "rows": one.count, "policy": one.policy, "found": one.detail} for one in found],
        as_json=False,
        empty="no check found anything",
    )
    quiet = ", ".join(check.name for check in snapshot.checks if not check.count and check.outcome != "off")
    off = ", ".join(check.name for check in snapshot.checks if check.outcome == "off")
    for sentence in (f"nothing found by {quiet}" if quiet else "", f"off: {off}" if off else ""):
        if sentence:
            console.print(escape_controls(sentence))


def print_version(details: VersionDetails, as_json: bool) -> None:
    """Print a version's manifest, training, report and verdict."""
    if as_json:
        parts = details._asdict()
        print(json.dumps({name: part.to_json() if part else None for name, part in parts.items()}))
        return
    _print_manifest(details.version, details.manifest)
    if details.training and details.training.steps:
        _print_training(details.training)
    if details.report:
        _print_report(details.report)
    if details.verdict:
        _print_verdict(details.verdict, details.version.verdict)


def _print_manifest(version: PromptVersion, manifest: PromptManifest) -> None:
    print_record(
        {
            "version": f"{version.task}@{version.number}",
            "digest": version.digest,
            "registered": version.registered_at,
            "method": _describe_prompt(manifest),
            "base model": f"{manifest.base_model.name} {manifest.base_model.fingerprint[:12]}",
            "template": json.dumps(manifest.template),
            "answers": manifest.labels or manifest.answers,
            "snapshot": manifest.snapshot,
        },
        as_json=False,
    )


def _print_training(tuned: TunedPrompt) -> None:
    say(f"trained {tuned.steps} steps in {tuned.seconds:.0f} s; kept step {tuned.best_step}, dev {tuned.best_dev:.4f}")
    for warning in tuned.warnings:
        say(warning)
    if tuned.rule:
        say(tuned.rule)
    if tuned.trials:
        print_table([_trial_row(trial) for trial in tuned.trials], as_json=False)
    elif tuned.cost:
        say("cost: " + ", ".join(f"{value:,} {name}" for name, value in _cost_columns(tuned.cost).items()))


def _trial_row(trial: Trial) -> Row:
    return {
        "trial": trial.name,
        "best dev": trial.best_dev,
        "at step": trial.best_step,
        **_cost_columns(trial.cost),
        "ended": trial.ended,
    }


def _cost_columns(cost: Cost | None) -> dict[str, int | float | None]:
    return {
        "tokens": cost.tokens if cost else None,
        "seconds": round(cost.seconds, 1) if cost else None,
        "processor seconds": round(cost.processor_seconds, 1) if cost else None,
    }


def _print_report(report: Report) -> None:
    measured = {"prompt": report.prompt, "zero-shot": report.zero_shot, "majority": report.majority}
    labels = report.prompt.per_label if isinstance(report.prompt, Scores) else {}
    many = len(labels) > MAX_COLUMNS
    print_table([_score_row(name, scores, not many) for name, scores in measured.items()], as_json=False)
    if many:
        print_table([_label_row(label, measured) for label in labels], as_json=False)


def _print_verdict(verdict: Verdict, digest: str | None) -> None:
    say(f"verdict: {'passed' if verdict.passed else 'failed'}{f' ({digest[:12]})' if digest else ''}")
    if verdict.reveal:
        say(f"{verdict.reveal.by} spent look {verdict.reveal.look.number} at these test rows to see the figures")
    print_table(
        [
            {
                "check": check.name,
                "": "pass" if check.passed else "FAIL" if check.blocks else "warn",
                "observed": check.observed,
                "required": check.required,
            }
            for check in verdict.checks
        ],
        as_json=False,
    )


def print_lineage(lineage: "Lineage", as_json: bool) -> None:
    """Print where a version comes from: a block per prompt, its own first; then its verdict and promotions."""
    if as_json:
        print(json.dumps(lineage.to_json()))
        return
    for origin in lineage.origins:
        _print_origin(origin)
    verdict = lineage.verdict
    say(f"verdict: {'none' if verdict is None else 'passed' if verdict.passed else 'failed'}")
    promotions = [
        {
            "alias": promotion.alias,
            "seq": promotion.seq,
            "at": promotion.at,
            "actor": promotion.actor,
            "reason": promotion.reason,
            "override": "OVERRIDE" if promotion.override else "",
            "release": promotion.release or "",
        }
        for promotion in lineage.promotions
    ]
    print_table(promotions, as_json=False, empty="no alias has ever named it")


def _print_origin(origin: "Origin") -> None:
    name = f"{origin.task}@{origin.version}" if origin.version else f"{origin.task}, not registered"
    manifest = origin.manifest
    data = [
        f"{snapshot.source}: snapshot {snapshot.digest[:12]}, rows {snapshot.train.rows} train, "
        f"{snapshot.dev.rows} dev, {snapshot.test.rows} test"
        for snapshot in origin.snapshots
    ]
    parents = [f"{relation} {digest[:12]}" for digest, relation in origin.parents.items()]
    print_record(
        {
            "prompt": f"{name} ({origin.digest[:12]})",
            "data": "; ".join(data) or None,
            "recipe": manifest.recipe[:12] if manifest else None,
            "base model": f"{manifest.base_model.name} {manifest.base_model.fingerprint[:12]}" if manifest else None,
            "parents": ", ".join(parents) or None,
            "MLflow run": origin.run,
            "commit": origin.commit,
        },
        as_json=False,
    )


def _describe_prompt(manifest: PromptManifest) -> str:
    """For example `prompt: 16 virtual tokens of width 576, float16`; an ensemble's members, a prefix's shape."""
    if manifest.members:
        return (
            f"ensemble of {len(manifest.members.digests)} prompts of {manifest.num_virtual_tokens} virtual tokens, "
            f"{manifest.members.combine}"
        )
    info = next(iter(manifest.tensors.values()))
    size = (
        f"keys and values {info.shape}" if manifest.method == "prefix" else f"width {manifest.base_model.hidden_size}"
    )
    return f"{manifest.method}: {manifest.num_virtual_tokens} virtual tokens of {size}, {info.dtype}"


def answer_row(answer: Answer, given: str | Fields) -> dict[str, Any]:
    """Return an answer for people, beside its text."""
    text = given if isinstance(given, str) else " | ".join(given.values())
    if answer.text is not None:
        return {"answer": answer.text, "version": answer.version, "text": text}
    return {  # a blank line has no label
        "label": answer.label,
        "probability": None if answer.label is None else f"{answer.probabilities[answer.label]:.3f}",
        "version": answer.version,
        "text": text,
    }


def _score_row(name: str, scores: Scores | TextScores, labels: bool) -> dict[str, Any]:
    figures = {title_of(metric): value for metric, value in scores.figures().items()}
    per_label = scores.per_label if labels and isinstance(scores, Scores) else {}
    return {"on the test split": name} | figures | {f"F1 {label}": one["f1"] for label, one in per_label.items()}


def _label_row(label: str, measured: Mapping[str, Scores | TextScores]) -> dict[str, Any]:
    """A label's F1 as a row of its own: so many labels have no room as columns."""
    scores = {name: one.per_label.get(label) for name, one in measured.items() if isinstance(one, Scores)}
    return {"label": label} | {f"F1 {name}": one["f1"] if one else None for name, one in scores.items()}


def _plain(row: Row) -> dict[str, Any]:
    return row.to_json() if isinstance(row, Record) else dict(row)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict | list):
        return json.dumps(value)
    return escape_controls(str(value))


def _console() -> Console:
    """A console of the terminal's width; wide enough for every line if the output goes to a file or a pipe."""
    width, height = (
        shutil.get_terminal_size() if sys.stdout.isatty() else (400, 25)
    )  # rich takes a dumb one for 80 wide
    return Console(soft_wrap=False, markup=False, highlight=False, width=width, height=height)
