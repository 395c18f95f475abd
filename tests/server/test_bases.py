"""An encoder-decoder, chats and several fields answer over HTTP, mixed in batches, as the engine does one by one."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from ptpipeline.models.frozen import FrozenBase
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.prompts import ChatForm, Generation
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.storage import FolderStore
from tests.evaluation.probed import artifact, embeddings, tiny
from tests.models.families import seq2seq_family
from tests.numbers import number_tokenizer
from tests.server.serving import Running, publish, running

CLOSE = 1e-4  # of log-probabilities
CHAT = ChatForm(template="0" * 64, parts=["</s>the film ", "{text}", "</s>was very ", "{claim}", "</s>"])
SHORT = ChatForm(template="1" * 64, parts=["</s>", "{text}", "</s>Sentiment:"])
WRITES: dict[str, Any] = {"labels": {}, "generate": Generation(max_new_tokens=9)}
Fields = dict[str, str]


def encoder_decoder() -> tuple[FrozenBase, list[Artifact], list[Fields]]:
    """A random T5 whose tokens are numbers, with prompts of three lengths that rank and two that write."""
    base = replace(seq2seq_family("t5 relu tied"), tokenizer=number_tokenizer())
    torch.manual_seed(3)
    labels = {"negative": "41 9", "positive": "42"}
    made = [
        artifact(base, torch.randn(length, 32), template="{text} 7", task=f"t5-{length}", **kind)
        for length, kind in ((1, {"labels": labels}), (9, {"labels": labels}), (4, {"labels": labels}),
                             (3, WRITES), (6, WRITES))
    ]  # fmt: skip
    return base, made, [{"text": text} for text in ("5 8 30", "11", "60 2 17 40 9 3 8 22 90 4 5 6 7")]


def chats() -> tuple[FrozenBase, list[Artifact], list[Fields]]:
    """The tiny base with tasks of chats beside plain templates, of one field and of two."""
    forms: dict[str, dict[str, Any]] = {
        "plain": {"template": "{text} and {claim}"},
        "chat": {"chat": CHAT, "template": "the film {text} was very {claim}"},
        "writes-plain": {"template": "{claim}, the {text}:"} | WRITES,
        "writes-chat": {"chat": CHAT, "template": "the film {text} was very {claim}"} | WRITES,
    }
    made = [
        artifact(tiny(), embeddings(tiny(), " lovely plot"[: 7 + 5 * (place % 2)]), task=task, **form)
        for place, (task, form) in enumerate(forms.items())
    ]
    texts = [("</s> good story", "a {text}"), ("bad", "very long and dull " * 4), ("the film", "good")]
    return tiny(), made, [{"text": text, "claim": claim} for text, claim in texts]


async def ask(server: Running, made: Artifact, fields: Fields) -> dict[str, Any]:
    """One answer, of whichever kind the prompt gives."""
    task = made.manifest.task
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        if made.manifest.generate is None:
            answer = await client.post("/v1/classify", json={"model": task, "input": fields})
        else:
            answer = await client.post("/v1/completions", json={"model": task, "fields": fields})
    assert (answer.status_code, answer.headers["x-ptp-digest"]) == (200, made.digest), answer.text
    found: dict[str, Any] = answer.json()
    return found


def check(base: FrozenBase, made: Artifact, fields: Fields, answer: dict[str, Any]) -> None:
    """Compare with an engine that holds this prompt alone and is asked this text alone."""
    alone = Engine(base)
    alone.load(made)
    question = Question(made.digest, fields)
    if made.manifest.generate is not None:
        assert [choice["text"] for choice in answer["choices"]] == alone.generate([question])
        return
    [scores] = alone.score_labels([question])
    expected = dict(zip(made.manifest.labels, scores.double().log_softmax(0).tolist(), strict=True))
    found = {name: math.log(share) for name, share in answer["data"][0]["probabilities"].items()}
    assert found == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("kind", [encoder_decoder, chats])
def test_mixed_over_http_each_answers_as_the_engine_does_alone(tmp_path: Path, kind: Any) -> None:
    base, made, texts = kind()
    store = FolderStore(tmp_path / "store")
    for one in made:
        publish(store, one, 1)
    asked = [(one, fields) for one in made for fields in texts]

    async def ask_all(server: Running) -> Sequence[dict[str, Any]]:
        return await asyncio.gather(*(ask(server, *pair) for pair in asked))

    with running(tmp_path, store=store, base=base) as server:
        answers = asyncio.run(ask_all(server))
        load = server.answerer.observe()
    assert load.batches < load.texts  # texts of several tasks shared one
    for (one, fields), answer in zip(asked, answers, strict=True):
        check(base, one, fields, answer)


def test_a_message_of_a_chat_is_the_text_of_a_task_of_chats(tmp_path: Path) -> None:
    """What it says of control tokens is text; what the chat's form says is none."""
    made = artifact(tiny(), embeddings(tiny(), " yes"), task="chat", chat=SHORT, template="{text}Sentiment:", **WRITES)
    store, text = FolderStore(tmp_path / "store"), "</s> a good film"
    publish(store, made, 1)
    engine = Engine(tiny())
    engine.load(made)
    question = Question(made.digest, {"text": text})
    assert engine.render(question).ids.count(tiny().tokenizer.eos_token_id) == 2
    with running(tmp_path, store=store) as server:
        body = {"model": "chat", "messages": [{"role": "user", "content": text}]}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == engine.generate([question])
    assert answer["usage"]["prompt_tokens"] == len(engine.render(question).ids) + made.manifest.num_virtual_tokens
