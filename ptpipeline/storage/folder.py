"""FolderStore: objects as files below one folder, for tests, notebooks and a machine without servers.

A body is written and synced under `.put/` first, then linked (create) or renamed (replace) to its place: a full disk or
a killed process leaves the old object or the new one, and a file under `.put/`, which the next writer removes after an
hour. A live writer holds a lock on its file.
"""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from filelock import FileLock

from ptpipeline.durable import make, sync
from ptpipeline.errors import NotFound, PreconditionFailed, SettingsError
from ptpipeline.records.base import read_clock
from ptpipeline.storage.bounds import check_bytes
from ptpipeline.storage.objects import Listed, Stored, check_key

_UNFINISHED = ".put"
_ABANDONED_AFTER = timedelta(hours=1)  # a put takes seconds
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FolderStore:
    """One process or many on one machine; the file system needs hard links and flock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = self.where = f"file://{root}"
        self._swept = False
        self._durable: set[Path] = set()

    def read(self, key: str) -> Stored:
        with self._translating(f"read {key}"):
            path = self._path(key)
            if path.is_file():
                check_bytes(self.url, key, path.stat().st_size)
            body = _bytes(path)
        if body is None:
            raise NotFound(f"{self.url}: no object {key}")
        return Stored(body, _etag(body))

    def exists(self, key: str) -> bool:
        with self._translating(f"read {key}"):
            return self._path(key).is_file()

    def create(self, key: str, body: bytes) -> None:
        path = self._path(key)
        with self._translating(f"write {key}"), self._written(path, body) as unfinished:
            try:
                os.link(unfinished, path)  # atomic and exclusive, unlike rename
            except FileExistsError:
                if _bytes(path) != body:
                    raise PreconditionFailed(f"{self.url}: {key} exists already with other content") from None
            sync(path.parent)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        path = self._path(key)
        with self._translating(f"write {key}"), self._lock():
            current = _bytes(path)
            if current is None or _etag(current) != etag:
                raise PreconditionFailed(f"{self.url}: {key} changed since it was read")
            with self._written(path, body) as unfinished:
                unfinished.rename(path)
                sync(path.parent)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._translating(f"delete {key}"):
            if not path.is_file():
                return
            with self._lock():  # not between a replace's read and its rename
                path.unlink(missing_ok=True)
                sync(path.parent)  # deletions keep their order through a power loss: the manifest before its tensors

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        with self._translating(f"list {prefix}"):
            yield from _files(self._path(prefix), prefix)

    def keys(self, prefix: str) -> Iterator[str]:
        return (item.key for item in self.list_objects(prefix))

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _make(self, folder: Path) -> None:
        """Create a folder of the store and those above it, durably. One that is there is synced too, once per store
        object: whoever made it may have died before.
        """
        if folder not in self._durable:
            if folder == self.root:
                make(folder)
            else:
                self._make(folder.parent)
                folder.mkdir(exist_ok=True)
                sync(folder.parent)
            self._durable.add(folder)

    def _lock(self) -> FileLock:
        self._make(self.root)
        return FileLock(self.root / ".lock")

    @contextmanager
    def _written(self, path: Path, body: bytes) -> Iterator[Path]:
        """Yield a file that holds the body, whole and durable, until the block ends; the folder of `path` exists."""
        unfinished = self.root / _UNFINISHED / uuid.uuid4().hex
        for folder in (unfinished.parent, path.parent):
            self._make(folder)
        self._sweep(unfinished.parent)
        try:
            with unfinished.open("xb") as file:
                flock(file, LOCK_EX)  # as long as it is open: a sweep leaves it alone, whatever the clock says
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
                yield unfinished
        finally:
            unfinished.unlink(missing_ok=True)

    def _sweep(self, folder: Path) -> None:
        """Remove what killed writers left behind, once per store object."""
        if self._swept:
            return
        self._swept = True
        for item in _files(folder, ""):
            path = folder / item.key.lstrip("/")
            if read_clock() - item.modified > _ABANDONED_AFTER and not _is_locked(path):
                path.unlink(missing_ok=True)

    @contextmanager
    def _translating(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            fix = "make room there" if error.errno in _FULL else "repair the folder"
            raise SettingsError(
                f"{self.url}: cannot {doing}: {error.strerror}; {fix}, or name another with PTP_STORE"
            ) from error


def _bytes(path: Path) -> bytes | None:
    """Return the file's bytes; None if there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _is_locked(path: Path) -> bool:
    """Return whether its writer is alive."""
    try:
        with path.open("rb") as file:
            flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _files(folder: Path, prefix: str) -> Iterator[Listed]:
    """Iterate over the files below the folder; each folder is read when its turn comes."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(folder / entry.name, f"{prefix}/{entry.name}")
            continue
        with suppress(FileNotFoundError):  # deleted since the folder was read
            stat = entry.stat()
            yield Listed(f"{prefix}/{entry.name}", datetime.fromtimestamp(stat.st_mtime, UTC), stat.st_size)
