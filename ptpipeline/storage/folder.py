"""FolderStore: objects as files below one folder, for tests, notebooks and a machine without servers.

A body is written and synced under `.put/` first, then linked (create) or renamed (replace) to its place: a full disk or
a killed process leaves the old object or the new one, and a file under `.put/`, which the next writer removes after an
hour. A live writer holds a lock on its file.

No symbolic link in the folder is followed, and nothing but regular files is read: a link is listed as an object that
cannot be read, and deleting it deletes the link. A folder that is made here is its owner's alone, and each object is as
readable as the folder. Whoever may write to the folder can still exchange one of its folders for a link in the moment
between the check of a path and its use; so keep others out of it.
"""

import errno
import hashlib
import logging
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from filelock import FileLock

from ptpipeline.durable import make, sync
from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, SettingsError
from ptpipeline.records.base import read_clock
from ptpipeline.storage.bounds import check_bytes, read_bounded
from ptpipeline.storage.objects import Listed, Stored, check_key

_UNFINISHED = ".put"
_ABANDONED_AFTER = timedelta(hours=1)  # a put takes seconds
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEVELS = 16  # of folders that a listing enters; keys have at most five
_GONE, _EMPTY, _FILLED = range(3)  # what lies at the store's place
_OTHERS = 0o007  # the rights of users who are neither the owner nor of its group

log = logging.getLogger(__name__)


class FolderStore:
    """One process or many on one machine; the file system needs hard links and flock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = self.where = f"file://{root}"
        self._swept = self._said = False
        self._seen = _GONE
        self._durable: set[Path] = set()

    def read(self, key: str) -> Stored:
        with self._translating(f"read {key}"):
            body = self._bytes(key)
        if body is None:
            raise NotFound(f"{self.url}: no object {key}")
        return Stored(body, _etag(body))

    def read_changed(self, key: str, etag: str) -> Stored | None:
        stored = self.read(key)
        return None if stored.etag == etag else stored

    def exists(self, key: str) -> bool:
        with self._translating(f"read {key}"):
            path = self._path(key)
            self._look()
            return path.is_file() and not path.is_symlink()

    def create(self, key: str, body: bytes) -> None:
        check_bytes(self.url, key, len(body))
        path = self._path(key)
        with self._translating(f"write {key}"), self._written(path, body) as unfinished:
            try:
                os.link(unfinished, path)  # atomic and exclusive, unlike rename; it follows no link at the path
            except FileExistsError:
                if self._bytes(key) != body:
                    raise PreconditionFailed(f"{self.url}: {key} exists already with other content") from None
            sync(path.parent)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        check_bytes(self.url, key, len(body))
        path = self._path(key)
        with self._translating(f"write {key}"), self._lock():
            current = self._bytes(key)
            if current is None or _etag(current) != etag:
                raise PreconditionFailed(f"{self.url}: {key} changed since it was read")
            with self._written(path, body) as unfinished:
                unfinished.rename(path)
                sync(path.parent)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._translating(f"delete {key}"):
            self._look()
            if not (path.is_symlink() or path.exists()) or _is_folder(path):
                return
            with self._lock():  # not between a replace's read and its rename
                path.unlink(missing_ok=True)
                sync(path.parent)  # deletions keep their order through a power loss: the manifest before its tensors

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        with self._translating(f"list {prefix}"):
            self._look()
            path = self._path(prefix)
            if path.is_symlink():
                yield _listed(path, prefix)
            else:
                yield from _files(path, prefix)

    def keys(self, prefix: str) -> Iterator[str]:
        return (item.key for item in self.list_objects(prefix))

    def folders(self, prefix: str) -> Iterator[str]:
        with self._translating(f"list {prefix}"):
            self._look()
            for entry in _entries(self._path(prefix)):
                if entry.is_dir(follow_symlinks=False):
                    yield f"{prefix}/{entry.name}"

    def _path(self, key: str) -> Path:
        """Return where the object lies. Raises ArtifactError if a link lies on the way."""
        *folders, name = check_key(key).split("/")
        path = self.root
        for folder in folders:
            path /= folder
            if path.is_symlink():
                raise self._not_ours(path)
        return path / name

    def _not_ours(self, path: Path) -> ArtifactError:
        what = "a symbolic link" if path.is_symlink() else "no regular file"
        return ArtifactError(f"{path}: {what}, which this store never writes and does not follow; remove it")

    def _bytes(self, key: str) -> bytes | None:
        """Return the bytes of the object, of at most the size that its kind may have; None if there is none."""
        path = self._path(key)
        try:
            with open(path, "rb", opener=_open_itself) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise self._not_ours(path)
                self._seen = _FILLED
                check_bytes(self.url, key, found.st_size)
                return read_bounded(self.url, key, file.read)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._look()
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise self._not_ours(path) from None
            raise

    def _look(self) -> None:
        """Raise FileNotFoundError if the store's folder was there and is not any more, or held something and holds
        nothing: a disk that was unmounted is no empty store, and leaves an empty folder. One that was never there is.
        """
        seen = self._seen  # before the look: another thread may make the folder meanwhile
        found = _look_at(self.root)
        if found < seen:
            what = "is gone" if found == _GONE else "is empty and was not: is its disk mounted?"
            raise FileNotFoundError(errno.ENOENT, f"the folder {what}")
        self._seen = max(found, self._seen)

    def _make(self, folder: Path, rights: int) -> None:
        """Create a folder below the store's and those above it, durably. One that is there is synced too, once per
        store object: whoever made it may have died before.
        """
        if folder != self.root and folder not in self._durable:
            self._make(folder.parent, rights)
            folder.mkdir(mode=rights, exist_ok=True)
            sync(folder.parent)
            self._durable.add(folder)

    def _lock(self) -> FileLock:
        self._make_root()
        return FileLock(self.root / ".lock")

    def _make_root(self) -> None:
        """Create the store's folder, its owner's alone; say once if one that was there lets every user in."""
        self._look()
        if self._seen == _GONE:
            make(self.root, 0o700)
            self._seen = _EMPTY
        elif not self._said and self.root.stat().st_mode & _OTHERS:
            log.warning(
                "%s: every user of this machine may enter it; `chmod o= %s` keeps its texts private",
                self.url,
                self.root,
            )
        self._said = True

    @contextmanager
    def _written(self, path: Path, body: bytes) -> Iterator[Path]:
        """Yield a file that holds the body, whole and durable, until the block ends; the folder of `path` exists."""
        self._make_root()
        rights = stat.S_IMODE(self.root.stat().st_mode)  # whatever the umask
        unfinished = self.root / _UNFINISHED / uuid.uuid4().hex
        if unfinished.parent.is_symlink():
            raise self._not_ours(unfinished.parent)
        for folder in (unfinished.parent, path.parent):
            self._make(folder, rights)
        self._sweep(unfinished.parent)
        try:
            with unfinished.open("xb") as file:
                flock(file, LOCK_EX)  # as long as it is open: a sweep leaves it alone, whatever the clock says
                os.fchmod(file.fileno(), rights & 0o666)
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


def _look_at(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return _EMPTY if next(entries, None) is None else _FILLED
    except FileNotFoundError:
        return _GONE
    except PermissionError:
        return _FILLED  # by its keys it may be read


def _is_locked(path: Path) -> bool:
    """Return whether its writer is alive."""
    try:
        with open(path, "rb", opener=_open_itself) as file:
            flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # gone, or a link
        pass
    return False


def _etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _open_itself(path: str, flags: int) -> int:
    """Open the file itself, not what a link names, and wait for nobody at the other end of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _files(folder: Path, prefix: str, levels: int = _LEVELS) -> Iterator[Listed]:
    """Iterate over what is no folder below the folder; each folder is read when its turn comes, no link is followed."""
    for entry in _entries(folder):
        path, key = folder / entry.name, f"{prefix}/{entry.name}"
        if levels and entry.is_dir(follow_symlinks=False):
            yield from _files(path, key, levels - 1)
            continue
        with suppress(FileNotFoundError):  # deleted since the folder was read
            yield _listed(path, key)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in the folder, by name, without our own hidden files; nothing if it is no folder, or a link."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        entries = sorted(os.scandir(descriptor), key=lambda entry: entry.name)
    finally:
        os.close(descriptor)
    return [entry for entry in entries if not entry.name.startswith(".")]


def _listed(path: Path, key: str) -> Listed:
    found = path.lstat()
    return Listed(key, datetime.fromtimestamp(found.st_mtime, UTC), found.st_size)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
