"""What a reader has seen of each alias, so that it refuses an older pointer that was once signed.

A signature does not grow old: whoever may write to the store can put back a pointer that was right last week. Only what
the reader itself remembers helps against that: the newest promotion of each store, task and alias, in files of its own
(mode 0600) below PTP_HOME.
"""

import logging
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import Field

from ptpipeline.errors import ArtifactError, SettingsError
from ptpipeline.foreign import parse_record
from ptpipeline.private import open_regular, write_private
from ptpipeline.records.base import DIGEST_PATTERN, Record, digest_of
from ptpipeline.records.versions import Promotion
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import pointer_key

FOLDER = "seen"

log = logging.getLogger(__name__)


class Seen(Record):
    """The newest promotion of an alias that this reader has seen; `row` is its digest."""

    schema_version: Literal[1] = 1
    store: str
    task: str
    alias: str
    seq: int = Field(ge=1)
    row: str = Field(pattern=DIGEST_PATTERN)


class Older(ArtifactError):
    """A pointer shows an older promotion than this reader has seen, or another one under its number."""


class Memory:
    """The promotions that this reader has seen, in files below `home`; `allow_older` forgets what is newer."""

    def __init__(self, home: Path, allow_older: bool = False) -> None:
        self.folder = home / FOLDER
        self.allow_older = allow_older

    def check(self, store: ObjectStore, promotion: Promotion) -> None:
        """Remember the promotion that a pointer shows.

        Raises Older if it is older than what was seen, if it is another one of the same number, or if it does not
        follow what was seen; SettingsError if the file cannot be read. If no file can be written, a warning says that
        nothing is remembered.
        """
        name = digest_of([store.url, promotion.task, promotion.alias])
        path, row = self.folder / f"{name}.json", promotion.row_digest()
        seen = Seen(store=store.url, task=promotion.task, alias=promotion.alias, seq=promotion.seq, row=row)
        try:
            if _read(path) == seen:  # nearly always; without a lock, because the file is replaced whole
                return
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock"), mode=0o600):
                before = _read(path)
                if before and before != seen and not self.allow_older:
                    _check_newer(store, before, promotion)
                write_private(path, seen.model_dump_json().encode())
        except OSError as error:
            log.warning(
                "%s: cannot be written (%s), so an older pointer of %s@%s would not be noticed; let PTP_HOME name a "
                "folder that this process may write",
                path,
                error.strerror,
                promotion.task,
                promotion.alias,
            )


def _check_newer(store: ObjectStore, seen: Seen, promotion: Promotion) -> None:
    key = f"{store.url}/{pointer_key(promotion.task, promotion.alias)}"
    fix = (
        "`ptp reconcile` writes the newest one again; if the registry was restored from a backup, "
        "`ptp predict --allow-older` accepts it"
    )
    if promotion.seq < seen.seq:
        raise Older(f"{key}: shows promotion {promotion.seq}, and this reader has seen promotion {seen.seq}; {fix}")
    if promotion.seq == seen.seq:
        raise Older(f"{key}: shows another promotion {promotion.seq} than this reader has seen; {fix}")
    if promotion.seq == seen.seq + 1 and promotion.chain != seen.row:
        raise Older(
            f"{key}: shows promotion {promotion.seq}, which does not follow the promotion {seen.seq} that this reader "
            f"has seen; {fix}"
        )


def _read(path: Path) -> Seen | None:
    try:
        with open_regular(path) as file:
            body = file.read()
    except FileNotFoundError:
        return None
    try:
        return parse_record(Seen, body, "")
    except ArtifactError:
        raise SettingsError(
            f"{path}: does not say which promotion this reader has seen last, because it was damaged; remove it, and "
            "the next read begins again"
        ) from None
