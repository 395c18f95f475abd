"""The file of tokens, and what is left of a rate."""

import json
from pathlib import Path

import pytest

from ptpipeline.errors import NotFound, SettingsError
from ptpipeline.server.refusals import Refusal
from ptpipeline.server.tokens import Bucket, Tokens, make_token, read_tokens, revoke_token


def test_a_rate_comes_back_with_time() -> None:
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    bucket.take(60)
    with pytest.raises(Refusal, match="ask again in 2 s") as caught:
        bucket.take(2)
    assert (caught.value.status_code, caught.value.headers) == (429, {"Retry-After": "2"})
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


def test_a_token_of_the_same_name_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    first, second = make_token(path, "me", ["b", "a"], None), make_token(path, "me", [], 7)
    tokens = Tokens(path)
    assert tokens.find(first) is None
    found = tokens.find(second)
    assert found is not None
    assert (found.name, found.tasks, len(tokens)) == ("me", frozenset(), 1)
    assert json.loads(path.read_text())["tokens"][0]["per_minute"] == 7


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


def test_only_a_known_name_is_revoked(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    other = make_token(path, "other", [], None)
    make_token(path, "me", [], None)
    revoke_token(path, "me")
    with pytest.raises(NotFound, match="there is no token me"):
        revoke_token(path, "me")
    assert Tokens(path).find(other) is not None


def test_no_file_lets_nobody_in(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "none.json")
    assert (tokens.find(""), tokens.find("x"), len(tokens)) == (None, None, 0)
