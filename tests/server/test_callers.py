"""The file of tokens, what is left of a rate, and what each token opens."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from ptpipeline.errors import NotFound, SettingsError
from ptpipeline.server.callers import Bucket, Tokens, make_token, read_tokens, revoke_token
from ptpipeline.server.refusals import Refusal
from ptpipeline.storage.keys import pointer_key
from tests.server.serving import Running, prompts, running
from tests.server.test_door import ASK, classify, code


def test_a_rate_comes_back_with_time() -> None:
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    bucket.take(60)
    with pytest.raises(Refusal, match="ask again in 2 s") as caught:
        bucket.take(2)
    assert (caught.value.status_code, caught.value.headers) == (429, {"Retry-After": "2"})
    now[0] = 1.7
    with pytest.raises(Refusal, match="ask again in 1 s"):  # not in 0
        bucket.take(2)
    now[0] = 2.0
    bucket.take(2)
    now[0] = 1e6
    bucket.take(60)
    with pytest.raises(Refusal):
        bucket.take(1)


def test_what_a_rate_never_allows_is_refused_for_good() -> None:
    with pytest.raises(Refusal, match="send fewer") as caught:
        Bucket(5).take(6)
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}x",
        b'{"tokens": 1}',
        b'{"tokens": [{"name": "a", "sha256": "0"}]}',
        b'{"later": 1}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(body)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="not a file of tokens") as caught:
        read_tokens(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="not a file of tokens"):
        make_token(path, "me", [], None)
    assert list(tmp_path.iterdir()) == [path]  # nothing is made beside it


def test_a_token_of_the_same_name_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    first, second = make_token(path, "me", ["b", "a"], None), make_token(path, "me", [], 7)
    tokens = Tokens(path)
    assert tokens.find(first) is None
    found = tokens.find(second)
    assert found is not None
    assert (found.name, found.tasks, len(tokens)) == ("me", frozenset(), 1)
    assert json.loads(path.read_text())["tokens"][0]["per_minute"] == 7


@pytest.mark.parametrize("task", ["", "*", "mov*", "Movies", "movies@1", "movies ", "../movies", "ｍovies"])
def test_a_token_is_for_tasks_by_their_names(tmp_path: Path, task: str) -> None:
    """What is no name opens nothing, and whoever wrote it meant something else."""
    with pytest.raises(SettingsError, match="not a task's name; name each task"):
        make_token(tmp_path / "tokens.json", "me", ["movies", task], None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_lets_nobody_in(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "tokens.json"
    token = make_token(path, "me", [], None)
    path.chmod(mode)
    with pytest.raises(SettingsError, match="other users may write to it; run `chmod go-w"):
        Tokens(path).find(token)


@pytest.mark.parametrize(("rate", "left"), [(2, 0), (3, 3), (None, None)])
def test_what_was_spent_counts_on_at_the_same_rate_alone(tmp_path: Path, rate: int | None, left: int | None) -> None:
    path = tmp_path / "tokens.json"
    tokens = Tokens(path)
    before = tokens.find(make_token(path, "me", [], 2))
    assert before is not None
    assert before.bucket is not None
    before.bucket.take(2)
    after = tokens.find(make_token(path, "me", [], rate))
    assert after is not None
    assert (after.bucket and round(after.bucket._left)) == left


@pytest.mark.parametrize(("before", "after"), [(None, 0o600), (0o600, 0o600), (0o444, 0o644), (0o440, 0o640)])
def test_a_file_keeps_its_readers(tmp_path: Path, before: int | None, after: int) -> None:
    path = tmp_path / "tokens.json"
    if before is not None:
        make_token(path, "first", [], None)
        path.chmod(before)
    make_token(path, "second", [], None)
    assert path.stat().st_mode & 0o777 == after


def test_only_a_known_name_is_revoked(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    other = make_token(path, "other", [], None)
    make_token(path, "me", [], None)
    revoke_token(path, "me")
    with pytest.raises(NotFound, match="there is no token me"):
        revoke_token(path, "me")
    assert Tokens(path).find(other) is not None


def test_a_file_that_was_replaced_is_read_again_whatever_its_time_and_size(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    tokens, first = Tokens(path), make_token(path, "me", [], None)
    assert tokens.find(first)
    before = path.stat()
    second = make_token(path, "me", [], None)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert (tokens.find(first), bool(tokens.find(second))) == (None, True)


def test_a_file_that_was_edited_in_its_place_is_read_again_whatever_its_size(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    tokens, token = Tokens(path), make_token(path, "me", [], 7)
    assert tokens.find(token)
    path.write_text(path.read_text().replace('"per_minute": 7', '"per_minute": 8'))
    os.utime(path, (0, 0))
    found = tokens.find(token)
    assert found
    assert found.bucket
    assert found.bucket.per_minute == 8


def test_a_file_that_is_gone_lets_nobody_in_until_it_is_back(tmp_path: Path) -> None:
    path, away = tmp_path / "tokens.json", tmp_path / "away.json"
    tokens, token = Tokens(path), make_token(path, "me", [], None)
    assert tokens.find(token)
    path.rename(away)
    assert (tokens.find(token), len(tokens)) == (None, 0)
    away.rename(path)
    assert tokens.find(token)


def test_no_file_lets_nobody_in(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "none.json")
    assert (tokens.find(""), tokens.find("x"), len(tokens)) == (None, None, 0)


# ---------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server that asks for a token, and the file of tokens."""
    folder = tmp_path_factory.mktemp("guarded")
    path = folder / "tokens.json"
    make_token(path, "nobody", [], None)
    with running(folder, Tokens(path)) as server:
        yield server, path


def test_a_known_token_opens(guarded: tuple[Running, Path]) -> None:
    server, path = guarded
    assert classify(server, make_token(path, "friend", [], None)).status_code == 200


@pytest.mark.parametrize("token", [None, "ptp_wrong", "é", "x" * 5000])
def test_an_unknown_token_opens_nothing(guarded: tuple[Running, Path], token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}".encode("latin-1")}
    response = httpx.post(f"{guarded[0].url}/v1/classify", json=ASK, headers=headers)
    assert code(response) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("address", ["/v1/models", "/v1/status", "/metrics", "/v1/none"])
def test_nothing_of_anybody_is_shown_without_a_token(guarded: tuple[Running, Path], address: str) -> None:
    assert code(httpx.get(f"{guarded[0].url}{address}")) == (401, "invalid_api_key")


@pytest.mark.parametrize("address", ["/", "/healthz", "/readyz", "/openapi.json"])
def test_probes_and_page_need_none(guarded: tuple[Running, Path], address: str) -> None:
    assert httpx.get(f"{guarded[0].url}{address}").status_code == 200


def test_a_revoked_token_opens_nothing_at_once(guarded: tuple[Running, Path]) -> None:
    server, path = guarded
    token = make_token(path, "past", [], None)
    assert classify(server, token).status_code == 200
    revoke_token(path, "past")
    assert classify(server, token).status_code == 401


def test_a_token_of_some_tasks_opens_no_others(guarded: tuple[Running, Path]) -> None:
    server, path = guarded
    headers = {"Authorization": f"Bearer {make_token(path, 'writer', ['writer'], None)}"}
    assert code(httpx.post(f"{server.url}/v1/classify", json=ASK, headers=headers)) == (403, "forbidden_task")
    assert code(httpx.get(f"{server.url}/v1/models/movies@1", headers=headers)) == (403, "forbidden_task")
    assert code(httpx.get(f"{server.url}/metrics", headers=headers)) == (403, "forbidden_task")
    listed = httpx.get(f"{server.url}/v1/models", headers=headers).json()["data"]
    assert [model["task"] for model in listed] == ["writer"]
    shown = httpx.get(f"{server.url}/v1/status", headers=headers).json()["aliases"]
    assert [alias["task"] for alias in shown] == ["writer"]


def test_a_token_cannot_tell_which_other_tasks_there_are(guarded: tuple[Running, Path]) -> None:
    server, path = guarded
    headers = {"Authorization": f"Bearer {make_token(path, 'writer', ['writer'], None)}"}
    known, unknown = ("movies", "movies@1", "movies@none", "movies@sha256:x"), ("none", "\x00", "Writer", "writer;x")
    told = {httpx.get(f"{server.url}/v1/models/{quote(name)}", headers=headers).text for name in (*known, *unknown)}
    assert len(told) == 1
    assert '"forbidden_task"' in told.pop()
    foreign = f"writer@sha256:{prompts()['first'].digest}"
    assert code(httpx.get(f"{server.url}/v1/models/{foreign}", headers=headers)) == (404, "model_not_found")


def test_the_store_is_named_to_tokens_of_all_tasks_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    some, every = make_token(path, "some", ["writer"], None), make_token(path, "every", [], None)
    with running(tmp_path, Tokens(path)) as server:
        key = pointer_key("writer", "production")
        server.store.replace(key, b"{}", server.store.read(key).etag)
        shown = list[str]()
        for token in (every, some):
            refused, until = None, time.monotonic() + 30
            while refused is None and time.monotonic() < until:
                status = httpx.get(f"{server.url}/v1/status", headers={"Authorization": f"Bearer {token}"})
                refused = status.json()["aliases"][-1]["refused"]
            shown.append(str(refused))
        assert server.store.url in shown[0]
        assert shown[1] == "the server's log says why"


def test_a_token_asks_no_more_than_its_rate(guarded: tuple[Running, Path]) -> None:
    server, path = guarded
    token = make_token(path, "slow", [], 2)
    assert [classify(server, token).status_code for _ in range(2)] == [200, 200]
    response = classify(server, token)
    assert code(response) == (429, "rate_limited")
    assert 25 <= int(response.headers["retry-after"]) <= 30
    make_token(path, "other", [], None)  # the file is read again, and the rate goes on
    assert classify(server, token).status_code == 429


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [("/v1/classify", {"model": "movies"}, "input"), ("/v1/completions", {"model": "writer"}, "prompt")],
)
def test_each_text_of_a_request_is_taken_from_the_rate(
    guarded: tuple[Running, Path], path: str, body: dict[str, str], field: str
) -> None:
    server, file = guarded
    headers = {"Authorization": f"Bearer {make_token(file, field, [], 3)}"}
    asked = [
        httpx.post(f"{server.url}{path}", json=body | {field: ["film"] * 2}, headers=headers).status_code
        for _ in range(2)
    ]
    assert asked == [200, 429]


def test_names_that_nothing_has_count_too(guarded: tuple[Running, Path]) -> None:
    """Each is looked up in the store, so nobody may ask for more of them than for texts."""
    server, path = guarded
    headers = {"Authorization": f"Bearer {make_token(path, 'guesser', [], 3)}"}
    asked = [
        httpx.post(f"{server.url}/v1/classify", json=ASK | {"model": "none@1"}, headers=headers),
        httpx.post(f"{server.url}/v1/completions", json={"model": "none@2", "prompt": "x"}, headers=headers),
        httpx.get(f"{server.url}/v1/models/none@3", headers=headers),
        httpx.get(f"{server.url}/v1/models/none@4", headers=headers),
    ]
    assert [response.status_code for response in asked] == [404, 404, 404, 429]


def test_a_damaged_file_of_tokens_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token = make_token(path, "friend", [], None)
    with running(tmp_path, Tokens(path)) as server:
        assert classify(server, token).status_code == 200
        path.write_text("{")
        assert classify(server, token).status_code == 500
        assert str(path) not in classify(server, token).text


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user, which root alone may")
def test_a_file_that_cannot_be_looked_at_is_told_and_is_not_taken_for_none(tmp_path: Path) -> None:
    """Else the log would show unknown tokens alone, and nobody would look at the file."""
    path = tmp_path / "tokens.json"
    token = make_token(path, "me", [], None)
    tokens = Tokens(path)
    assert tokens.find(token) is not None
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(SettingsError, match=r"tokens\.json: cannot be read"):
        tokens.find(token)


def test_a_file_of_another_user_gets_no_token(tmp_path: Path) -> None:
    """Whoever put it there knows a token that it holds, which would open this server."""
    path = tmp_path / "tokens"
    make_token(path, "theirs", [], None)
    os.chown(path, 12345, 12345)
    with pytest.raises(SettingsError, match="belongs to another user"):
        make_token(path, "mine", [], None)
    assert [token.name for token in read_tokens(path).tokens] == ["theirs"]


@pytest.mark.parametrize(("scheme", "status"), [("bearer ", 200), ("Bearer  ", 200), ("Basic ", 401), ("", 401)])
def test_a_token_is_a_bearer_token(guarded: tuple[Running, Path], scheme: str, status: int) -> None:
    server, path = guarded
    headers = {"Authorization": f"{scheme}{make_token(path, 'friend', [], None)}"}
    assert httpx.post(f"{server.url}/v1/classify", json=ASK, headers=headers).status_code == status
