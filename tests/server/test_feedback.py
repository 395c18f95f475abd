"""A shadow is asked what was classified, answers nobody, and is judged by the labels that come later."""

import time
from pathlib import Path

import httpx

from ptpipeline.records.base import now
from ptpipeline.records.versions import Beside, Pointer, Promotion
from ptpipeline.serving.live import EVERY
from ptpipeline.storage.keys import pointer_key
from tests.server.serving import TASK, prompts, running

TEXTS = ["a good film", "awful", "the plot"]


def test_feedback_judges_each_text_that_a_shadow_was_asked_once(tmp_path: Path) -> None:
    with running(tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        made, key = prompts(), pointer_key(TASK, "production")
        row = Promotion(
            task=TASK, alias="production", seq=3, version=2, digest=made["second"].digest, previous=2, actor="test",
            reason="test", verdict=None, at=now(), beside=Beside(version=1, digest=made["first"].digest, percent=0),
        )  # fmt: skip
        server.store.replace(
            key, Pointer(promotion=row, nonce="3" * 16).model_dump_json().encode(), server.store.read(key).etag
        )
        time.sleep(2 * EVERY)
        answer = client.post("/v1/classify", json={"model": TASK, "input": TEXTS}).json()
        assert answer["version"] == f"{TASK}@2"
        time.sleep(0.5)
        told = [
            client.post("/v1/feedback", json={"id": f"{answer['id']}-{index}", "label": "positive"}).status_code
            for index in (0, 1, 2, 2, 3)
        ]
        assert told == [200, 200, 200, 404, 404]
        assert client.post("/v1/feedback", json={"id": "req-1-x", "label": "positive"}).status_code == 400
