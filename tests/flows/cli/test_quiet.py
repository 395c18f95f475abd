"""A candidate that was refused under `gate.figures: quiet`: no view holds a figure of the test rows, until a look is
spent to reveal it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from flows.cli import main
from flows.night import build_table, render_verdict
from flows.stages.chain import Mode, Night, run
from flows.stages.context import select_tasks
from flows.stages.outcome import Outcome
from ptpipeline.evaluation.results import Results
from ptpipeline.gate.disclosure import WITHOUT_TEST_ROWS
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Verdict
from registry.card.description import render_description
from registry.card.page import render_page
from registry.ledger import tables
from registry.ledger.looks import count_looks
from registry.versions.publish import load_card
from tests.flows.project import Project

NAME = "tiny-sentiment"
GOOD, POOR = 'init: {text: " yes"}, steps: 10', "steps: 2"
DIGITS = 4  # a figure with fewer than these may stand anywhere by chance


class Quiet:
    """Version 1 is in production; version 2, hardly trained, was refused quietly, and what was shown on the way."""

    def __init__(self, project: Project) -> None:
        self.project = project
        project.edit("gate: {", "gate: {figures: quiet, ")
        project.edit("promote: auto", "promote: auto\ntexts_in_reports: true")
        project.edit(GOOD, POOR)
        project.lines.clear()
        self.shown: list[tuple[Outcome, Verdict]] = []
        mode = Mode(show=lambda outcome, verdict: self.shown.append((outcome, verdict)))
        self.night: Night = run(project.stages, select_tasks(project.settings, [NAME]), mode)
        self.lines = list(project.lines)

    def digest(self, number: int) -> str:
        return self.project.stages.registry.ledger.version(NAME, number).digest

    def verdict(self, number: int = 2) -> Verdict:
        found = self.project.stages.registry.ledger.latest_verdict(NAME, self.digest(number))
        assert found is not None
        return found

    def report(self, number: int = 2) -> Report:
        found = self.project.stages.registry.ledger.report(self.verdict(number).evaluation_key)
        assert found is not None
        return found

    def looks(self) -> int:
        store = self.project.stages.registry.store
        return count_looks(self.project.stages.registry.ledger, NAME, Results.of(store, self.report()).ids)

    def spending(self) -> list[tuple[object, ...]]:
        """Every look with what it spent, and every test set with its rows."""
        look, test_set = tables.look, tables.test_set
        columns = (look.c.test_set, look.c.number, look.c.question, look.c.alpha, look.c.spent, look.c.budget)
        with self.project.stages.registry.ledger.database.reading() as connection:
            looks = connection.execute(select(*columns).order_by(look.c.test_set, look.c.number)).all()
            sets = connection.execute(select(test_set.c.number, test_set.c.rows).order_by(test_set.c.number)).all()
        return [tuple(row) for row in (*looks, *sets)]

    def figures(self) -> set[str]:
        """Every way in which a view writes a figure of version 2 that no other record holds."""
        secret = set(_numbers([self.report().to_json(), _without_look(self.verdict())]))
        tuned = self.project.stages.registry.ledger.publication(NAME, self.digest(2))
        assert tuned is not None
        records = [tuned, self.report(1), self.verdict(1), self.project.task()]
        known = set(_numbers([record.model_dump(mode="json") for record in records]))
        look = self.verdict().look
        assert look is not None
        known |= {look.alpha, look.spent, look.budget}
        return _written(secret - known) - _written(known)


def _without_look(verdict: Verdict) -> dict[str, Any]:
    return {name: value for name, value in verdict.to_json().items() if name != "look"}


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _numbers(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, float):
        yield value


def _written(values: set[float]) -> set[str]:
    forms = ("{!r}", "{:.4f}", "{:.3f}", "{:.2g}", "{:.4g}", "{:.1%}", "{:.2%}", "{:+.4f}", "{:+.3f}")
    texts = {form.format(abs(value)).lstrip("+") for value in values for form in forms}
    return {text for text in texts if len(text.lstrip("0.").replace(".", "")) >= DIGITS}


@pytest.fixture(scope="module")
def quiet(first_night: Project, tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    return Quiet(first_night.copy(tmp_path_factory.mktemp("quiet")))


@pytest.fixture
def copied(quiet: Quiet, tmp_path: Path) -> Quiet:
    """The same after its night, to change."""
    made = Quiet.__new__(Quiet)
    made.__dict__ |= {**quiet.__dict__, "project": quiet.project.copy(tmp_path)}
    return made


@pytest.fixture
def ptp(copied: Quiet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`ptp` on the project: exit code, and all that it prints."""
    settings = copied.project.settings
    for name, value in settings.model_dump(include={"home", "tasks", "store", "ledger", "dtype"}).items():
        monkeypatch.setenv(f"PTP_{name.upper()}", str(value))

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return run


def found_in(figures: set[str], text: str) -> set[str]:
    numbers = set(re.findall(r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?%?", text))  # a part of a longer number is none
    return figures & numbers


def show_all(quiet: Quiet, ptp: Any, folder: Path) -> dict[str, str]:
    """Everything that any view shows of version 2."""
    commands = [
        ["show", f"{NAME}@2"],
        ["show", f"{NAME}@2", "--json"],
        ["versions", NAME, "--json"],
        ["history", NAME, "--json"],
        ["lineage", f"{NAME}@2", "--json"],
        ["gate", "explain", NAME],
        ["gate", "explain", NAME, "--json"],
        ["diff", f"{NAME}@1", f"{NAME}@2", "--json"],
        ["promote", f"{NAME}@2", "--reason", "it looks well"],
        ["report", f"{NAME}@2", "--to", str(folder / "report.html")],
        ["doctor", "--json"],
        ["run", NAME, "--json"],
        ["run", NAME],
    ]
    views = {" ".join(command): ptp(*command)[1] for command in commands}
    views["report.html"] = (folder / "report.html").read_text()
    registry = quiet.project.stages.registry
    card = load_card(registry, NAME, quiet.digest(2))
    version = registry.ledger.version(NAME, 2)
    views["MLflow description"] = render_description(card, version)
    views["MLflow page"] = render_page(card, version).decode()
    views["MLflow tags and metrics"] = json.dumps([card.tags(version), card.metrics()])
    for key in registry.store.keys(f"prompts/{NAME}/{quiet.digest(2)}"):
        if key.endswith(".html"):
            views[key] = registry.store.read(key).body.decode()
    return views


def test_no_view_of_a_quiet_refusal_holds_a_test_figure(quiet: Quiet, copied: Quiet, ptp: Any, tmp_path: Path) -> None:
    figures = quiet.figures()
    assert len(figures) > 30
    views = show_all(copied, ptp, tmp_path)
    outcome, verdict = quiet.shown[0]
    views |= {
        "log lines": "\n".join(quiet.lines),
        "outcome": json.dumps(outcome.to_json()),
        "what a flow gets": json.dumps(verdict.to_json()),
        "Prefect artifact": render_verdict(outcome, verdict),
        "Prefect table": json.dumps(build_table(quiet.night)),
    }
    assert {name: held for name, text in views.items() if (held := found_in(figures, text))} == {}
    assert any("page" in name for name in views)
    assert any(name.startswith("prompts/") for name in views)


def test_passes_failures_and_dev_figures_are_shown(copied: Quiet, ptp: Any) -> None:
    details = json.loads(ptp("show", f"{NAME}@2", "--json")[1])
    checks = {check["name"]: check["passed"] for check in details["verdict"]["checks"]}
    assert (details["report"], checks["champion"]) == (None, False)
    assert {"bytes", "leakage", "drift"} <= checks.keys()
    assert all(check["observed"].startswith("not shown") for check in details["verdict"]["checks"])
    assert (
        details["training"]["best_dev"]
        == copied.project.stages.registry.ledger.publication(NAME, copied.digest(2)).tuned.best_dev
    )  # type: ignore[union-attr]


def test_only_the_plots_of_the_training_are_drawn(quiet: Quiet) -> None:
    publication = quiet.project.stages.registry.ledger.publication(NAME, quiet.digest(2))
    assert publication is not None
    assert publication.plots.keys() == {*WITHOUT_TEST_ROWS} & publication.plots.keys() != set()
    assert publication.mistakes is None


def test_a_passed_candidate_shows_its_figures(copied: Quiet, ptp: Any) -> None:
    shown = json.loads(ptp("show", f"{NAME}@1", "--json")[1])
    assert shown["report"]["prompt"]["accuracy"] == copied.report(1).prompt.figures()["accuracy"]


def test_a_reveal_shows_the_figures_and_is_a_look_that_names_who_asked(copied: Quiet, ptp: Any) -> None:
    before, figures = copied.looks(), copied.figures()
    code, told = ptp("show", f"{NAME}@2", "--reveal", "--json")
    revealed = json.loads(told[told.index('{"version"') :].splitlines()[0])
    assert (code, revealed["report"]) == (0, copied.report().to_json())
    reveal = copied.verdict().reveal
    assert reveal is not None
    assert (copied.looks(), reveal.look.number) == (before + 1, before + 1)
    assert f"look {reveal.look.number} at test set 1 was spent to reveal its figures, by {reveal.by}" in told
    assert found_in(figures, ptp("lineage", f"{NAME}@2", "--json")[1])  # from now on every view shows them


def test_what_is_revealed_twice_is_one_look(copied: Quiet, ptp: Any) -> None:
    ptp("show", f"{NAME}@2", "--reveal")
    looks = copied.looks()
    ptp("show", f"{NAME}@2", "--reveal")
    ptp("run", NAME)
    assert copied.looks() == looks


def test_a_reveal_of_what_is_not_withheld_is_no_look(copied: Quiet, ptp: Any) -> None:
    looks = copied.looks()
    assert "nothing is withheld" in ptp("show", f"{NAME}@1", "--reveal")[1]
    assert copied.looks() == looks


def test_a_revealed_report_is_written_with_its_plots(copied: Quiet, ptp: Any, tmp_path: Path) -> None:
    assert ptp("report", f"{NAME}@2", "--to", str(tmp_path / "r.html"), "--reveal")[0] == 0
    page = (tmp_path / "r.html").read_text()
    assert "spent look" in page
    assert "Rows by true and predicted label" in page


def test_a_rebuilt_ledger_knows_a_reveal_its_look_and_its_rows(copied: Quiet, ptp: Any) -> None:
    ptp("show", f"{NAME}@2", "--reveal")
    spending, verdict, report = copied.spending(), copied.verdict(), copied.report()
    assert len(spending) == 4  # two candidates and the reveal, at one set of rows
    copied.project.stages.registry.ledger.close()
    for path in copied.project.folder.glob("ledger.db*"):
        path.unlink()
    assert ptp("doctor", "--rebuild-ledger")[0] == 0
    assert (copied.spending(), copied.verdict(), copied.report()) == (spending, verdict, report)
    code, told = ptp("show", f"{NAME}@2", "--reveal", "--json")
    assert (code, json.loads(told[told.index('{"version"') :].splitlines()[0])["report"]) == (0, report.to_json())
    assert copied.spending() == spending  # what was revealed stays so, for no other look
    assert ptp("doctor")[0] == 0


def test_a_policy_that_is_opened_afterwards_shows_nothing_of_the_past(copied: Quiet, ptp: Any) -> None:
    copied.project.edit("figures: quiet", "figures: open")
    ptp("run", NAME)
    assert not found_in(copied.figures(), ptp("show", f"{NAME}@2", "--json")[1])


def test_rows_that_judge_are_left_out_of_a_measurement_by_hand(copied: Quiet, ptp: Any) -> None:
    rows = copied.project.folder / f"{NAME}.csv"
    code, told = ptp("evaluate", f"{NAME}@2", "--data", str(rows), "--json")
    measured = json.loads(next(line for line in told.splitlines() if line.startswith("{")))
    assert (code, measured["left_out"]["judging"]) == (0, copied.report().rows)


def test_two_shown_versions_are_compared_without_their_rows(copied: Quiet, ptp: Any) -> None:
    code, told = ptp("diff", f"{NAME}@2", f"{NAME}@1", "--json")
    assert code == 1
    assert f"ptp show {NAME}@2 --reveal" in told
    ptp("show", f"{NAME}@2", "--reveal")
    code, told = ptp("diff", f"{NAME}@2", f"{NAME}@1", "--json")
    difference = json.loads(next(line for line in told.splitlines() if line.startswith("{")))
    assert (code, difference["changed"]) == (0, [])
