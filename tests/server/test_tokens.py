"""The file of tokens, and what is left of a rate."""

import json
import os
from pathlib import Path

import pytest

from ptpipeline.errors import SettingsError
from ptpipeline.server.refusals import Refusal
from ptpipeline.server.tokens import Bucket, Tokens, make_token, read_tokens


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


def test_no_file_lets_nobody_in(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "none.json")
    assert (tokens.find(""), tokens.find("x"), len(tokens)) == (None, None, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user, which root alone may")
def test_a_file_of_another_user_gets_no_token(tmp_path: Path) -> None:
    """Whoever put it there knows a token that it holds, which would open this server."""
    path = tmp_path / "tokens"
    make_token(path, "theirs", [], None)
    os.chown(path, 12345, 12345)
    with pytest.raises(SettingsError, match="belongs to another user"):
        make_token(path, "mine", [], None)
    assert [token.name for token in read_tokens(path).tokens] == ["theirs"]
