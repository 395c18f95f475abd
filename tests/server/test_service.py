"""Which version answers a request: by the key that it gives, and as something that is not there if it cannot be had."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from ptpipeline.records.versions import Beside
from ptpipeline.server.callers import Bucket, Caller
from ptpipeline.server.limits import Limits
from ptpipeline.server.refusals import Refusal
from ptpipeline.server.service import Service
from ptpipeline.serving.live import Live
from ptpipeline.storage import FolderStore
from tests.serving.registered import TASK, Clock, OnEngine, a_prompt, add_version, point

ANYONE = Caller("anyone", frozenset(), None)
Found = tuple[int | None, str]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """Half of the keys get version 2; version 3 is of another base."""
    store = FolderStore(tmp_path / "store")
    one, two = (add_version(store, a_prompt(word), number) for number, word in enumerate((" yes", " bad"), 1))
    base = a_prompt(" dull").manifest.base_model.model_copy(update={"fingerprint": "0" * 64})
    add_version(store, a_prompt(" dull", base_model=base), 3)
    point(store, 1, one, 1, beside=Beside(version=2, digest=two, percent=50))
    live = Live(store, OnEngine(), tmp_path / "home", clock=Clock())
    live.poll()
    return Service(live, None, Limits(), None)  # type: ignore[arg-type]  # nothing is asked of them


def find(service: Service, reference: str, key: str | None = None, header: str = "", **asked: Any) -> int | None:
    state = {"caller": asked.pop("caller", ANYONE), "id": "req-1"}
    headers = [(b"x-ptp-key", header.encode())] if header else []
    request = Request({"type": "http", "headers": headers, "state": state})
    return asyncio.run(service.find(request, reference, key, **asked)).number


def test_a_key_gets_one_version_and_the_header_stands_before_the_user(service: Service) -> None:
    drawn = {str(key): service.live.find(TASK, str(key)).number for key in range(40)}
    first, second = (next(key for key, number in drawn.items() if number == wanted) for wanted in (1, 2))
    assert (find(service, TASK, first), find(service, TASK, second)) == (1, 2)
    assert (find(service, TASK, first, header=second), find(service, TASK, None, header=first)) == (2, 1)


@pytest.mark.parametrize("reference", [f"{TASK}@3", f"{TASK}@9", "none"])
def test_what_cannot_be_had_here_is_not_there_and_nothing_else_is_said(service: Service, reference: str) -> None:
    with pytest.raises(Refusal, match=f"this server has no model '{reference}'; `GET /v1/models`") as refused:
        find(service, reference)
    assert (refused.value.status_code, refused.value.code) == (404, "model_not_found")


def test_each_text_of_a_request_is_taken_from_the_rate(service: Service) -> None:
    caller = Caller("me", frozenset([TASK]), Bucket(5, Clock()))
    find(service, TASK, caller=caller, texts=3)
    with pytest.raises(Refusal, match="more than 5 texts a minute"):
        find(service, f"{TASK}@1", caller=caller, texts=3)


def test_a_task_that_is_not_the_callers_costs_and_tells_nothing(service: Service) -> None:
    caller = Caller("me", frozenset(["books"]), Bucket(5, Clock()))
    with pytest.raises(Refusal, match="may not use that task"):
        find(service, f"{TASK}@1", caller=caller, texts=9)
