"""What a package index without end may take of disk, memory and time."""

import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ptpipeline import packages
from ptpipeline.errors import DataError, ServiceUnavailable
from ptpipeline.packages import Packed, package_member
from tests.http_server import Quiet, serve


@contextmanager
def hostile(patch: pytest.MonkeyPatch, page: Iterable[bytes], wheel: Iterable[bytes]) -> Iterator[None]:
    """Make a server that sends these pieces as the page of a package, and as its wheel, all that pip knows."""

    class Handler(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                for piece in wheel if self.path.endswith(".whl") else page:
                    self.wfile.write(piece)

    with serve(Handler) as address:
        only = {"PIP_INDEX_URL": f"{address}/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": ""}
        for name, value in (only | {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_CACHE_DIR": "1"}).items():
            patch.setenv(name, value)
        yield


def left(home: Path) -> list[str]:
    return [path.name for path in (home / "downloads" / "demo-1.0").iterdir() if path.name != ".lock"]


def trickle() -> Iterator[bytes]:
    while True:
        time.sleep(0.1)
        yield b" "


LINK = b'<a href="/demo-1.0-py3-none-any.whl">demo-1.0-py3-none-any.whl</a>\n'


def test_an_archive_without_end_is_cut_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MAX_UNPACKED", 2**20)
    temporary = Path(tempfile.gettempdir())
    with hostile(monkeypatch, [LINK], itertools.repeat(b"x" * 65536)):
        before = set(temporary.glob("pip-*"))
        with pytest.raises(DataError, match=r"sends an archive of more than 1048576 bytes"):
            package_member(Packed("demo==1.0", "a"), tmp_path)
        assert set(temporary.glob("pip-*")) == before
    assert left(tmp_path) == []


def test_a_page_without_end_takes_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MEMORY", 128 * 2**20)
    with (
        hostile(monkeypatch, itertools.repeat(LINK * 10_000), []),
        pytest.raises(DataError, match=r"or pages that take more than 134217728 bytes of memory"),
    ):
        package_member(Packed("demo==1.0", "a"), tmp_path)
    assert left(tmp_path) == []


def test_an_index_that_trickles_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "SECONDS", 1.5)
    with (
        hostile(monkeypatch, trickle(), []),
        pytest.raises(ServiceUnavailable, match=r"the package index does not answer within 1\.5 s"),
    ):
        package_member(Packed("demo==1.0", "a"), tmp_path)
    assert left(tmp_path) == []
