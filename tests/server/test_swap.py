"""A stream that is open while its alias moves ends on the version with which it began, whatever becomes of that."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.prompts import Generation
from ptpipeline.serving import decoding, holdings
from tests.evaluation.probed import artifact, embeddings, tiny
from tests.server.serving import WRITER, Running, prompts, publish, running
from tests.serving.registered import Clock
from tests.waiting import wait_for

BODY: dict[str, Any] = {"prompt": "a film", "max_tokens": 200, "temperature": 2.0, "seed": 1}


def other(number: int) -> Artifact:
    """A version of the task with another prompt."""
    made = embeddings(tiny(), " the film was bad"[: 4 + number * 5])
    return artifact(tiny(), made, task=WRITER, labels={}, generate=Generation(max_new_tokens=4), seed=number)


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a while, so that a stream lasts longer than a promotion takes."""
    step = decoding.Decoder.step
    monkeypatch.setattr(decoding.Decoder, "step", lambda decoder: time.sleep(0.01) or step(decoder))


def answers_by(server: Running, number: int) -> bool:
    return server.live.find(WRITER).number == number


def test_a_stream_ends_on_its_version_while_the_next_request_has_the_new_one(tmp_path: Path) -> None:
    with running(tmp_path, every=0.02) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
        with client.completions.with_streaming_response.create(
            model=WRITER, stream=True, stream_options={"include_usage": True}, **BODY
        ) as response:
            lines = response.iter_lines()
            events = [next(lines)]
            publish(server.store, other(2), 2)
            wait_for(lambda: answers_by(server, 2), 30, 0.01)
            assert server.answerer.observe().generating == 1  # it goes on
            after = client.completions.create(model=WRITER, prompt="a film")
            events += [line for line in lines if line]
            assert response.headers["x-ptp-version"] == f"{WRITER}@1"
            assert response.headers["x-ptp-digest"] == prompts()["writer"].digest
        told = [json.loads(line.removeprefix("data: ")) for line in events if "[DONE]" not in line]
        assert {(one["model"], one["version"], one["digest"]) for one in told} == {
            (f"{WRITER}@1", f"{WRITER}@1", prompts()["writer"].digest)
        }
        assert after.model == f"{WRITER}@2"
        again = client.completions.create(model=f"{WRITER}@1", **BODY)
        assert "".join(one["choices"][0]["text"] for one in told if one["choices"]) == again.choices[0].text
        assert told[-1]["usage"] == again.usage.model_dump(exclude_none=True)  # type: ignore[union-attr]
        assert client.completions.create(model=f"{WRITER}@2", **BODY).choices[0].text != again.choices[0].text


def test_a_version_that_is_dropped_under_an_open_stream_ends_it_and_then_goes(tmp_path: Path) -> None:
    clock = Clock()
    with running(tmp_path, every=0.02, clock=clock) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        whole = client.post("/v1/completions", json={"model": WRITER} | BODY).json()["choices"][0]["text"]
        first = prompts()["writer"].digest
        body = {"model": WRITER, "stream": True} | BODY
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            events = [next(lines)]
            for number in (2, 3):
                publish(server.store, other(number), number)
                wait_for(lambda number=number: answers_by(server, number), 30, 0.01)
            clock.now += 2 * holdings.RETAINED
            wait_for(lambda: first not in server.answerer._held, 30, 0.01)
            server.answerer._worker.submit(lambda: None).result(30)  # behind what would unload it
            assert first in server.answerer._engine._loaded
            assert server.answerer.observe().generating == 1
            events += [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        told = [json.loads(line.removeprefix("data: ")) for line in events[:-1]]
        assert "".join(one["choices"][0]["text"] for one in told) == whole
        wait_for(lambda: first not in server.answerer._engine._loaded, 30, 0.01)
