"""The server as the official client of OpenAI's API sees it."""

import gzip
import json
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from ptpipeline.records.prompts import Generation
from ptpipeline.serving.engine import Engine, Question
from tests.evaluation.probed import tiny
from tests.server.serving import Running, prompts, publish, running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture
def client(served: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def expected(text: str) -> str:
    made = prompts()["writer"]
    engine = Engine(tiny())
    engine.load(made)
    return engine.generate([Question(made.digest, {"text": text})])[0]


def ask(served: Running, path: str, body: object) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body)


def refused(response: httpx.Response, status: int, code: str) -> str:
    """The sentence of a refusal, in OpenAI's form."""
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, None)
    assert error["type"]
    assert "\n" not in error["message"]
    return str(error["message"])


# ---------------------------------------------------------------- the official client


def test_the_client_lists_what_is_served(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["movies", "pairs", "writer"]
    found = client.models.retrieve("movies@1").model_dump()
    assert (found["version"], found["digest"]) == ("movies@1", prompts()["first"].digest)


def test_the_client_completes_a_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="writer", prompt="a good film")
    assert answer.choices[0].text == expected("a good film")
    assert (answer.model, answer.system_fingerprint) == ("writer@1", prompts()["writer"].digest)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_the_client_completes_several_texts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="writer", prompt=["a good film", "a bad plot"])
    assert [choice.text for choice in answer.choices] == [expected("a good film"), expected("a bad plot")]


def test_the_client_reads_a_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="writer", prompt="a good film", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected("a good film")
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage is not None
    assert {chunk.model for chunk in chunks} == {"writer@1"}
    assert {chunk.object for chunk in chunks} == {"text_completion"}


def test_the_client_chats(client: openai.OpenAI) -> None:
    asked = [{"role": "user", "content": "a good film"}]
    answer = client.chat.completions.create(model="writer", messages=asked)  # type: ignore[call-overload]
    assert (answer.object, answer.choices[0].message.content) == ("chat.completion", expected("a good film"))


def test_a_stream_counts_its_tokens_only_if_asked_and_no_proxy_holds_it_back(served: Running) -> None:
    body = {"model": "writer", "prompt": "a good film", "stream": True}
    for options, counted in (({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)):
        answer = ask(served, "/v1/completions", body | {"stream_options": options})
        assert ("usage" in answer.text, answer.headers["x-accel-buffering"]) == (counted, "no")


def test_the_client_reads_the_stream_of_a_chat(client: openai.OpenAI) -> None:
    asked = [{"role": "user", "content": [{"type": "text", "text": "a good film"}]}]
    chunks = list(client.chat.completions.create(model="writer", messages=asked, stream=True))  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected("a good film")
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * (len(chunks) - 1)]


def test_the_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has no model 'nothing'"):
        client.completions.create(model="nothing", prompt="x")
    with pytest.raises(openai.BadRequestError, match="presence_penalty: not supported here, since no weight"):
        client.completions.create(model="writer", prompt="x", presence_penalty=1)
    with pytest.raises(openai.BadRequestError, match="labels"):
        client.completions.create(model="movies", prompt="x")
    with pytest.raises(openai.BadRequestError, match="labels"):
        client.completions.create(model="movies", prompt="x", stream=True)


def test_what_a_client_writes_as_null_asks_for_nothing(client: openai.OpenAI) -> None:
    """Programs hand every option through, and None where it was not given."""
    asked = [{"role": "user", "content": "a good film", "name": None, "tool_calls": None}]
    nothing = dict.fromkeys(["tool_choice", "reasoning_effort", "top_logprobs", "audio", "stop", "seed", "stream"])
    answer = client.chat.completions.create(model="writer", messages=asked, **nothing)  # type: ignore[call-overload]
    assert answer.choices[0].message.content == expected("a good film")


def test_no_share_of_probability_is_the_likeliest_token(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="writer", prompt="a good film", temperature=2, top_p=0)
    assert answer.choices[0].text == expected("a good film")


def test_seeds_have_64_bits(client: openai.OpenAI) -> None:
    for seed in (2**63 - 1, -(2**63)):
        client.completions.create(model="writer", prompt="a good film", temperature=1, seed=seed)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="writer", prompt="a good film", temperature=1, seed=2**63)


# ---------------------------------------------------------------- classification


def test_one_text_is_classified(served: Running) -> None:
    response = ask(served, "/v1/classify", {"model": "movies@1", "input": "the good film"})
    answer, digest = response.json(), prompts()["first"].digest
    assert (answer["version"], answer["digest"]) == ("movies@1", digest)
    assert (response.headers["x-ptp-version"], response.headers["x-ptp-digest"]) == ("movies@1", digest)
    (found,) = answer["data"]
    assert found["label"] == "positive"
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    assert next(iter(found["probabilities"])) == "positive"


@pytest.mark.parametrize("name", ["movies", "movies@production", "movies@2", "movies@sha256:"])
def test_a_version_has_several_names(served: Running, name: str) -> None:
    digest = prompts()["second"].digest
    model = name + digest if name.endswith(":") else name
    assert ask(served, "/v1/classify", {"model": model, "input": "a film"}).json()["digest"] == digest


def test_a_bad_text_of_several_fails_alone(served: Running) -> None:
    texts = ["the good film", {"other": "x"}, "plot " * 500, {"text": "awful plot"}]
    data = ask(served, "/v1/classify", {"model": "movies@1", "input": texts}).json()["data"]
    assert [item["index"] for item in data] == [0, 1, 2, 3]
    assert [item.get("label") for item in data] == ["positive", None, None, "negative"]
    assert [item["error"]["code"] for item in data[1:3]] == ["invalid_request", "context_length_exceeded"]


def test_a_single_bad_text_is_refused(served: Running) -> None:
    response = ask(served, "/v1/classify", {"model": "movies", "input": "plot " * 500})
    assert "text" in refused(response, 400, "context_length_exceeded")


def test_a_template_of_several_fields_takes_them_by_name(served: Running) -> None:
    fields = {"first": "the good", "second": "film"}
    assert ask(served, "/v1/classify", {"model": "pairs", "input": fields}).json()["data"][0]["label"]
    sentence = refused(ask(served, "/v1/classify", {"model": "pairs", "input": "a film"}), 400, "invalid_request")
    assert sentence == (
        "text 1 for pairs@1 is one text, but the template has the fields first and second; give each by its name: "
        '{"first": "...", "second": "..."}'
    )


# ---------------------------------------------------------------- what is refused


BAD = {
    "no JSON": (b"{", "not_json"),
    "nothing": (b"", "invalid_request"),
    "nested too deep": (b"[" * 10_000 + b"]" * 10_000, "not_json"),
    "half a surrogate pair": (b'{"model": "movies", "input": "\\ud800"}', "not_json"),
    "not a number": (b'{"model": "movies", "input": NaN}', "not_json"),
    "a field twice": (b'{"model": "movies", "input": "a", "input": "b"}', "not_json"),
    "an unknown field": (b'{"model": "movies", "input": "a", "secret": 1}', "invalid_request"),
    "a number": (b'{"model": "movies", "input": 1}', "invalid_request"),
    "no texts": (b'{"model": "movies", "input": []}', "invalid_request"),
    "no model": (b'{"input": "a"}', "invalid_request"),
    "a path": (b'{"model": "../../etc/passwd", "input": "a"}', "model_not_found"),
    "a long name": (b'{"model": "%s", "input": "a"}' % (b"a" * 201), "invalid_request"),
}


MANY = {
    "wrong texts": ("/v1/classify", {"model": "movies", "input": [1] * 500_000}),
    "wrong texts by field": ("/v1/classify", {"model": "movies", "input": [{"text": 1}] * 80_000}),
    "unknown fields": ("/v1/completions", {"model": "writer"} | {f"k{number}": 1 for number in range(90_000)}),
    "wrong messages": ("/v1/chat/completions", {"model": "writer", "messages": [1] * 500_000}),
    "wrong parts": (
        "/v1/chat/completions",
        {"model": "writer", "messages": [{"role": "user", "content": [{}] * 200_000}]},
    ),
}


@pytest.mark.parametrize("kind", MANY)
def test_a_body_of_faults_keeps_nobody_waiting(served: Running, kind: str) -> None:
    """Each fault would be an error of its own: half a million of them took ten seconds of everybody's time."""
    path, value = MANY[kind]
    body = json.dumps(value, separators=(",", ":")).encode()
    assert len(body) <= 2**20
    began = time.process_time()
    response = httpx.post(f"{served.url}{path}", content=body, headers={"Content-Type": "application/json"})
    refused(response, 400, "too_many")
    assert time.process_time() - began < 1.5


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_body_is_one_sentence(served: Running, kind: str) -> None:
    body, code = BAD[kind]
    response = httpx.post(f"{served.url}/v1/classify", content=body, headers={"Content-Type": "application/json"})
    refused(response, 404 if code == "model_not_found" else 400, code)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}, "expected one message"),
        ({"messages": [{"role": "user", "content": "y"}], "max_tokens": 100_000}, "at most 1024 are allowed"),
        ({"messages": [{"role": "user", "content": "y"}], "tools": [{}]}, "tools: "),
        ({"messages": [{"role": "user", "content": "y"}], "n": 2}, "n: "),
        ({"messages": [{"role": "user", "content": "y"}], "response_format": {"type": "json_object"}}, "leave it out"),
    ],
)
def test_what_would_change_an_answer_and_is_not_done_is_refused(
    served: Running, change: dict[str, object], words: str
) -> None:
    response = ask(served, "/v1/chat/completions", {"model": "writer"} | change)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


WANTED = {
    "token ids": ("/v1/completions", {"prompt": [1, 2, 3]}, "prompt: expected a text, or a list of texts"),
    "no prompts": ("/v1/completions", {"prompt": []}, "prompt: expected a text, or a list of texts"),
    "lists of texts": ("/v1/classify", {"input": [["a film"]]}, "input: expected a text"),
    "nine stop strings": ("/v1/completions", {"prompt": "a", "stop": ["x"] * 9}, "at most 8 strings"),
    "an image": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content: expected a text, or a list of parts of the type text",
    ),
    "an unknown field": (
        "/v1/completions",
        {"prompt": "a", "nonsense": 1},
        "nonsense: not supported here; leave it out",
    ),
}


@pytest.mark.parametrize("kind", WANTED)
def test_a_refusal_says_what_is_expected(served: Running, kind: str) -> None:
    path, body, words = WANTED[kind]
    assert words in refused(ask(served, path, {"model": "writer"} | body), 400, "invalid_request")


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"3"])
def test_a_body_that_is_no_object_is_named(served: Running, body: bytes) -> None:
    response = httpx.post(f"{served.url}/v1/classify", content=body, headers={"Content-Type": "application/json"})
    assert refused(response, 400, "invalid_request") == "the body: expected a JSON object"


def test_a_mark_before_the_body_is_no_fault(served: Running) -> None:
    body = b'\xef\xbb\xbf{"model": "movies", "input": "a film"}'  # as editors of Windows begin a file
    response = httpx.post(f"{served.url}/v1/classify", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200


def test_a_packed_body_is_told_as_such(served: Running) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = httpx.post(f"{served.url}/v1/classify", content=gzip.compress(b"{}"), headers=headers)
    assert "Content-Encoding" in refused(response, 415, "not_json")


@pytest.mark.parametrize(
    "change", [{"max_tokens": "4"}, {"max_tokens": True}, {"temperature": "0"}, {"stream": "yes"}, {"seed": 1.0}]
)
def test_no_value_is_taken_for_another_one(served: Running, change: dict[str, object]) -> None:
    response = ask(served, "/v1/completions", {"model": "writer", "prompt": "a film"} | change)
    assert refused(response, 400, "invalid_request").startswith(f"{next(iter(change))}: ")


def test_a_whole_number_is_a_temperature(served: Running) -> None:
    body = {"model": "writer", "prompt": "a film", "temperature": 1, "top_p": 1, "max_tokens": 2}
    assert ask(served, "/v1/completions", body).status_code == 200


@pytest.mark.parametrize(
    ("path", "form"),
    [("/v1/completions", {}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "no text"}]})],
)
def test_fields_take_the_place_of_a_text(served: Running, path: str, form: dict[str, object]) -> None:
    body = {"model": "writer", "fields": {"text": "a good film"}}
    [choice] = ask(served, path, body | form).json()["choices"]
    assert (choice.get("text") or choice["message"]["content"]) == expected("a good film")


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"prompt": "a film", "fields": {"text": "a film"}}, "invalid_request", "send either prompt or fields"),
        ({}, "invalid_request", "prompt: expected a text, or send fields"),
        ({"prompt": ["a film", "a plot"], "stream": True}, "too_many", "a stream takes one text"),
    ],
)
def test_what_text_is_meant_has_to_be_plain(served: Running, change: dict[str, object], code: str, words: str) -> None:
    assert words in refused(ask(served, "/v1/completions", {"model": "writer"} | change), 400, code)


def test_an_unknown_address_and_method_are_told_in_the_same_form(served: Running) -> None:
    refused(httpx.get(f"{served.url}/v2/none"), 404, "unknown_address")
    refused(httpx.get(f"{served.url}/v1/classify"), 405, "wrong_method")


def test_a_wrong_method_is_told_the_right_one(served: Running) -> None:
    asked = httpx.get(f"{served.url}/v1/classify")
    assert (asked.headers["allow"], "takes POST;" in refused(asked, 405, "wrong_method")) == ("POST", True)
    assert httpx.request("OPTIONS", f"{served.url}/v1/models").headers["allow"] == "GET"


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v1/models"])
def test_monitors_may_ask_for_the_head_alone(served: Running, path: str) -> None:
    head, whole = httpx.head(f"{served.url}{path}"), httpx.get(f"{served.url}{path}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]
    refused(httpx.get(f"{served.url}/v1/classify"), 405, "wrong_method")
    assert httpx.head(f"{served.url}/v1/classify").status_code == 405


@pytest.mark.parametrize("path", ["/v1/completions/", "/v1/chat/completions/", "/v1/classify/"])
def test_a_slash_too_many_sends_nobody_elsewhere(served: Running, path: str) -> None:
    """Behind what ends TLS, the address that the server would name is one without TLS: the text would go there."""
    response = ask(served, path, {"model": "movies", "input": "a private text"})
    refused(response, 404, "unknown_address")
    assert "location" not in response.headers


def test_a_new_version_answers_after_a_promotion(served: Running) -> None:
    made = prompts()["writer"]
    changed = made.manifest.model_copy(update={"seed": 7, "generate": Generation(max_new_tokens=2)})
    publish(served.store, made.__class__(changed, made.tensors), 2, "staging")
    answer = ask(served, "/v1/completions", {"model": "writer@staging", "prompt": "a good film"}).json()
    assert (answer["model"], answer["version"]) == ("writer@2", "writer@2")
