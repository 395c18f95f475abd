"""The page as a person uses it, in a real browser; what others wrote into names and labels stays text there."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from ptpipeline.records.versions import Beside, Pointer
from ptpipeline.server.callers import Tokens, make_token
from ptpipeline.storage.keys import pointer_key
from tests.evaluation.probed import artifact, embeddings, tiny
from tests.server.serving import Running, prompts, publish, running

CHROMIUM = shutil.which("chromium")
HOSTILE = "<img src=x onerror=document.title='owned'>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    """A server with a hostile label, a canary, and a token that opens it."""
    folder = tmp_path_factory.mktemp("page")
    token = make_token(folder / "tokens.json", "me", [], None)
    with running(folder, Tokens(folder / "tokens.json")) as server:
        hostile = artifact(
            tiny(), embeddings(tiny(), " yes"), task="hostile", labels={HOSTILE: " negative", "fine": " positive"}
        )
        row = publish(server.store, hostile, 1)
        beside = Beside(version=1, digest=prompts()["first"].digest, percent=10)
        canary = publish(server.store, prompts()["second"], 2, "staging").model_copy(update={"beside": beside})
        key = pointer_key("movies", "staging")
        body = Pointer(promotion=canary, nonce="c" * 16).model_dump_json().encode()
        server.store.replace(key, body, server.store.read(key).etag)
        headers = {"Authorization": f"Bearer {token}"}
        for model in ("hostile", "movies@staging"):  # asked for, an alias is looked up at once
            httpx.post(f"{server.url}/v1/classify", json={"model": model, "input": "a film"}, headers=headers)
        assert row.version == 1
        yield server, token


@pytest.fixture
def page(browser: Browser, guarded: tuple[Running, str]) -> Iterator[Page]:
    """The page behind the sign-in; no error may come up in it."""
    context = browser.new_context()
    opened, faults = context.new_page(), list[str]()
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(guarded[0].url)
    opened.get_by_label("Token").fill(guarded[1])
    opened.get_by_role("button", name="Sign in").click()
    expect(opened.locator("#aliases tr")).to_have_count(5)
    yield opened
    assert faults == []
    context.close()


def test_a_wrong_token_is_told(browser: Browser, guarded: tuple[Running, str]) -> None:
    opened = browser.new_page()
    opened.goto(guarded[0].url)
    expect(opened.locator("#summary")).to_have_text("This server asks for a token.")
    opened.get_by_label("Token").fill("ptp_wrong")
    opened.get_by_role("button", name="Sign in").click()
    expect(opened.locator("#summary")).to_have_text("The server does not know this token.")
    expect(opened.locator("#served")).to_be_hidden()
    opened.close()


def test_tasks_and_their_live_versions_are_shown(page: Page) -> None:
    rows = page.locator("#aliases tr").all_inner_texts()
    assert [row.split("\t")[:3] for row in rows if "staging" not in row] == [
        ["hostile", "production", "hostile@1"],
        ["movies", "production", "movies@2"],
        ["pairs", "production", "pairs@1"],
        ["writer", "production", "writer@1"],
    ]
    assert any("canary: movies@1 answers 10 %" in row for row in rows)
    assert any("canary 1 beside version 2: no feedback yet" in row for row in rows)
    expect(page.locator("#summary")).to_contain_text("4 tasks")


def test_the_figures_of_a_version_follow_what_it_answers(page: Page, guarded: tuple[Running, str]) -> None:
    server, token = guarded
    headers = {"Authorization": f"Bearer {token}"}

    def read_status() -> dict[str, Any]:
        aliases = httpx.get(f"{server.url}/v1/status", headers=headers).json()["aliases"]
        return next(alias for alias in aliases if alias["task"] == "pairs")

    before = read_status()
    texts = [{"first": "the good", "second": "film"}] * 3 + [{"first": "plot " * 500, "second": "film"}]
    for _ in range(2):
        httpx.post(f"{server.url}/v1/classify", json={"model": "pairs", "input": texts}, headers=headers)
    told = read_status()
    assert (told["answers"] - before["answers"], told["errors"] - before["errors"]) == (6, 2)
    row = page.locator("#aliases tr").filter(has=page.get_by_role("button", name="pairs"))
    figures = [str(told["answers"]), str(told["errors"]), f"{told['median_ms']:.0f}", f"{told['slowest_ms']:.0f}"]
    expect(row.locator("td.number")).to_have_text(figures, timeout=20_000)  # it looks again by itself
    expect(page.locator("#summary")).to_have_text(
        re.compile(r"^4 tasks · \d+ versions loaded · 0 texts waiting · store reached \d+ s ago$")
    )


def test_a_store_that_is_away_is_told(page: Page) -> None:
    page.route("**/v1/status", lambda route: route.fulfill(json=route.fetch().json() | {"trouble": True}))
    page.reload()
    expect(page.locator("#trouble")).to_contain_text("The store cannot be reached; the server goes on")
    expect(page.locator("#aliases tr")).to_have_count(5)


def test_a_text_is_tried_on_two_versions(page: Page) -> None:
    page.get_by_label("Version").fill("movies@1")
    page.get_by_label("Beside").fill("movies@2")
    page.get_by_label("text", exact=True).fill("the good film")
    page.get_by_role("button", name="Ask").click()
    cards = page.locator("#answers article")
    expect(cards).to_have_count(2)
    for card, version, name in ((cards.nth(0), "movies@1", "first"), (cards.nth(1), "movies@2", "second")):
        expect(card.locator("h3")).to_have_text(version)
        expect(card.locator(".label.first")).to_contain_text("positive")
        expect(card.locator(".label")).to_have_count(2)
        expect(card.locator("p.faint")).to_contain_text(f"{version} · {prompts()[name].digest[:12]} · ")
        expect(card.locator("p.faint")).to_contain_text(" ms")
    shares = [float(text.split()[0]) for text in cards.nth(0).locator(".number").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_labels_that_are_numbers_stand_by_their_probability(page: Page, guarded: tuple[Running, str]) -> None:
    words = {"1": " positive", "2": " the", "0": " negative"}
    publish(guarded[0].store, artifact(tiny(), embeddings(tiny(), " yes"), task="stars", labels=words), 1, None)
    page.get_by_label("Version").fill("stars@1")
    page.get_by_label("text", exact=True).fill("the good film")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answers article .label")).to_have_count(3)
    shares = [float(text.split()[0]) for text in page.locator("#answers .number").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    expect(page.locator("#answers .label").first).to_contain_text("1")


def test_what_a_proxy_answers_in_place_of_the_server_is_told_plainly(page: Page) -> None:
    page.route("**/v1/classify", lambda route: route.fulfill(status=502, body="<html>Bad Gateway</html>"))
    page.get_by_label("Version").fill("movies@1")
    page.get_by_label("text", exact=True).fill("the good film")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answers .bad")).to_have_text("The server does not answer (502).")


def test_a_text_is_generated_beside_an_unknown_version(page: Page) -> None:
    page.get_by_label("Version").fill("writer")
    page.get_by_label("Beside").fill("nothing@9")
    page.get_by_label("text", exact=True).fill("the good film")
    page.get_by_role("button", name="Ask").click()
    cards = page.locator("#answers article")
    expect(cards.nth(0).locator(".generated")).to_contain_text("positive")
    expect(cards.nth(1).locator(".bad")).to_contain_text("this server has no model 'nothing@9'")


def test_each_field_of_a_template_has_its_box(page: Page) -> None:
    page.locator("#aliases").get_by_role("button", name="pairs").click()
    page.get_by_label("first").fill("the good")
    page.get_by_label("second").fill("film")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answers article .label")).to_have_count(2)


def test_what_others_wrote_stays_text(page: Page) -> None:
    page.get_by_label("Version").fill("hostile")
    page.get_by_label("Beside").fill(HOSTILE)
    page.get_by_label("text", exact=True).fill(HOSTILE)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answers article")).to_have_count(2)
    expect(page.locator("#answers")).to_contain_text(HOSTILE)
    assert page.locator("img").count() == 0
    assert page.title() == "Prompts served here"


def test_the_page_may_run_no_other_script(guarded: tuple[Running, str]) -> None:
    policy = httpx.get(guarded[0].url).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_a_narrow_page_does_not_scroll_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_folder_of_the_page_is_shipped() -> None:
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'ptpipeline = ["server/page/*"]' in declared
