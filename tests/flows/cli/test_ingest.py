"""`ptp ingest` for people: rows by label and split, and what the checks found, within the width of their terminal."""

import json
from pathlib import Path

import pytest

from tests.flows.cli.pty_reader import Typed, watch_terminal
from tests.flows.cli.test_cli import environment_of, ptp
from tests.tiny import tiny_project


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A project whose data have a row twice, one without text, and one of a label that the task does not name."""
    folder = tmp_path_factory.mktemp("project")
    tasks = tiny_project(folder)
    rows = folder / "tiny-sentiment.csv"
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([*lines, lines[1], lines[2], ",positive", "so so,mixed", "meh,mixed"]) + "\n")
    path = tasks / "tiny-sentiment.yaml"
    path.write_text(path.read_text().replace("  label: label\n", "  label: label\n  checks: {unknown_label: warn}\n"))
    return environment_of(folder)


def on_terminal(
    environment: dict[str, str], columns: int, *arguments: str, typed: Typed = Typed(), code: int = 0
) -> str:
    """What a person sees on a terminal of that width who types this, standard error included."""
    own = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "dumb"}
    ended, seen = watch_terminal(["-m", "flows.cli", *arguments], own, columns, typed)
    assert ended == code, seen
    return seen.replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(environment: dict[str, str], columns: int) -> None:
    seen = on_terminal(environment, columns, "ingest", "tiny-sentiment")
    lines = seen.splitlines()
    assert max(map(len, lines)) <= columns
    assert not any(mark in seen for mark in ("{", "}", '"'))
    words = [line.split() for line in lines]
    assert ["label", "train", "dev", "test"] in words
    [[*_, train, dev, test]] = [line for line in words if line[:2] == ["all", "rows"]]
    assert int(train) + int(dev) + int(test) == 240
    words = words[words.index(["check", "rows", "policy", "found"]) :]
    for check, count in (("duplicate", "2"), ("empty_text", "1"), ("unknown_label", "2")):
        assert [line[1] for line in words if line[:1] == [check]] == [count]
    assert "lines 245, 246" in " ".join(seen.split())


def test_json_stays_the_record(environment: dict[str, str]) -> None:
    shown = json.loads(ptp(environment, "ingest", "tiny-sentiment", "--json").stdout)
    assert {check["name"]: check["count"] for check in shown["checks"]}["unknown_label"] == 2
    assert shown["train"]["labels"].keys() == {"positive", "negative"}


def test_a_task_without_labels_shows_its_rows(tmp_path: Path) -> None:
    tasks = tiny_project(tmp_path, rows=60)
    path = tasks / "tiny-sentiment.yaml"
    text = path.read_text().replace("label: label", "target: label").replace("accuracy", "exact_match")
    path.write_text(
        text.replace('labels: {negative: " negative", positive: " positive"}', "generate: {max_new_tokens: 4}")
    )
    done = ptp(environment_of(tmp_path), "ingest", "tiny-sentiment")
    assert done.returncode == 0, done.stderr
    assert "all rows" in done.stdout
