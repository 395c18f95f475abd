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


def test_a_winner_whose_bytes_a_refused_put_replaced_is_seen() -> None:
    with small_s3.small_s3() as server:
        with pytest.raises(
            SettingsError, match=r"several creates of one key at once \(If-None-Match: \*\) and ignores"
        ):
            check_conditional_puts(WritesRefusedCreates("bucket", endpoint=server.endpoint))
        assert server.objects == {}


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


class WritesRefusedCreates(S3Store):
    """Acknowledges one create of several at once, and stores those that it refused all the same."""

    def create(self, key: str, body: bytes) -> None:
        try:
            super().create(key, body)
        except PreconditionFailed:
            if key.endswith("/created"):
                self._call("put_object", Key=self._key(key), Body=body)
            raise
