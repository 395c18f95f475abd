"""A day in which all but the server is away: MLflow, Prefect, the ledger's database, and the store.

The thread that looks at the store and the engine are real; the clock by which the server waits and forgets is not.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx

from ptpipeline.errors import ServiceUnavailable
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.storage import FolderStore, Stored
from tests.evaluation.probed import LABELS, tiny
from tests.server.serving import Running, fill, prompts, publish, running
from tests.serving.registered import Clock
from tests.waiting import wait_for

EVERY = 0.01  # seconds of the test between two looks at the store
STEP, DAY = 3600, 86_400  # seconds of the server's clock
TEXT = "the good film"


class Gone(FolderStore):
    """A store that can be away, which counts how often it was asked meanwhile."""

    away, asked = False, 0

    def _check(self) -> None:
        if self.away:
            self.asked += 1
            raise ServiceUnavailable("the store does not answer")

    def read(self, key: str) -> Stored:
        self._check()
        return super().read(key)

    def create(self, key: str, body: bytes) -> None:
        self._check()
        super().create(key, body)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        self._check()
        super().replace(key, body, etag)

    def keys(self, prefix: str) -> Iterator[str]:
        self._check()
        return super().keys(prefix)

    def folders(self, prefix: str) -> Iterator[str]:
        self._check()
        return super().folders(prefix)


def ask(server: Running, client: httpx.Client) -> list[object]:
    """What one request of each kind is answered, with the version that answered it."""
    answers = list[object]()
    for path, body in (
        ("/v1/classify", {"model": "movies", "input": TEXT}),
        ("/v1/classify", {"model": "movies@2", "input": [TEXT]}),
        ("/v1/completions", {"model": "writer@production", "prompt": TEXT}),
        ("/v1/completions", {"model": "writer", "prompt": TEXT, "stream": True}),
        ("/v1/models/movies@staging", None),
    ):
        answer = client.post(f"{server.url}{path}", json=body) if body else client.get(f"{server.url}{path}")
        told = answer.text if answer.status_code != 200 else "a stream"
        if answer.headers["content-type"] == "application/json":
            value = answer.json()
            told = value.get("data", value.get("choices", [value]))[0]
            told = told.get("label") or told.get("text") or told.get("digest") or told
        elif not answer.text.endswith("data: [DONE]\n\n"):
            told = answer.text
        answers.append((answer.status_code, answer.headers.get("x-ptp-version"), told))
    return answers


def expected() -> list[object]:
    """The same of an engine that holds the prompts and knows no store."""
    engine, made = Engine(tiny()), prompts()
    for one in made.values():
        engine.load(one)
    [scores] = engine.score_labels([Question(made["second"].digest, {"text": TEXT})])
    label = list(LABELS)[int(scores.argmax())]
    [text] = engine.generate([Question(made["writer"].digest, {"text": TEXT})])
    return [
        (200, "movies@2", label),
        (200, "movies@2", label),
        (200, "writer@1", text),
        (200, "writer@1", "a stream"),
        (200, None, made["first"].digest),
    ]


def pass_hours(server: Running, client: httpx.Client, store: Gone, clock: Clock, until: float) -> list[object]:
    """Ask behind each step of the clock, after the server looked at the store in vain; what came of it otherwise."""
    otherwise, right = list[object](), expected()
    while clock.now < until:
        clock.now += STEP
        before = store.asked
        wait_for(lambda: store.asked > before + 1, 30, 0.005)
        answers = ask(server, client)
        otherwise += [] if answers == right else [(clock.now, answers)]
        if client.get(f"{server.url}/readyz").status_code != 200:
            otherwise.append((clock.now, "not ready"))
    return otherwise


def test_a_day_of_requests_without_the_store_has_no_failed_answer(tmp_path: Path) -> None:
    store, clock = Gone(tmp_path / "store"), Clock()
    fill(store)
    publish(store, prompts()["first"], 1, "staging")
    with httpx.Client(timeout=30) as client:
        with running(tmp_path, store=store, every=EVERY, clock=clock) as server:
            assert ask(server, client) == expected()
            store.away = True
            assert pass_hours(server, client, store, clock, DAY / 2) == []
        with running(tmp_path, store=store, every=EVERY, clock=clock) as server:  # killed and started at noon
            assert pass_hours(server, client, store, clock, DAY) == []
            assert client.get(f"{server.url}/v1/status").json()["trouble"] is True
            refused = client.post(f"{server.url}/v1/classify", json={"model": "movies@7", "input": TEXT})
            assert refused.status_code == 503  # nobody has it, and nobody knows whether it is there
            store.away = False
            publish(store, prompts()["first"], 3)
            wait_for(lambda: ask(server, client)[0] == (200, "movies@3", "positive"), 30, 0.02)
