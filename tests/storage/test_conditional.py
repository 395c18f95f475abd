"""The probe lets real stores through and refuses, by name, a server that only pretends to honour conditions."""

import os

import pytest

from ptpipeline.errors import PreconditionFailed, ServiceUnavailable, SettingsError
from ptpipeline.storage import ObjectStore, RequestLimits, S3Store
from ptpipeline.storage.conditional import check_conditional_puts
from tests.storage import small_s3

CARELESS = {
    small_s3.IGNORES_IF_NONE_MATCH: r"a create of a key that exists \(If-None-Match: \*\) and ignores",
    small_s3.IGNORES_IF_MATCH: r"a replace by an outdated tag \(If-Match\) and ignores",
    small_s3.RACES_WITHOUT_LOCK: r"several creates of one key at once \(If-None-Match: \*\) and ignores",
    small_s3.REFUSES_ALL_IF_MATCH: "refuses a replace by the tag that it just gave",
    small_s3.FORGETS: "does not return the bytes",
    small_s3.NOT_IMPLEMENTED: "lacks what the registry needs",
}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, os.environ.get(name, "any"))  # a real server's, if one runs for the whole session


def test_a_right_store_passes_and_keeps_nothing(store: ObjectStore) -> None:
    check_conditional_puts(store)
    assert list(store.keys("probe")) == []


@pytest.mark.parametrize("manner", ["", small_s3.MISSING_IS_404])
def test_a_small_right_server_passes(manner: str) -> None:
    with small_s3.small_s3(manner) as server:
        check_conditional_puts(S3Store("bucket", "some/prefix", server.endpoint))
        assert server.objects == {}


@pytest.mark.parametrize("manner", CARELESS)
def test_a_careless_server_is_refused_by_name(manner: str) -> None:
    with small_s3.small_s3(manner) as server:
        with pytest.raises(SettingsError, match=CARELESS[manner]) as raised:
            check_conditional_puts(S3Store("bucket", "some/prefix", server.endpoint))
        assert f"s3://bucket/some/prefix at {server.endpoint}" in str(raised.value)
        assert "store that honours If-Match and If-None-Match" in str(raised.value)
        assert server.objects == {}


def test_a_race_of_replaces_alone_is_seen() -> None:
    with small_s3.small_s3() as server:
        store = RacyReplaces("bucket", endpoint=server.endpoint)
        with pytest.raises(SettingsError, match=r"several replaces by one tag at once \(If-Match\) and ignores"):
            check_conditional_puts(store)


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ("one", "does not return the bytes that were written last"),
        ("created", r"several creates of one key at once \(If-None-Match: \*\) and ignores"),
    ],
)
def test_a_refused_create_that_is_written_all_the_same_is_seen(wrong: str, fault: str) -> None:
    with small_s3.small_s3() as server:
        with pytest.raises(SettingsError, match=fault):
            check_conditional_puts(Careless("bucket", server.endpoint, creates=wrong))
        assert server.objects == {}


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ("one", "does not return the bytes that were written last"),
        ("none", r"a replace of a missing key \(If-Match\) and ignores"),
    ],
)
def test_a_refused_replace_that_is_written_all_the_same_is_seen(wrong: str, fault: str) -> None:
    with small_s3.small_s3() as server:
        store = Careless("bucket", server.endpoint, replaces=wrong, tells=wrong == "one")
        with pytest.raises(SettingsError, match=fault):
            check_conditional_puts(store)
        assert server.objects == {}


def test_a_store_that_lets_nobody_win_a_race_is_refused() -> None:
    with small_s3.small_s3() as server, pytest.raises(SettingsError, match="refuses all of several creates of one key"):
        check_conditional_puts(RefusesRaces("bucket", endpoint=server.endpoint))


def test_an_absent_server_is_unavailable() -> None:
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        check_conditional_puts(S3Store("bucket", endpoint="http://127.0.0.1:9", limits=RequestLimits(1, 1)))


class RacyReplaces(S3Store):
    """Honours every condition but that of replaces of one key at once."""

    def replace(self, key: str, body: bytes, etag: str) -> None:
        if key.endswith("/replaced"):
            self._call("put_object", Key=self._key(key), Body=body)
        else:
            super().replace(key, body, etag)


class Careless(S3Store):
    """Refuses puts as it should, and writes those to one key all the same; a replace is refused only if it `tells`."""

    def __init__(self, bucket: str, endpoint: str, creates: str = "", replaces: str = "", tells: bool = True) -> None:
        super().__init__(bucket, endpoint=endpoint)
        self.creates, self.replaces, self.tells = creates, replaces, tells

    def create(self, key: str, body: bytes) -> None:
        try:
            super().create(key, body)
        except PreconditionFailed:
            self._write(key, body, self.creates)
            raise

    def replace(self, key: str, body: bytes, etag: str) -> None:
        try:
            super().replace(key, body, etag)
        except PreconditionFailed:
            if not self._write(key, body, self.replaces) or self.tells:
                raise

    def _write(self, key: str, body: bytes, name: str) -> bool:
        if not name or not key.endswith(f"/{name}"):
            return False
        self._call("put_object", Key=self._key(key), Body=body)
        return True


class RefusesRaces(S3Store):
    """Refuses every create of several at once."""

    def create(self, key: str, body: bytes) -> None:
        if key.endswith("/created"):
            raise PreconditionFailed("busy")
        super().create(key, body)
