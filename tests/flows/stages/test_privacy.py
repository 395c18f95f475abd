"""No text of a row leaves the snapshot: not into the ledger, other objects of the store, reports, logs, messages."""

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import parquet

from flows.cli.quality import _print_diff, _print_file
from flows.on_demand.diff import diff
from flows.on_demand.explanation import describe
from flows.on_demand.measure import measure_file
from flows.on_demand.preview import explain
from flows.stages.context import Context
from ptpipeline.records.versions import VersionRef
from registry.card.description import render_description
from registry.registry import open_registry
from registry.versions.publish import load_card
from tests.flows.project import Project
from tests.flows.stages.test_generation import generating
from tests.tiny import sentences as rows_of
from tests.tiny import write_csv

NAME, TEXT_MARK, TARGET_MARK = "tiny-sentiment", "zqxv", "jwkz"
RECORDS = ".parquet"


def marked(project: Project, targets: bool) -> Project:
    """Every text of the source with a mark of its own, and every target, too, if answers are texts."""
    rows = [
        (f"{text} {TEXT_MARK}{number}", f"{label} {TARGET_MARK}" if targets else label)
        for number, (text, label) in enumerate(rows_of(160))
    ]
    write_csv(project.folder / f"{NAME}.csv", rows)
    return generating(project) if targets else project


def objects(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What lies in the store outside of snapshots/, Parquet as plain text, and the rest of what a night leaves
    behind.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_file() and inside[0] not in ("snapshots", "base"):
            yield (
                str(path),
                str(parquet.read_table(path).to_pydict()).encode() if path.suffix == RECORDS else path.read_bytes(),
            )


def kept(project: Project) -> dict[str, bytes]:
    """All that two nights keep, by place."""
    found = dict(objects(project.folder / "store")) | dict(objects(project.folder / "home"))
    with sqlite3.connect(project.folder / "ledger.db") as database:
        return found | {"ledger": "\n".join(database.iterdump()).encode()}


@pytest.mark.parametrize("targets", [False, True])
def test_marked_texts_stay_in_the_snapshot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], targets: bool
) -> None:
    project = marked(Project(tmp_path, (NAME,)), targets)
    if targets:
        project.edit("max_new_tokens: 1", "max_new_tokens: 16")
    project.edit("gate: {", "hard_prompt: {examples: 3}\ngate: {checks: {bias: {swaps: [[good, bad]], min_rows: 1}}, ")
    with caplog.at_level(logging.DEBUG):
        lines = nights(project)
    out, err = capfd.readouterr()
    found = kept(project) | {
        "lines": "\n".join(lines).encode(),
        "logs": caplog.text.encode(),
        "printed": (out + err).encode(),
    }
    assert not [
        place for place, content in found.items() if TEXT_MARK.encode() in content or TARGET_MARK.encode() in content
    ]
    assert any(
        TEXT_MARK in str(parquet.read_table(path).to_pydict())
        for path in (tmp_path / "store" / "snapshots").rglob("*.parquet")
    )
    assert {"lines", "ledger"} <= {place for place, content in found.items() if NAME.encode() in content}
    assert sum(place.endswith("rows.parquet") for place in found) >= 4  # a report each, and its baselines


def nights(project: Project) -> list[str]:
    """Two nights, what the verbs say in between and afterwards, and what MLflow would show; every line that was
    reported.
    """
    project.run()
    lines = list(project.lines)
    project.edit('init: {text: " yes"}, steps: 10', "steps: 2")
    lines.append(project.run().model_dump_json())
    lines += project.lines
    registry, task = open_registry(project.settings), project.task(NAME)
    lines += describe(explain(Context(project.settings, registry), task))
    context = Context(project.settings, registry, lines.append)
    _print_diff(diff(context, VersionRef(NAME, 1), VersionRef(NAME, 2)))
    _print_file(measure_file(context, VersionRef(NAME, 1), project.folder / f"{NAME}.csv"))
    for version in registry.ledger.versions(NAME):
        card = load_card(registry, NAME, version.digest)
        lines += [
            render_description(card, version),
            str(card.params()),
            str(card.tags(version)),
            str(card.metrics()),
            str(card.snapshot),
            str(card.provenance.report),
            str(card.provenance.verdict),
        ]
    return lines


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no header.csv", f"a longer text with {TEXT_MARK},negative\nanother one,positive\n"),
        ("one name twice.csv", f"a longer text with {TEXT_MARK},a longer text with {TEXT_MARK}\n"),
        ("too many fields.csv", f"text,label\n{TEXT_MARK},negative\n{TEXT_MARK},negative,{TEXT_MARK}\n"),
        ("open quote.csv", f'text,label\n"{TEXT_MARK},negative\n'),
        ("label.csv", f"text,label\n{TEXT_MARK},{TEXT_MARK}\n"),
        ("two kinds.jsonl", f'{{"text": "{TEXT_MARK}", "label": "negative"}}\n{{"text": 3, "label": "negative"}}\n'),
        ("broken.jsonl", f'{{"text": "{TEXT_MARK}", "label": "negative"\n'),
        ("long.csv", f"text,label\n{TEXT_MARK * 200},negative\nshort,positive\n"),
        ("latin.csv", f"text,label\n{TEXT_MARK} caf\u00e9,negative\n"),
    ],
)
def test_a_message_about_a_broken_file_holds_no_text(
    trained: Project, name: str, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = trained.folder / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(Exception, match=path.stem) as raised:
        measure_file(Context(trained.settings, open_registry(trained.settings)), VersionRef(NAME, 1), path)
    chain, error = "", raised.value
    while error is not None:
        chain, error = chain + str(error), error.__cause__
    assert TEXT_MARK not in chain + caplog.text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("trained"), (NAME,))
    project.edit('init: {text: " yes"}, steps: 10', "steps: 2")
    project.run()
    return project
