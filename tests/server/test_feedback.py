"""A shadow is asked what was classified, answers nobody, and is judged by the labels that come later."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import Request

from ptpipeline.records.base import now
from ptpipeline.records.prompts import Generation
from ptpipeline.records.serving import Tally
from ptpipeline.records.versions import Beside, Pointer, Promotion
from ptpipeline.server.callers import Tokens, make_token
from ptpipeline.server.feedback import watch_texts
from ptpipeline.server.limits import Limits
from ptpipeline.serving import relay as relay_module
from ptpipeline.serving.answerer import Piece, Sampling
from ptpipeline.serving.served import Served
from ptpipeline.serving.trials import Trials
from ptpipeline.storage.keys import pointer_key
from ptpipeline.task.template import Fields
from tests.evaluation.probed import artifact, embeddings, tiny
from tests.server.serving import TASK, WRITER, Running, prompts, publish, running
from tests.waiting import wait_for

TEXTS = ["a good film", "awful", "the plot"]


def shadow(server: Running, task: str, version: int, digest: str, beside: Beside) -> None:
    """Let that version stand beside the one that production names, and wait until the server knows."""
    row = Promotion(
        task=task, alias="production", seq=9, version=version, digest=digest, previous=version, actor="test",
        reason="test", verdict=None, at=now(), beside=beside,
    )  # fmt: skip
    key, body = pointer_key(task, "production"), Pointer(promotion=row, nonce="9" * 16).model_dump_json().encode()
    server.store.replace(key, body, server.store.read(key).etag)
    wait_for(lambda: any((at.task, at.seq) == (task, 9) for at in server.live.observe().promotions), 60)


def wait_for_shadow(server: Running, id: str) -> None:
    """Wait until the shadow was asked what the request with that id asked."""
    wait_for(lambda: server.live.trials.find(id, 0), 60)


def test_feedback_judges_each_text_that_a_shadow_was_asked_once(tmp_path: Path) -> None:
    with running(tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        made = prompts()
        shadow(server, TASK, 2, made["second"].digest, Beside(version=1, digest=made["first"].digest, percent=0))
        answer = client.post("/v1/classify", json={"model": TASK, "input": TEXTS}).json()
        assert answer["version"] == f"{TASK}@2"
        wait_for_shadow(server, answer["id"])
        told = [
            client.post("/v1/feedback", json={"id": f"{answer['id']}-{index}", "label": "positive"}).status_code
            for index in (0, 1, 2, 2, 3)
        ]
        assert told == [200, 200, 200, 404, 404]
        later = client.post("/v1/classify", json={"model": TASK, "input": TEXTS}).json()["id"]
        wait_for_shadow(server, later)
        server.live.trials.keep([])  # as if the promotion had ended: there is no tally to count it in
        assert client.post("/v1/feedback", json={"id": f"{later}-0", "label": "positive"}).status_code == 404
        for wrong in ("req-1-x", "req-1-", "-1", "req-1-²", "req-1-" + "1" * 9):
            assert client.post("/v1/feedback", json={"id": wrong, "label": "positive"}).status_code == 400


def test_a_label_that_neither_version_has_is_refused_and_the_right_one_may_follow(tmp_path: Path) -> None:
    """A slip of the pen is no error of both versions; a label that one version alone has is right or wrong."""
    with running(tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        made = prompts()
        newer = artifact(tiny(), embeddings(tiny(), " yes"), labels=made["first"].manifest.labels | {"mixed": " film"})
        publish(server.store, newer, 3, alias=None)
        shadow(server, TASK, 2, made["second"].digest, Beside(version=3, digest=newer.digest, percent=50))
        answer = client.post("/v1/classify", json={"model": TASK, "input": TEXTS}).json()
        told = [
            client.post("/v1/feedback", json={"id": f"{answer['id']}-{index}", "label": label})
            for index, label in enumerate(["Positive", "mixed"])
        ]
        assert [one.status_code for one in told] == [400, 200]
        assert told[0].json()["error"]["message"] == (
            f"label: {TASK} has no such label; expected one of mixed, negative, positive"
        )
        again = client.post("/v1/feedback", json={"id": f"{answer['id']}-0", "label": "positive"})
        assert again.status_code == 200
        [tally] = server.live.trials.list_canaries()
        assert tally.judged + tally.canary_judged == 2


def test_feedback_needs_a_token_of_the_answers_task(tmp_path: Path) -> None:
    """What is refused is not told from an answer that nobody gave, and is still to be judged by who may."""
    path = tmp_path / "tokens.json"
    own, other = make_token(path, "own", [TASK], None), make_token(path, "other", [WRITER], None)
    with running(tmp_path, Tokens(path)) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        made = prompts()
        shadow(server, TASK, 2, made["second"].digest, Beside(version=1, digest=made["first"].digest, percent=0))
        by = {name: {"Authorization": f"Bearer {token}"} for name, token in (("own", own), ("other", other))}
        answer = client.post("/v1/classify", json={"model": TASK, "input": "awful"}, headers=by["own"]).json()
        wait_for_shadow(server, answer["id"])
        right, made_up = ({"id": f"{id}-0", "label": "positive"} for id in (answer["id"], "req-1"))
        refused = [client.post("/v1/feedback", json=body, headers=by["other"]) for body in (right, made_up)]
        assert {(one.status_code, one.text) for one in refused} == {(404, refused[0].text)}
        assert client.post("/v1/feedback", json=right, headers=by["own"]).status_code == 200


def test_feedback_judges_a_canary_and_status_says_so(tmp_path: Path) -> None:
    with running(tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        made = prompts()
        beside = Beside(version=1, digest=made["first"].digest, percent=50)
        shadow(server, TASK, 2, made["second"].digest, beside)
        seen = set[str]()
        for key in range(20):
            asked = {"model": TASK, "input": TEXTS[0], "user": str(key)}
            answer = client.post("/v1/classify", json=asked).json()
            seen.add(answer["version"])
            told = client.post("/v1/feedback", json={"id": f"{answer['id']}-0", "label": answer["data"][0]["label"]})
            assert told.status_code == 200
        assert seen == {f"{TASK}@1", f"{TASK}@2"}
        [movies] = [one for one in client.get("/v1/status").json()["aliases"] if one["task"] == TASK]
        assert movies["trial"].startswith(f"{TASK}@production: of the answers with feedback, ")
        assert movies["trial"].endswith("it alone was right in 0, version 2 alone in 0: no difference is shown")


def test_the_whole_text_of_a_canary_is_judged(tmp_path: Path) -> None:
    with running(tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        own = prompts()["writer"]
        publish(server.store, own.__class__(own.manifest.model_copy(update={"seed": 5}), own.tensors), 2, alias=None)
        other = own.__class__(own.manifest.model_copy(update={"seed": 5}), own.tensors).digest
        shadow(server, WRITER, 1, own.digest, Beside(version=2, digest=other, percent=50))
        answer = client.post("/v1/completions", json={"model": WRITER, "prompt": "a good film"})
        feedback = {"id": f"{answer.headers['x-request-id']}-0", "label": answer.json()["choices"][0]["text"]}
        assert client.post("/v1/feedback", json=feedback).status_code == 200
        assert "1 of 1 of" in client.get("/v1/status").json()["aliases"][-1]["trial"]


def test_any_server_takes_feedback_and_the_one_that_answered_counts_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a load balancer: with the model that was asked, by way of the store."""
    monkeypatch.setattr(relay_module, "LISTEN", 0.05)
    with running(tmp_path / "one", name="one", every=0.05) as one, httpx.Client(timeout=30) as client:
        made = prompts()
        shadow(one, TASK, 2, made["second"].digest, Beside(version=1, digest=made["first"].digest, percent=0))
        with running(tmp_path / "two", name="two", store=one.store, every=0.05) as two:
            answer = client.post(f"{one.url}/v1/classify", json={"model": TASK, "input": TEXTS}).json()
            wait_for_shadow(one, answer["id"])
            right = {"id": f"{answer['id']}-0", "label": "positive"}
            told = [
                client.post(f"{two.url}/v1/feedback", json=right | more)
                for more in (
                    {},
                    {"model": TASK},
                    {"model": f"{TASK}@2"},
                    {"model": TASK, "label": "Positive"},
                    {"model": TASK, "label": "negative"},  # another one than was told before
                    {"model": TASK, "id": "req-1-0"},  # no server gave such an id
                    {"model": TASK, "id": f"{answer['id']}-256"},  # or so many texts
                )
            ]
            assert [one.status_code for one in told] == [404, 202, 404, 400, 404, 404, 404]
            assert "name the `model` that was asked too" in told[0].json()["error"]["message"]
            assert told[1].json() == {"object": "feedback", "id": right["id"], "passed_on": True}
            wait_for(lambda: one.live.trials.find(answer["id"], 0) is None, 60)
            again = client.post(f"{one.url}/v1/feedback", json=right)
            assert again.status_code == 404  # it was told, whichever server took it
            assert one.live.trials.list()[0].judged == 1
            assert two.live.trials.list() == []


def test_a_caller_passes_on_no_feedback_of_a_task_that_they_may_not_use(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    other = make_token(path, "other", [WRITER], None)
    with running(tmp_path, Tokens(path), name="one") as server, httpx.Client(base_url=server.url, timeout=30) as client:
        told = {"id": f"req-{'0' * 24}-0", "label": "positive", "model": TASK}
        refused = client.post("/v1/feedback", json=told, headers={"Authorization": f"Bearer {other}"})
        assert refused.status_code == 403
        assert server.live.relay.list() == []


class Telling:
    """Generates the text that it is given, in two pieces, whoever is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def generate(self, digest: str, fields: Fields, sampling: Sampling, patience: float) -> AsyncIterator[Piece]:
        self.asked.append(digest)
        yield Piece(fields["text"], 1, 1)
        yield Piece(" too", 2, 1, "stop")


def test_each_of_several_texts_is_compared_with_its_own_when_all_are_whole(tmp_path: Path) -> None:
    """Whichever is whole first."""
    manifest, trials, telling = prompts()["writer"].manifest, Trials(tmp_path, "file:///x"), Telling()
    shadow = Served(WRITER, 2, "b" * 64, "production", manifest, 9)
    served = Served(WRITER, 1, "a" * 64, "production", manifest, 9, shadow)
    service: Any = SimpleNamespace(live=SimpleNamespace(trials=trials), answerer=telling, limits=Limits())
    request, texts = Request({"type": "http", "state": {"id": "req-1"}}), ["one", "two"]
    own = [telling.generate("", {"text": text}, Sampling(), 1) for text in texts]

    async def ask() -> None:
        first, second = watch_texts(service, request, served, texts, Sampling(), own)
        assert [piece.text async for piece in second] == ["two", " too"]
        assert trials.list() == []
        assert [piece.text async for piece in first] == ["one", " too"]
        await asyncio.sleep(0.01)

    asyncio.run(ask())
    assert trials.list() == [Tally(WRITER, "production", 9, 1, 2, asked=2)]
    assert telling.asked == ["", "", *[shadow.digest] * 2]


def test_a_generated_text_is_compared_if_chance_had_no_part_in_it(tmp_path: Path) -> None:
    with running(tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        own = prompts()["writer"]
        other = artifact(
            tiny(), embeddings(tiny(), " the"), task=WRITER, labels={}, generate=Generation(max_new_tokens=4)
        )
        publish(server.store, other, 2, alias=None)
        shadow(server, WRITER, 1, own.digest, Beside(version=2, digest=other.digest, percent=0))
        ids = {}
        for name, extra in {"by chance": {"temperature": 1.0}, "whole": {}, "stream": {"stream": True}}.items():
            answer = client.post("/v1/completions", json={"model": WRITER, "prompt": "a good film"} | extra)
            assert answer.status_code == 200
            ids[name] = answer.headers["x-request-id"]
        for name in ("whole", "stream"):  # by then a shadow would have been asked the first one too
            wait_for_shadow(server, ids[name])
        told = {
            name: client.post("/v1/feedback", json={"id": f"{id}-0", "label": "any"}).status_code
            for name, id in ids.items()
        }
        assert told == {"by chance": 404, "whole": 200, "stream": 200}
