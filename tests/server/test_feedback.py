"""A shadow is asked what was classified, answers nobody, and is judged by the labels that come later."""

import time
from pathlib import Path

import httpx

from ptpipeline.records.base import now
from ptpipeline.records.prompts import Generation
from ptpipeline.records.versions import Beside, Pointer, Promotion
from ptpipeline.server.callers import Tokens, make_token
from ptpipeline.serving.live import EVERY
from ptpipeline.storage.keys import pointer_key
from tests.evaluation.probed import artifact, embeddings, tiny
from tests.server.serving import TASK, WRITER, Running, prompts, publish, running

TEXTS = ["a good film", "awful", "the plot"]


def shadow(server: Running, task: str, version: int, digest: str, beside: Beside) -> None:
    """Let that version stand beside the one that production names, and wait until the server knows."""
    row = Promotion(
        task=task, alias="production", seq=9, version=version, digest=digest, previous=version, actor="test",
        reason="test", verdict=None, at=now(), beside=beside,
    )  # fmt: skip
    key, body = pointer_key(task, "production"), Pointer(promotion=row, nonce="9" * 16).model_dump_json().encode()
    server.store.replace(key, body, server.store.read(key).etag)
    time.sleep(2 * EVERY)


def test_feedback_judges_each_text_that_a_shadow_was_asked_once(tmp_path: Path) -> None:
    with running(tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        made = prompts()
        shadow(server, TASK, 2, made["second"].digest, Beside(version=1, digest=made["first"].digest, percent=0))
        answer = client.post("/v1/classify", json={"model": TASK, "input": TEXTS}).json()
        assert answer["version"] == f"{TASK}@2"
        time.sleep(0.5)
        told = [
            client.post("/v1/feedback", json={"id": f"{answer['id']}-{index}", "label": "positive"}).status_code
            for index in (0, 1, 2, 2, 3)
        ]
        assert told == [200, 200, 200, 404, 404]
        assert client.post("/v1/feedback", json={"id": "req-1-x", "label": "positive"}).status_code == 400


def test_feedback_needs_a_token_of_the_answers_task(tmp_path: Path) -> None:
    """What is refused is not told from an answer that nobody gave, and is still to be judged by who may."""
    path = tmp_path / "tokens.json"
    own, other = make_token(path, "own", [TASK], None), make_token(path, "other", [WRITER], None)
    with running(tmp_path, Tokens(path)) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        made = prompts()
        shadow(server, TASK, 2, made["second"].digest, Beside(version=1, digest=made["first"].digest, percent=0))
        by = {name: {"Authorization": f"Bearer {token}"} for name, token in (("own", own), ("other", other))}
        answer = client.post("/v1/classify", json={"model": TASK, "input": "awful"}, headers=by["own"]).json()
        time.sleep(0.5)
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


def test_a_generated_text_is_compared_if_chance_had_no_part_in_it(tmp_path: Path) -> None:
    with running(tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        own = prompts()["writer"]
        other = artifact(
            tiny(), embeddings(tiny(), " the"), task=WRITER, labels={}, generate=Generation(max_new_tokens=4)
        )
        publish(server.store, other, 2, alias=None)
        shadow(server, WRITER, 1, own.digest, Beside(version=2, digest=other.digest, percent=0))
        told = {}
        for name, extra in {"whole": {}, "stream": {"stream": True}, "by chance": {"temperature": 1.0}}.items():
            asked = {"model": WRITER, "prompt": "a good film"} | extra
            answer = client.post("/v1/completions", json=asked)
            assert answer.status_code == 200
            time.sleep(0.5)
            feedback = {"id": f"{answer.headers['x-request-id']}-0", "label": "any"}
            told[name] = client.post("/v1/feedback", json=feedback).status_code
        assert told == {"whole": 200, "stream": 200, "by chance": 404}
