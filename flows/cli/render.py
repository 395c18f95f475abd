"""What `ptp` prints: records as aligned tables for people, or one JSON object per line for programs."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ptpipeline.records import (
    Answer,
    PromptManifest,
    PromptVersion,
    Record,
    Report,
    Scores,
    TextScores,
    TunedPrompt,
    Verdict,
    title_of,
)

if TYPE_CHECKING:
    from registry.lineage.trace import Lineage

Row = Mapping[str, Any] | Record
Judged = tuple[Report | None, Verdict | None]


def show(rows: Sequence[Row], as_json: bool, empty: str = "none") -> None:
    """A table with one line per record; a column that is empty in every line is left out. Of no records people are told
    `empty`.
    """
    plain = [_plain(row) for row in rows]
    if as_json:
        for row in plain:
            print(json.dumps(row))
        return
    if not plain:
        print(empty, file=sys.stderr)
        return
    columns = [name for name in plain[0] if any(row.get(name) not in (None, "") for row in plain)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in plain:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    _console().print(table)


def show_record(record: Row, as_json: bool) -> None:
    """One record, a field per line."""
    plain = _plain(record)
    if as_json:
        print(json.dumps(plain))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in plain.items():
        table.add_row(name.replace("_", " "), _cell(value))
    _console().print(table)


def show_version(
    version: PromptVersion, manifest: PromptManifest, tuned: TunedPrompt | None, judged: Judged, as_json: bool
) -> None:
    """A version with all that is known about it."""
    report, verdict = judged
    if as_json:
        parts = {"version": version, "manifest": manifest, "training": tuned, "report": report, "verdict": verdict}
        print(json.dumps({name: part.to_json() if part else None for name, part in parts.items()}))
        return
    show_record(
        {
            "version": f"{version.task}@{version.number}",
            "digest": version.digest,
            "registered": version.registered_at,
            "method": _prompt(manifest),
            "base model": f"{manifest.base_model.name} {manifest.base_model.fingerprint[:12]}",
            "template": json.dumps(manifest.template),
            "answers": manifest.labels or manifest.answers,
            "snapshot": manifest.snapshot,
        },
        as_json,
    )
    if tuned and tuned.steps:
        print(
            f"trained {tuned.steps} steps in {tuned.seconds:.0f} s; step {tuned.best_step} kept, dev "
            f"{tuned.best_dev:.4f}"
        )
        for warning in tuned.warnings:
            print(warning)
        if tuned.trials:
            show(
                [
                    {"trial": trial.name, "best dev": trial.best_dev, "at step": trial.best_step, "error": trial.error}
                    for trial in tuned.trials
                ],
                as_json,
            )
    if report:
        show(
            [
                _scores("prompt", report.prompt),
                _scores("zero-shot", report.zero_shot),
                _scores("majority", report.majority),
            ],
            as_json,
        )
    if verdict:
        print(f"verdict: {'passed' if verdict.passed else 'failed'}")
        show(
            [
                {
                    "check": c.name,
                    "": "pass" if c.passed else "FAIL" if c.blocks else "warn",
                    "observed": c.observed,
                    "required": c.required,
                }
                for c in verdict.checks
            ],
            as_json,
        )


def show_lineage(found: "Lineage", as_json: bool) -> None:
    """Where a version comes from: a block per prompt, its own first; then verdict and promotions."""
    if as_json:
        print(json.dumps(found.to_json()))
        return
    for origin in found.origins:
        name = f"{origin.task}@{origin.version}" if origin.version else f"{origin.task}, not registered"
        manifest = origin.manifest
        base = f"{manifest.base_model.name} {manifest.base_model.fingerprint[:12]}" if manifest else None
        data = [
            f"{s.source}: snapshot {s.digest[:12]}, rows {s.train.rows} train, {s.dev.rows} dev, {s.test.rows} test"
            for s in origin.snapshots
        ]
        parents = [f"{relation} {digest[:12]}" for digest, relation in origin.parents.items()]
        show_record(
            {
                "prompt": f"{name} ({origin.digest[:12]})",
                "data": "; ".join(data) or None,
                "recipe": manifest.recipe[:12] if manifest else None,
                "base model": base,
                "parents": ", ".join(parents) or None,
                "MLflow run": origin.run,
                "commit": origin.commit,
            },
            as_json,
        )
    print(f"verdict: {'none' if found.verdict is None else 'passed' if found.verdict.passed else 'failed'}")
    show(
        [
            {
                "alias": p.alias,
                "seq": p.seq,
                "at": p.at,
                "actor": p.actor,
                "reason": p.reason,
                "override": "OVERRIDE" if p.override else "",
                "release": p.release or "",
            }
            for p in found.promotions
        ],
        as_json,
        "no alias ever named it",
    )


def _prompt(manifest: PromptManifest) -> str:
    """`16 virtual tokens of width 576, float16`; members and tensors of a prompt that has others."""
    if manifest.members:
        return (
            f"ensemble of {len(manifest.members.digests)} prompts of {manifest.num_virtual_tokens} virtual tokens, "
            f"{manifest.members.combine}"
        )
    info = next(iter(manifest.tensors.values()))
    what = (
        f"keys and values {info.shape}" if manifest.method == "prefix" else f"width {manifest.base_model.hidden_size}"
    )
    return f"{manifest.method}: {manifest.num_virtual_tokens} virtual tokens of {what}, {info.dtype}"


def answer_row(answer: Answer, text: str) -> dict[str, Any]:
    """An answer for people, beside the text that it is for."""
    if answer.label is None:
        return {"answer": answer.text, "version": answer.version, "text": text}
    return {
        "label": answer.label,
        "probability": f"{answer.probabilities[answer.label]:.3f}",
        "version": answer.version,
        "text": text,
    }


def _scores(name: str, scores: Scores | TextScores) -> dict[str, Any]:
    figures = {title_of(metric): value for metric, value in scores.figures().items()}
    per_label = {f"F1 {k}": v["f1"] for k, v in scores.per_label.items()} if isinstance(scores, Scores) else {}
    return {"on the test split": name} | figures | per_label


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
    return str(value)


def _console() -> Console:
    """The terminal's width where there is one; never cut where the output goes to a file or a pipe."""
    return Console(soft_wrap=False, markup=False, highlight=False, width=None if sys.stdout.isatty() else 400)
