"""The pages of Prefect and MLflow behind the stack's guard, in a real browser that `ptp open`'s link signed in."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from flows.local.sign_in import sign_in_link
from flows.server.api import call
from ptpipeline.settings import load_settings
from tests.e2e.conftest import Project
from tests.e2e.test_work_of_people import awaiting

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.servers,
    pytest.mark.soak,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


@pytest.fixture
def page(project: Project) -> Iterator[Page]:
    """A page of a browser that is signed in at both servers."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"])
        opened = browser.new_page(viewport={"width": 1280, "height": 1600})
        opened.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        for name in ("prefect", "mlflow"):
            opened.goto(sign_in_link(load_settings(), name))
        yield opened
        browser.close()


def test_a_person_finds_the_night_its_verdict_and_the_form(project: Project, page: Page, tmp_path: Path) -> None:
    pages, mlflow = project.prefect.removesuffix("/api"), project.stack.settings["mlflow"]
    with awaiting(project, "cherry", 1):
        runs = call("POST", f"{project.prefect}/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 50})
        night = next(run for run in runs if run["name"].endswith(" cherry"))
        page.goto(f"{pages}/runs/flow-run/{night['id']}")
        expect(page.get_by_text(night["name"]).first).to_be_visible()
        expect(page.get_by_text("train tiny (1 task)").first).to_be_visible()
        page.screenshot(path=tmp_path / "night.png")
        approve = call("GET", f"{project.prefect}/deployments/name/approve/ptp-approve")["id"]
        page.goto(f"{pages}/deployments/deployment/{approve}/run")
        expect(page.get_by_text("Your name").first).to_be_visible()
        page.screenshot(path=tmp_path / "form.png")
        shown = {"artifacts": {"key": {"any_": ["verdict-cherry"]}}}
        [verdict] = call("POST", f"{project.prefect}/artifacts/latest/filter", shown)
        page.goto(f"{pages}/artifacts/artifact/{verdict['latest_id']}")
        expect(page.get_by_text("with verdict").first).to_be_visible()
        page.screenshot(path=tmp_path / "verdict.png")
        page.goto(f"{mlflow}/#/models/cherry/versions/1")
        expect(page.get_by_text("ptp.digest").first).to_be_visible()
        page.screenshot(path=tmp_path / "model.png")
