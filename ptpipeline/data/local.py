"""Rows in files of this machine: one path, a list of them, those of a pattern, or a member of a pinned package, which
pip fetches once. A path is never a pattern.
"""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptpipeline.archives import unfold
from ptpipeline.data.files import READ, find_kind, load_file
from ptpipeline.data.folders import advise_folder
from ptpipeline.data.markup import YAML, Kind
from ptpipeline.data.table import NoRows, Part, Table, Wanted, fold_name
from ptpipeline.errors import DataError, NotFound
from ptpipeline.foreign import parsing, shorten
from ptpipeline.packages import Member, Packed, package_member
from ptpipeline.settings import resolve_path
from ptpipeline.task.source import Source, find_format

MAX_FILES = 1000  # of a source
_SETTING = re.compile(r"set data\.source\.(format|delimiter): .*", re.DOTALL)
_ALIKE = "write this file as those before it, as all files of a source are written alike, or leave it out"
_ADDRESS = re.compile("([A-Za-z][A-Za-z0-9+.-]+):/")
_INSTEAD = {
    "file": "write the path alone",
    "s3": "download an object by `aws s3 cp ADDRESS FILE` and name FILE; a task file names the objects themselves, as "
    "`source: {s3: {url: ADDRESS}, format: csv}`",
    "huggingface": "download one of its files and name that; a task file names the data set itself, as `source: {hub: "
    "OWNER/NAME, revision: COMMIT, split: train}`",
    **dict.fromkeys(
        ("sqlite", "postgresql", "postgres"),
        "write the rows into a file and name that; a task file names the database itself, as `source: {sql: {url_env: "
        "VARIABLE, query: SELECT}}`",
    ),
}
_FETCH = "download it, for example by `curl -fL ADDRESS -o FILE`, and name FILE"
_READABLE = "name a file that you may read"


def identify(source: Source, home: Path) -> Any:
    """Return the size and sha256 of each file, or the sha256 of the package's archive.

    Raises DataError if a file is missing, and what `package_member` raises if the task does not state the archive's
    sha256.
    """
    if source.package is not None:
        return {"archive": source.sha256 or _package_member(source, home).sha256}
    files = [_identify_file(path) for path in _find_files(source)]
    return files[0] if isinstance(source.path, str) else files


def read(source: Source, wanted: Sequence[Wanted], home: Path) -> Iterator[Part]:
    """Yield the name and the wanted columns of each file; raises what `load_file` and `unfold` raise."""
    if source.package is not None:
        name = f"{source.package}:{source.member}"
        yield Part(name, load_rows(_package_member(source, home).path, name, source, wanted, home))
        return
    files = _find_files(source)
    several = Several(len(files))
    for path in files:
        with several.reading():
            yield Part(str(path), load_rows(path, str(path), source, wanted, home))


def load_rows(path: Path, name: str, source: Source, wanted: Sequence[Wanted], home: Path) -> Table:
    """Return the wanted columns of one file, which may be compressed; messages call it `name`."""
    with parsing(name, _READABLE, DataError), unfold(path, name, home) as plain:
        try:
            return load_file(name, plain, source, wanted)
        except DataError as error:
            if plain == path or " FILE " not in str(error):
                raise
            raise DataError(f"{error}; FILE is the decompressed file") from None


class Several:
    """The files of a source, read one by one; `count` is their number."""

    def __init__(self, count: int) -> None:
        self.count, self.read = count, 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let a file without rows add none, if it is one of several: a cluster writes one for each empty part.

        Raises DataError with what to do in the file if it is written unlike those before it: a setting that reads it
        would read none of them.
        """
        try:
            yield
        except NoRows:
            if self.count == 1:
                raise
        except DataError as error:
            if not self.read:
                raise
            raise DataError(_SETTING.sub(_ALIKE, str(error))) from None
        else:
            self.read += 1


def find_rows_file(given: Path) -> Path:
    """Return the whole path of a file of rows that a person names.

    Raises NotFound if nothing there can be read as one, with what to do if it is an address or a folder.
    """
    if address := _ADDRESS.match(str(given)):  # which may hold a password: it is not shown
        scheme = address[1].lower()
        hint = "huggingface" if "huggingface.co/datasets/" in str(given) else scheme.partition("+")[0]
        raise NotFound(
            f"{scheme}:// begins an address, and a file of this machine is expected; {_INSTEAD.get(hint, _FETCH)}"
        )
    path = resolve_path(given)
    if str(given) == "-" and not path.exists():
        raise NotFound("standard input is no file of rows; write the rows into a file and name that")
    if not path.is_file():
        there = list_rows_files(given) if path.is_dir() else []
        more = f", such as {shorten(str(there[0]), 200)}" if there else ""
        raise NotFound(f"{given}: {_describe_other(path)}; name a file of rows{more}")
    return path


def list_rows_files(folder: Path) -> list[Path]:
    """Return the files in a folder whose names tell a format, by name; hidden ones and notes such as `_SUCCESS` are
    none.

    Raises DataError with what writes the rows as a file, if the folder as a whole is a table.
    """
    path = resolve_path(folder)
    with parsing(str(folder), _READABLE, DataError):
        if (advice := advise_folder(path)) is not None:
            raise DataError(f"{folder}: {advice}")
        names = sorted(one.name for one in path.iterdir() if one.is_file() and _tells_format(one))
    return [folder / name for name in names if not name.startswith((".", "_"))]


def _tells_format(path: Path) -> bool:
    try:
        return bool(find_format(path))
    except DataError:
        return False


def tell_format(path: Path) -> str:
    """Return the format that the name of a file tells.

    Raises DataError with what the file is if its first bytes tell that, else with the option that gives the format.
    """
    try:
        return find_format(path)
    except DataError:
        with parsing(str(path), _READABLE, DataError):
            kind = find_kind(file, "csv") if (file := resolve_path(path)).is_file() else None
        if kind is not None and re.search(r"\.(tgz|tar\.\w+)$", path.name.lower()):
            kind = Kind("a compressed tar archive", "unpack it by: tar -xf FILE")
        elif kind is not None and kind.name in READ:
            kind = None
        if kind is None and path.suffix.lower() in (".yaml", ".yml"):
            kind = YAML
        if kind is None:
            raise
        fix = kind.fix.replace("set data.source.format:", "give --format")
        raise DataError(f"{path}: the file is {kind.name}; {fix}") from None


def _describe_other(path: Path) -> str:
    """What stands in the place of a file, and what is there that has nearly its name."""
    if path.is_dir():
        return "is a folder"
    if path.exists():
        return "is no regular file, such as a pipe or a device"
    if path.is_symlink():
        return "is a link that leads to no file"
    folder, name = path.parent, fold_name(path.name)
    near = [one for one in (os.listdir(folder) if folder.is_dir() else ()) if fold_name(one) == name]
    return f"no such file; there is {shorten(near[0])}, which is written otherwise" if near else "no such file"


def _find_files(source: Source) -> list[Path]:
    if source.glob is not None:
        return _match(source.glob)
    return [_find_file(path, str(source.format)) for path in source.paths]


def _find_file(name: str, form: str) -> Path:
    with parsing(f"data.source.path: {shorten(name)}", _READABLE, DataError):  # too long, or nobody's home
        path = Path(os.path.expanduser(name))
        if not path.is_file():
            raise DataError(
                f"data.source.path: {path}: {_describe_other(path)} (relative paths start at {Path.cwd()}); expected a "
                f"{form} file{_advise_path(name, path)}"
            )
    return path


def _advise_path(name: str, path: Path) -> str:
    """Return what may be meant by a path at which no file stands, behind a semicolon."""
    if path.is_dir() or set(name) & set("*?,"):
        return "; several files are a list, or a pattern as `glob`"
    if re.search(r"\$\w|\$?\{|%\w+%", name):
        return "; no variable is put in: write the path itself"
    if "\\" in name:
        return "; write / between folders"
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:", name):
        return "; `path` names files of this machine: download what another place holds, and name the file"
    return ""


def _match(pattern: str) -> list[Path]:
    """The files that a pattern names, by name; hidden ones only if the pattern says so."""
    with parsing(f"data.source.glob: {shorten(pattern)}", _READABLE, DataError):
        found = sorted(glob.iglob(str(Path(pattern).expanduser()), recursive=True))
        files = [path for path in map(Path, found) if path.is_file()]
    if not 1 <= len(files) <= MAX_FILES:
        what = _describe_none(pattern) if not files else f"{len(files)} files match, at most {MAX_FILES} are read"
        raise DataError(
            f"data.source.glob: {shorten(pattern)}: {what} (relative patterns start at {Path.cwd()}); correct the "
            "pattern, or name one file as `path`, which is never a pattern"
        )
    return files


def _describe_none(pattern: str) -> str:
    if os.path.isdir(os.path.expanduser(pattern)):
        return "names a folder, whose files are those of FOLDER/*"
    return "no file matches, as braces are no pattern" if "{" in pattern else "no file matches"


def _package_member(source: Source, home: Path) -> Member:
    return package_member(Packed(str(source.package), str(source.member), source.sha256), home)


def _identify_file(path: Path) -> dict[str, Any]:
    with parsing(str(path), _READABLE, DataError), path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
