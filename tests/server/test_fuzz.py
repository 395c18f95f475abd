"""Whatever a client sends: an answer of the form that the OpenAPI schema states, never a fault of the server."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.serving import Running, running

MODELS = ["writer", "movies", "writer@1", "movies@1", "pairs", "writer@sha256:" + "0" * 64]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
# What takes part in the schema, and is refused or asks for something else if it holds anything.
REFUSED = (
    "fields", "presence_penalty", "frequency_penalty", "logit_bias", "response_format", "max_completion_tokens"
)  # fmt: skip
# What is answered, whatever else of the schema stands beside it.
KNOWN = {
    "POST /v1/classify": {"model": "movies", "input": "a film"},
    "POST /v1/completions": {"model": "writer", "prompt": "a film", "max_tokens": 4},
    "POST /v1/chat/completions": {
        "model": "writer",
        "messages": [{"role": "user", "content": "a film"}],
        "max_tokens": 4,
    },
}
# A stranger's feedback is of no text; whatever else is asked is also answered.
REACHED = {"POST /v1/feedback": {400}, "GET /v1/models/{model}": {404}}
OPERATIONS = [
    "POST /v1/classify",
    "POST /v1/feedback",
    "POST /v1/completions",
    "POST /v1/chat/completions",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /v1/status",
    "GET /metrics",
    "GET /healthz",
    "GET /readyz",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("served")) as server:
        yield server


def read_schema(served: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_every_operation_is_tried(served: Running) -> None:
    found = [result.ok() for result in read_schema(served).get_all_operations()]
    assert {f"{one.method.upper()} {one.path}" for one in found} == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_to_its_schema(served: Running, name: str) -> None:
    method, path = name.split()
    operation, seen = read_schema(served)[path][method], set[int]()

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(), model=st.sampled_from(MODELS), known=st.booleans())
    def ask(case: schemathesis.Case, model: str, known: bool) -> None:
        if known and case.meta is not None and case.meta.generation.mode.is_positive and isinstance(case.body, dict):
            case.body = {key: value for key, value in case.body.items() if key not in REFUSED} | {"model": model}
            case.body |= KNOWN.get(name, {})
        seen.add(case.call_and_validate(checks=CHECKS).status_code)

    ask()
    assert seen >= REACHED.get(name, {200})
