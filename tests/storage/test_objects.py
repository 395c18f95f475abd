"""The object store's contract, over a folder and over a real S3 server."""

import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fixtures.s3_server import S3Server
from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, SettingsError
from ptpipeline.storage import FolderStore, ObjectStore, check_key, open_store

WRITERS = 6


def test_a_created_object_reads_back(store: ObjectStore) -> None:
    store.create("a/b.json", b"\x00one")
    assert store.read("a/b.json").body == b"\x00one"
    assert store.exists("a/b.json")


def test_a_missing_object_is_not_found(store: ObjectStore) -> None:
    assert not store.exists("a/b")
    with pytest.raises(NotFound, match="a/b"):
        store.read("a/b")


def test_an_object_is_read_again_only_if_it_has_another_tag(store: ObjectStore) -> None:
    store.create("a", b"one")
    etag = store.read("a").etag
    assert store.read_changed("a", etag) is None
    store.replace("a", b"two", etag)
    assert store.read_changed("a", etag) == store.read("a")
    store.replace("a", b"one", store.read("a").etag)
    assert store.read_changed("a", etag) is None  # tags are hashes of bytes


def test_a_missing_object_is_not_unchanged(store: ObjectStore) -> None:
    store.create("a", b"one")
    etag = store.read("a").etag
    store.delete("a")
    with pytest.raises(NotFound, match="a"):
        store.read_changed("a", etag)


def test_a_folder_is_no_object(store: ObjectStore) -> None:
    store.create("a/b", b"one")
    assert not store.exists("a")
    with pytest.raises(NotFound):
        store.read("a")


def test_creating_the_same_bytes_again_is_silent(store: ObjectStore) -> None:
    store.create("a", b"one")
    store.create("a", b"one")
    assert store.read("a").body == b"one"


def test_creating_other_bytes_is_refused(store: ObjectStore) -> None:
    store.create("a", b"one")
    with pytest.raises(PreconditionFailed, match="a"):
        store.create("a", b"two")
    assert store.read("a").body == b"one"


def test_replace_moves_the_object_that_was_read(store: ObjectStore) -> None:
    store.create("a", b"one")
    store.replace("a", b"two", store.read("a").etag)
    assert store.read("a").body == b"two"


def test_replace_with_an_old_tag_is_refused(store: ObjectStore) -> None:
    store.create("a", b"one")
    old = store.read("a").etag
    store.replace("a", b"two", old)
    with pytest.raises(PreconditionFailed):
        store.replace("a", b"three", old)
    assert store.read("a").body == b"two"


def test_replace_of_a_missing_object_is_refused(store: ObjectStore) -> None:
    store.create("a", b"one")
    with pytest.raises(PreconditionFailed, match="b changed"):
        store.replace("b", b"two", store.read("a").etag)
    assert not store.exists("b")


def test_replace_of_a_deleted_object_is_refused(store: ObjectStore) -> None:
    store.create("a", b"one")
    etag = store.read("a").etag
    store.delete("a")
    with pytest.raises(PreconditionFailed):
        store.replace("a", b"two", etag)
    assert not store.exists("a")


def test_one_of_many_creators_wins(store: ObjectStore) -> None:
    outcomes = _race(lambda number: store.create("a", b"body %d" % number))
    assert outcomes.count("won") == 1
    assert outcomes.count("lost") == WRITERS - 1


def test_one_of_many_replacers_wins(store: ObjectStore) -> None:
    store.create("a", b"one")
    etag = store.read("a").etag
    outcomes = _race(lambda number: store.replace("a", b"body %d" % number, etag))
    assert outcomes.count("won") == 1
    assert store.read("a").body == b"body %d" % outcomes.index("won")


def test_a_deleted_object_is_gone(store: ObjectStore) -> None:
    store.create("a", b"one")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_keys_lists_a_folder_in_order(store: ObjectStore) -> None:
    for key in ("p/b/2", "p/a", "p/b/1", "pa/x", "q"):
        store.create(key, b"")
    assert list(store.keys("p")) == ["p/a", "p/b/1", "p/b/2"]
    assert list(store.keys("none")) == []


def test_folders_are_named_without_what_they_hold(store: ObjectStore) -> None:
    for key in ("prompts/b/aliases/x.json", "prompts/a/1/manifest.json", "prompts/a/2/manifest.json", "prompts/file"):
        store.create(key, b"{}")
    assert list(store.folders("prompts")) == ["prompts/a", "prompts/b"]
    assert list(store.folders("prompts/b/aliases")) == list(store.folders("nothing")) == []


def test_files_beside_folders_of_like_names_are_listed_once(store: ObjectStore) -> None:
    names = ["p/a-b", "p/a.b", "p/a/b", "p/a0", "p/aB/c", "p/a_", "p/b"]
    for key in names:
        store.create(key, b"")
    assert (
        sorted(store.keys("p")) == names
    )  # where a folder stands among its neighbours differs: S3 compares the slash, SeaweedFS does not


def test_a_listing_tells_size_and_age(store: ObjectStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)  # servers tell whole seconds
    store.create("p/a", b"four")
    (item,) = store.list_objects("p")
    assert (item.key, item.bytes) == ("p/a", 4)
    assert before <= item.modified <= datetime.now(UTC) + timedelta(seconds=2)
    assert item.modified.utcoffset() == timedelta(0)


def test_a_listing_goes_on_while_its_objects_are_deleted(store: ObjectStore) -> None:
    for number in range(3):
        store.create(f"p/{number}", b"")
    for key in store.keys("p"):
        store.delete(key)
    assert list(store.keys("p")) == []


@pytest.mark.parametrize("key", ["", "/a", "a/", "../a", "a/../b", ".hidden", "a//b", "a b", "a\n", "ä"])
def test_an_unsafe_key_is_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(ArtifactError, match="object key"):
        store.create(key, b"")


@given(st.text(max_size=20))
def test_a_checked_key_stays_below_its_root(key: str) -> None:
    try:
        path = (Path("/root") / check_key(key)).resolve()
    except ArtifactError:
        return
    assert path.is_relative_to("/root")


@pytest.mark.servers
def test_the_address_opens_the_right_store(s3_server: S3Server, tmp_path: Path) -> None:
    assert isinstance(open_store(f"file://{tmp_path}"), FolderStore)
    opened = open_store("s3://bucket/some/prefix", s3_server.endpoint)
    assert opened.url == "s3://bucket/some/prefix"


@pytest.mark.parametrize(
    "url", ["", "relative/folder", "http://host/bucket", "s3://", "file://", "file://relative/folder"]
)
def test_an_unknown_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="PTP_STORE"):
        open_store(url)


@pytest.mark.parametrize("name", ["plain", "with space", "50%25 off", "c#", "what?"])
def test_a_folders_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    open_store(f"file://{tmp_path}/{name}").create("a", b"one")
    assert (tmp_path / name / "a").read_bytes() == b"one"


LOGINS = ["http://me:pa55word@host:1", "http://me:pa55@wo/rd@host", "me:pa55word@host:8333", "http://me:pa55word@[bad"]


@pytest.mark.parametrize("endpoint", LOGINS)
def test_an_endpoint_with_a_password_is_refused_without_it(endpoint: str) -> None:
    with pytest.raises(SettingsError, match=r"PTP_S3_ENDPOINT: .*AWS_ACCESS_KEY_ID") as raised:
        open_store("s3://bucket", endpoint)
    assert "pa55" not in shown(raised)


def test_boto3s_own_endpoint_with_a_password_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", LOGINS[0])
    with pytest.raises(SettingsError, match="AWS_ENDPOINT_URL_S3") as raised:
        open_store("s3://bucket")
    assert "pa55" not in shown(raised)


@pytest.mark.parametrize(
    "url", ["s3://me:pa55word@bucket/prefix", "s3://me:pa55/word@bucket", "http://me:pa55word@host/bucket"]
)
def test_a_store_with_a_password_is_refused_without_it(url: str) -> None:
    with pytest.raises(SettingsError, match=r"PTP_STORE: .*AWS_ACCESS_KEY_ID") as raised:
        open_store(url)
    assert "pa55" not in shown(raised)


def shown(raised: pytest.ExceptionInfo[BaseException]) -> str:
    """All that a log would show of the error, its causes included."""
    return "".join(
        line for line in traceback.format_exception(raised.value) if not line.lstrip().startswith("open_store(")
    )


def _race(write: Callable[[int], None]) -> list[str]:
    """What became of each of WRITERS concurrent calls, by number."""

    def attempt(number: int) -> str:
        try:
            write(number)
        except PreconditionFailed:
            return "lost"
        return "won"

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(attempt, range(WRITERS)))
