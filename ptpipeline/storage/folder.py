"""FolderStore: objects as files below one folder, for tests, notebooks and a machine without servers.

A body is written and synced under `.put/` first, then linked (create) or renamed (replace) to its place: a full disk or
a killed process leaves the old object or the new one, and a file under `.put/`, which the next writer removes after an
hour. A live writer holds a lock on its file.

No symbolic link in the folder is followed, and nothing but regular files is read: a link is listed as an object that
cannot be read, and deleting it deletes the link. Each folder on the way to an object is opened within the one above it,
so nobody can exchange it for a link between a check and its use. A folder that is made here is its owner's alone, and
each object is as readable as the folder.
"""

import errno
import hashlib
import logging
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from fcntl import LOCK_EX, flock
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from ptpipeline.durable import make
from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, SettingsError
from ptpipeline.records.base import read_clock
from ptpipeline.storage.bounds import check_bytes, read_bounded
from ptpipeline.storage.descriptors import Place, entries, is_link, is_locked, open_folder, open_itself, sync_names
from ptpipeline.storage.objects import Listed, Stored, check_key

_UNFINISHED = ".put"
_ABANDONED_AFTER = timedelta(hours=1)  # a put takes seconds
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEVELS = 16  # of folders that a listing enters; keys have at most five
_GONE, _EMPTY, _FILLED = range(3)  # what lies at the store's place
_OTHERS = 0o007  # the rights of users who are neither the owner nor of its group

log = logging.getLogger(__name__)


class _Found(NamedTuple):
    """What lies at a name within an open folder."""

    folder: int
    name: str
    state: os.stat_result


class FolderStore:
    """One process or many on one machine; the file system needs hard links and flock."""

    def __init__(self, root: Path, setting: str = "PTP_STORE") -> None:
        """setting: names the folder, for messages."""
        self.root, self._setting = root, setting
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
        with self._translating(f"read {key}"), self._found(key) as found:
            return found is not None and stat.S_ISREG(found.state.st_mode)

    def create(self, key: str, body: bytes) -> None:
        check_bytes(self.url, key, len(body))
        with self._translating(f"write {key}"), self._written(key, body) as (unfinished, place):
            try:  # atomic and exclusive, unlike rename; it follows no link at the place
                os.link(unfinished.name, place.name, src_dir_fd=unfinished.folder, dst_dir_fd=place.folder)
            except FileExistsError:
                if self._bytes(key) != body:
                    raise PreconditionFailed(f"{self.url}: {key} exists already with other content") from None
            sync_names(place.folder)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        check_bytes(self.url, key, len(body))
        with self._translating(f"write {key}"), self._lock():
            current = self._bytes(key)
            if current is None or _etag(current) != etag:
                raise PreconditionFailed(f"{self.url}: {key} changed since it was read")
            with self._written(key, body) as (unfinished, place):
                os.rename(unfinished.name, place.name, src_dir_fd=unfinished.folder, dst_dir_fd=place.folder)
                sync_names(place.folder)

    def delete(self, key: str) -> None:
        with self._translating(f"delete {key}"), self._found(key) as found:
            if found is None or stat.S_ISDIR(found.state.st_mode):
                return
            with self._lock():  # not between a replace's read and its rename
                with suppress(FileNotFoundError):
                    os.unlink(found.name, dir_fd=found.folder)
                # deletions keep their order through a power loss: the manifest before its tensors
                sync_names(found.folder)

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        with self._translating(f"list {prefix}"), self._found(prefix) as found:
            if found is None:
                return
            if stat.S_ISLNK(found.state.st_mode):
                yield _describe_file(found.state, prefix)
                return
            yield from _files(found.folder, found.name, prefix)

    def keys(self, prefix: str) -> Iterator[str]:
        return (item.key for item in self.list_objects(prefix))

    def folders(self, prefix: str) -> Iterator[str]:
        with self._translating(f"list {prefix}"), self._found(prefix) as found:
            if found is None:
                return
            with entries(found.folder, found.name) as (_, below):
                for entry in below:
                    if entry.is_dir(follow_symlinks=False):
                        yield f"{prefix}/{entry.name}"

    @contextmanager
    def _place(self, key: str, rights: int | None = None) -> Iterator[Place]:
        """Open the folder of the object; with `rights`, make what is missing, durably.

        Raises ArtifactError if a link lies on the way.
        """
        *folders, name = check_key(key).split("/")
        with self._opened(folders, rights) as folder:
            yield Place(folder, name)

    @contextmanager
    def _opened(self, folders: Sequence[str], rights: int | None) -> Iterator[int]:
        """Open a folder below the store's, each within the one above it. One that is there is synced too, once per
        store object: whoever made it may have died before.
        """
        path = self.root
        with ExitStack() as opened:
            folder = opened.enter_context(open_folder(str(path)))
            for name in folders:
                path /= name
                if rights is not None and path not in self._durable:
                    with suppress(FileExistsError):
                        os.mkdir(name, rights, dir_fd=folder)
                    sync_names(folder)
                    self._durable.add(path)
                try:
                    folder = opened.enter_context(open_folder(name, folder))
                except OSError:
                    if is_link(name, folder):
                        raise self._not_ours(path) from None
                    raise
            yield folder

    @contextmanager
    def _found(self, key: str) -> Iterator[_Found | None]:
        """Yield what lies at the key, be it a link, in its folder, which stays open; None if nothing does."""
        self._look()
        found = None
        with ExitStack() as opened:
            with suppress(FileNotFoundError, NotADirectoryError):
                folder, name = opened.enter_context(self._place(key))
                found = _Found(folder, name, os.stat(name, dir_fd=folder, follow_symlinks=False))
            yield found

    def _not_ours(self, path: Path) -> ArtifactError:
        what = "a symbolic link" if path.is_symlink() else "no regular file"
        return ArtifactError(f"{path}: {what}, which this store never writes and does not follow; remove it")

    def _bytes(self, key: str) -> bytes | None:
        """Return the bytes of the object, of at most the size that its kind may have; None if there is none."""
        path = self.root / check_key(key)
        try:
            with self._place(key) as place, open_itself(place.name, place.folder) as file:
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
    def _written(self, key: str, body: bytes) -> Iterator[tuple[Place, Place]]:
        """Yield a file that holds the body, whole and durable, until the block ends, and where it belongs."""
        self._make_root()
        rights = stat.S_IMODE(self.root.stat().st_mode)  # whatever the umask
        name = uuid.uuid4().hex
        with self._opened([_UNFINISHED], rights) as folder, self._place(key, rights) as place:
            self._sweep(folder)
            try:
                with open(name, "xb", opener=partial(os.open, mode=0o600, dir_fd=folder)) as file:
                    flock(file, LOCK_EX)  # as long as it is open: a sweep leaves it alone, whatever the clock says
                    os.fchmod(file.fileno(), rights & 0o666)
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                    yield Place(folder, name), place
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)

    def _sweep(self, folder: int) -> None:
        """Remove what killed writers left behind, once per store object."""
        if self._swept:
            return
        self._swept = True
        with entries(folder, ".") as (_, found):
            for entry in found:
                with suppress(FileNotFoundError):
                    written = datetime.fromtimestamp(entry.stat(follow_symlinks=False).st_mtime, UTC)
                    if read_clock() - written > _ABANDONED_AFTER and not is_locked(entry.name, folder):
                        os.unlink(entry.name, dir_fd=folder)

    @contextmanager
    def _translating(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            fix = "make room there" if error.errno in _FULL else "repair the folder"
            raise SettingsError(
                f"{self.url}: cannot {doing}: {error.strerror}; {fix}, or name another with {self._setting}"
            ) from error


def _look_at(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return _EMPTY if next(entries, None) is None else _FILLED
    except FileNotFoundError:
        return _GONE
    except PermissionError:
        return _FILLED  # by its keys it may be read


def _etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _describe_file(found: os.stat_result, key: str) -> Listed:
    return Listed(key, datetime.fromtimestamp(found.st_mtime, UTC), found.st_size)


def _files(folder: int, name: str, prefix: str, levels: int = _LEVELS) -> Iterator[Listed]:
    """Iterate over what is no folder below the folder; each folder is read when its turn comes, no link is followed."""
    with entries(folder, name) as (below, found):
        for entry in found:
            key = f"{prefix}/{entry.name}"
            if levels and entry.is_dir(follow_symlinks=False):
                yield from _files(below, entry.name, key, levels - 1)
                continue
            try:
                state = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # deleted since the folder was read
                continue
            yield _describe_file(state, key)
