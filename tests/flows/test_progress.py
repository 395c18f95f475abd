"""The progress bars of a flow run on its page, on a server that takes artifacts; one that is away costs the bar."""

import logging
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.progress import Bars
from ptpipeline.progress import Standing
from tests.flows.server.test_prefect import Answer, Prefect, listening


class Artifacts(Prefect):
    """Takes artifacts, and gives each an id."""

    def __init__(self) -> None:
        super().__init__({})
        self.id = str(uuid4())

    def answer(self, what: str, body: Any) -> Answer:
        self.asked.append((what, body))
        if "/artifacts" not in what:
            return 404, {}
        return 200, {"id": self.id, "key": "k", "type": "progress", "data": 0.0}

    def bars(self) -> list[tuple[str, float, str]]:
        """By which verb each bar was moved, how far, and what it says."""
        return [
            (what.split()[0], body["data"], body["description"]) for what, body in self.asked if "/artifacts" in what
        ]


def standing(phase: str, done: int, total: int) -> Standing:
    return Standing(phase, done, total, "rows", done, 1.0)


def test_a_task_has_one_bar_that_moves_and_is_full_in_the_end() -> None:
    bars, server = Bars(), Artifacts()
    with listening(server) as prefect, temporary_settings({PREFECT_API_URL: prefect.url}):
        bars.show(standing("Mood: test rows", 0, 0))  # nothing is counted yet
        bars.show(standing("Mood: test rows", 1, 4))
        bars.close()
        bars.close()
    verbs = [(verb, percent) for verb, percent, _ in server.bars()]
    assert verbs == [("POST", 0.0), ("PATCH", 25.0), ("PATCH", 100.0)]
    assert server.bars()[-1][2] == "Mood: ended"
    assert next(body["key"] for what, body in server.asked if what.startswith("POST")) == "progress-mood"


def test_a_server_that_is_away_costs_the_bar_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    bars = Bars()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), caplog.at_level(logging.INFO):
        for done in (1, 2):
            bars.show(standing("mood: test rows", done, 4))
        bars.close()
    assert caplog.text.count("Prefect shows no progress bar of mood") == 1
    assert "mood: test rows: 2 of 4 rows" in caplog.text
