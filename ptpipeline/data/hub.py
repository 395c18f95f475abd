"""Rows of a data set on the Hugging Face hub, at one commit; no code of its repository is ever run.

`datasets` tells from the card and the names of the files which of them a config and a split consist of, and the names
of the classes. It is shown empty files of the formats that are read, so it never sees a script or a pickle. The files
of the split are then fetched one by one and read like local ones.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ptpipeline.data.files import MAX_BYTES
from ptpipeline.data.local import MAX_FILES, Several, load_rows
from ptpipeline.data.table import NO_CLASS, Column, NoRows, Part, Table, Wanted
from ptpipeline.errors import DataError, PtpError
from ptpipeline.foreign import parsing, shorten
from ptpipeline.hub import asking_hub, download, open_hub
from ptpipeline.task.source import Source

MAX_LISTED = 20_000  # files of a repository
MAX_CARD = 4 * 2**20  # bytes of the card
_CARDS = ("README.md", ".huggingface.yaml")
_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_CARD_PLACES = ("configs", "data_files", "data_dir")  # of a card's own fields, those that lead to files
_PACKED = (".gz", ".zst")
_FORMAT = re.compile(r"set data\.source\.format: ")
_READ_OPTIONS = ("name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter")


class _Split(NamedTuple):
    """The files of a split, how their fields are separated, and the names of the classes of each column."""

    files: list[str]
    delimiter: str | None
    classes: dict[str, list[str]]


def identify(source: Source, home: Path) -> Any:
    """Return the commit: what it holds never changes. Nothing is asked."""
    return {"commit": source.revision}


def read(source: Source, wanted: Sequence[Wanted], home: Path) -> Iterator[Part]:
    """Yield the name and the wanted columns of each file of the split.

    Raises DataError if there is no such data set, commit, config or split, or none in a format that is read,
    SettingsError if the login may not read it, ServiceUnavailable if the hub does not answer.
    """
    repository = _Repository(source)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hub-", dir=home) as temporary:
        sizes = repository.list_sizes()
        with parsing(repository.name, "its card or file names are not as the hub has them", DataError):
            split = _find_split(repository, source, sizes, Path(temporary, "files"))
        several = Several(len(split.files))
        for path in split.files:
            name = f"{repository.name}/{path}"
            if sizes[path] > MAX_BYTES:
                raise DataError(f"{name}: {sizes[path]} bytes; a source may have at most {MAX_BYTES} bytes")
            file = repository.fetch(path, sizes[path], Path(temporary, "fetched"))
            delimiter = source.delimiter or _delimiter_of(path, split)
            how = source.model_copy(update={"format": _format_of(path), "delimiter": delimiter})
            with several.reading(), _advising_download():
                yield Part(name, _name_classes(load_rows(file, name, how, wanted, home), split.classes))
            file.unlink()


@contextmanager
def _advising_download() -> Iterator[None]:
    """Raise a DataError about the format of a file with what to do: a hub's file is read as its name says."""
    try:
        yield
    except NoRows:
        raise
    except DataError as error:
        raise DataError(_FORMAT.sub(r"download the file, name its path, and \g<0>", str(error))) from None


class _Repository:
    """The repository of a data set at one commit."""

    def __init__(self, source: Source) -> None:
        self.id, self.revision = str(source.hub), source.revision
        self.name = f"hub:{self.id}@{str(self.revision)[:12]}"
        self._api = open_hub()

    def list_sizes(self) -> dict[str, int]:
        """Return the size of each file; DataError if there are too many, or one that has no plain relative name."""
        sizes: dict[str, int] = {}
        with asking_hub(self.name, DataError):
            tree = self._api.list_repo_tree(self.id, recursive=True, revision=self.revision, repo_type="dataset")
            for entry in tree:
                if (size := getattr(entry, "size", None)) is None:
                    continue  # a folder
                parts = entry.path.split("/")
                if "\\" in entry.path or "\0" in entry.path or any(part in ("", ".", "..") for part in parts):
                    raise DataError(f"{self.name}: holds a file that no file can be called: {shorten(entry.path)}")
                sizes[entry.path] = int(size)
                if len(sizes) > MAX_LISTED:
                    raise DataError(f"{self.name}: holds more than {MAX_LISTED} files; name a smaller data set")
        return sizes

    def fetch(self, path: str, size: int, folder: Path) -> Path:
        """Return the file, which is listed with that size, fetched into the folder."""
        how = {"revision": self.revision, "repo_type": "dataset", "local_dir": folder}
        return download(self._api, self.id, path, size, self.name, DataError, **how)


def _format_of(path: str) -> str | None:
    """The format that the end of a file's name tells; None for one that is not read."""
    pure = PurePosixPath(path)
    pure = pure.with_suffix("") if pure.suffix in _PACKED else pure
    return _FORMATS.get(pure.suffix.lower())


def _delimiter_of(path: str, split: _Split) -> str | None:
    if _format_of(path) != "csv":
        return None
    return split.delimiter or ("\t" if ".tsv" in path else None)


def _find_split(repository: _Repository, source: Source, sizes: dict[str, int], folder: Path) -> _Split:
    """Ask `datasets` which files the split consists of, in a folder of empty files with the same names."""
    for path in sizes:
        if path not in _CARDS and _format_of(path) is not None:
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    folder.mkdir(exist_ok=True)
    if not any(map(_format_of, sizes)):
        held = f"holds {shorten(', '.join(sizes))[1:-1]}" if sizes else "holds no file"
        raise DataError(
            f"{repository.name}: {held}, and nothing in {', '.join(sorted(set(_FORMATS.values())))}; download its rows,"
            " write them in one of these formats, and name the file as `path`"
        )
    for card in _CARDS:
        if sizes.get(card, 0) > MAX_CARD:
            raise DataError(f"{repository.name}: its {card} has {sizes[card]} bytes, at most {MAX_CARD} are read")
        if card in sizes:
            repository.fetch(card, sizes[card], folder)
    builder = _make_builder(repository, source, folder)
    listed = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    if source.split not in listed:
        raise DataError(
            f"{repository.name}: no split {source.split!r}; there are {shorten(', '.join(listed))[1:-1] or 'none'}"
        )
    files = [Path(file).resolve().relative_to(folder.resolve()).as_posix() for file in listed[source.split]]
    if not files or len(files) > MAX_FILES:
        raise DataError(f"{repository.name}: split {source.split} has {len(files)} files, expected 1 to {MAX_FILES}")
    _check_options(repository.name, builder.config)
    delimiter = builder.config.sep if builder.name == "csv" else None
    names = {name: getattr(feature, "names", None) for name, feature in (builder.info.features or {}).items()}
    return _Split(files, delimiter, {name: listed for name, listed in names.items() if listed})


def _check_paths(name: str, card: Any) -> None:
    """Raise DataError if a card names files elsewhere: `datasets` would ask any address and search any folder."""
    places, seen = [card], set[int]()  # a card may hold itself, by an alias
    while places:
        place = places.pop()
        if isinstance(place, str):
            outside = place.startswith(("/", "~")) or ".." in place.split("/")
            if outside or any(sign in place for sign in ("://", "::", "\\")):
                raise DataError(f"{name}: its card names files elsewhere; download the file and name its path")
        elif id(place) not in seen:
            seen.add(id(place))
            if isinstance(place, dict):  # `data_files` may be files by split, with any names
                places += [value for key, value in place.items() if key in _CARD_PLACES or card is not place]
            elif isinstance(place, list):
                places += place


def _read_card(name: str, path: Path) -> Any:
    """Return what `datasets` will read in a card: all of a YAML file, or what stands above a README.

    Raises DataError if it repeats values by aliases: these unfold into more than any time or memory.
    """
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    text = path.read_bytes().decode()
    if path.suffix == ".md":
        block = REGEX_YAML_BLOCK.search(text)
        text = block[2] if block else ""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise DataError(f"{name}: its {path.name} repeats values by aliases (*); download the file and name its path")
    return yaml.safe_load(text)


def _make_builder(repository: _Repository, source: Source, folder: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        for card in _CARDS:
            if (folder / card).is_file():
                _check_paths(repository.name, _read_card(repository.name, folder / card))
        return datasets.load_dataset_builder(str(folder), name=source.config, cache_dir=str(folder.parent / "cache"))
    except PtpError:
        raise
    except Exception as error:  # noqa: BLE001 - a card is foreign text, which may say anything
        said = " ".join(str(error).replace(str(folder), repository.name).split())
        raise DataError(
            f"{repository.name}: its card and files do not tell the rows of config {source.config or 'default'}: "
            f"{shorten(said, 300)[1:-1]}; set data.source.config, or download the file and name its path"
        ) from None


def _check_options(name: str, config: Any) -> None:
    """Raise DataError if the card sets an option of reading that would be lost here."""
    default = type(config)()
    lost = [
        field.name
        for field in fields(config)
        if field.name not in _READ_OPTIONS and getattr(config, field.name) != getattr(default, field.name)
    ]
    if lost:
        raise DataError(
            f"{name}: its card reads the files with {', '.join(lost)}, which is not supported; download the file and "
            "name its path"
        )


def _name_classes(table: Table, classes: dict[str, list[str]]) -> Table:
    """The table with the names of classes in the place of their numbers, if its own file does not have them."""
    columns = dict(table.columns)
    for name, names in classes.items():
        column = columns.get(name)
        if column is None or column.codes:
            continue
        numbers = {str(number): one for number, one in enumerate(names)}
        codes = {one: number for number, one in numbers.items()}
        missing = {None, NO_CLASS}
        if "text" in column.kinds:  # a text is a name first, as `datasets` has it
            numbers |= {one: one for one in names}
        if all(cell in missing or cell in numbers for cell in column.cells):
            cells = [None if cell is None else numbers.get(cell) for cell in column.cells]
            columns[name] = Column(cells, ("text",), codes)
    return table._replace(columns=columns)
