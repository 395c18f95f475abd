"""An object is bounded before it is read: by the size that the store states, and by what really comes."""

import gzip
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ptpipeline.errors import ArtifactError, NotFound, ServiceUnavailable
from ptpipeline.storage import FolderStore, ObjectStore, S3Store
from ptpipeline.storage.bounds import MIB, max_bytes
from ptpipeline.storage.s3 import RequestLimits
from tests.http_server import Quiet, serve

KEY = "prompts/mood/versions/1.json"
BODY = b"x" * 1000
BOMB = gzip.compress(b"x" * 2**26)


@contextmanager
def answering(answer: Callable[[Quiet], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """A store at a server that answers every GET in that way."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")

    class Server(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            answer(self)

    with serve(Server) as address:
        yield S3Store("bucket", endpoint=address, limits=RequestLimits(10.0, 1))


def headed(server: Quiet, **headers: str) -> None:
    server.send_response(200)
    server.send_header("ETag", '"tag"')
    for name, value in headers.items():
        server.send_header(name.replace("_", "-"), value)
    server.end_headers()


def huge(server: Quiet) -> None:
    headed(server, Content_Length=str(6 * 2**30))
    server.wfile.write(BODY)


def endless(server: Quiet) -> None:
    """Without a length: it ends with the connection."""
    headed(server, Connection="close")
    try:
        for _ in range(2**14):
            server.wfile.write(b"x" * 2**16)
    except OSError:
        pass
    server.close_connection = True


def endless_chunks(server: Quiet) -> None:
    server.protocol_version = "HTTP/1.1"
    headed(server, Transfer_Encoding="chunked", Content_Length="10")
    try:
        for _ in range(2**14):
            server.wfile.write(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
    except OSError:
        pass
    server.close_connection = True


def short(server: Quiet) -> None:
    headed(server, Content_Length="2000", Connection="close")
    server.wfile.write(BODY)
    server.close_connection = True


def longer(server: Quiet) -> None:
    headed(server, Content_Length="1000", Connection="close")
    server.wfile.write(BODY + b"y" * 5000)
    server.close_connection = True


def unfolding(server: Quiet) -> None:
    headed(server, Content_Length=str(len(BOMB)), Content_Encoding="gzip")
    server.wfile.write(BOMB)


@pytest.mark.parametrize("answer", [huge, endless, endless_chunks])
def test_an_answer_that_is_too_long_is_refused_before_it_is_read(
    answer: Callable[[Quiet], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with answering(answer, monkeypatch) as store, pytest.raises(ArtifactError, match="at most 1048576 allowed"):
        store.read(KEY)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def test_an_answer_that_is_shorter_than_it_says_is_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(short, monkeypatch) as store, pytest.raises(ServiceUnavailable):
        store.read(KEY)


def test_what_follows_the_stated_length_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(longer, monkeypatch) as store:
        assert store.read(KEY).body == BODY


def test_an_encoded_answer_is_not_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(unfolding, monkeypatch) as store:
        assert len(store.read(KEY).body) < MIB


def test_an_object_beyond_its_bound_is_not_read(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    path = tmp_path / KEY
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(6 * 2**30)
    for call in (lambda: store.read(KEY), lambda: store.create(KEY, b""), lambda: store.replace(KEY, b"", "tag")):
        with pytest.raises(ArtifactError, match="6442450944 bytes, at most 1048576 allowed"):
            call()
    store.delete(KEY)
    with pytest.raises(NotFound):
        store.read(KEY)


def test_what_could_not_be_read_back_is_not_written(store: ObjectStore) -> None:
    with pytest.raises(ArtifactError, match="1048577 bytes, at most 1048576 allowed"):
        store.create(KEY, bytes(MIB + 1))
    assert not store.exists(KEY)


def test_an_object_may_fill_its_bound_and_no_replace_goes_beyond_it(store: ObjectStore) -> None:
    store.create(KEY, bytes(MIB))
    stored = store.read(KEY)
    assert len(stored.body) == MIB
    with pytest.raises(ArtifactError, match="1048577 bytes, at most 1048576 allowed"):
        store.replace(KEY, bytes(MIB + 1), stored.etag)
    assert store.read(KEY) == stored


def test_each_kind_has_its_bound() -> None:
    prompt = f"prompts/mood/{'d' * 64}"
    assert max_bytes(f"{prompt}/manifest.json") == MIB
    assert max_bytes(f"{prompt}/records/{'a' * 16}.json") == 16 * MIB
    assert max_bytes(f"{prompt}/prompt.safetensors") == max_bytes("prompts/mood/quarantine/a-1") == 64 * MIB
    assert max_bytes(f"snapshots/mood/{'d' * 64}/train.parquet") == 4096 * MIB
    assert max_bytes(f"snapshots/mood/{'d' * 64}/manifest.json") == MIB
    assert max_bytes("reports/mood/k1/rows.parquet") == max_bytes(f"checkpoints/{'d' * 64}.safetensors") == 4096 * MIB
    assert max_bytes("servers/host.json") == 16 * MIB
    assert max_bytes("anything/else") == MIB
