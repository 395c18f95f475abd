"""What a server answered with last, as files of its own: so it starts and serves while the store is away.

The folder holds the same objects under the same keys as the store, and all of them are verified again when they are
read. Its files are its owner's alone. What is not in use any more is removed.
"""

import json
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ptpipeline.errors import ArtifactError, NotFound, PtpError
from ptpipeline.foreign import parse_record
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.base import digest_of
from ptpipeline.records.versions import Pointer, Promotion
from ptpipeline.storage import FolderStore
from ptpipeline.storage.addresses import AliasPointer, PromptObject, parse, parse_task
from ptpipeline.storage.keys import PROMPTS, manifest_key, pointer_key, tensors_key
from ptpipeline.storage.objects import overwrite

FOLDER = "last-good"

log = logging.getLogger(__name__)


def own_folder(home: Path, server: str) -> Path:
    """Return the folder of what the server of that name keeps for itself over a restart."""
    return home / "serving" / (server or "unnamed")


class LastGood:
    """The promotions and prompts of one store that a server took over, below its own folder."""

    def __init__(self, own: Path, where: str) -> None:
        self.store = FolderStore((own / FOLDER / digest_of(where)[:16]).absolute(), setting="PTP_HOME")
        self._owed: dict[str, dict[str, bytes]] = {}  # what the disk did not take, by task and key, in order

    def read(self) -> Iterator[tuple[str, str, Promotion | ArtifactError]]:
        """Iterate over task, alias and the promotion of each, or what is wrong with its file."""
        for key in self.store.keys(PROMPTS):
            at = parse(key)
            if not isinstance(at, AliasPointer):
                continue
            try:
                body = self.store.read(key).body
                promotion = parse_record(Pointer, body, f"{self.store.url}/{key}: not a pointer").promotion
                if (promotion.task, promotion.alias) != (at.task, at.alias):
                    raise ArtifactError(f"{self.store.url}/{key}: points for {promotion.task}@{promotion.alias}")
            except ArtifactError as error:
                yield at.task, at.alias, error
            except NotFound:  # removed since it was listed
                continue
            else:
                yield at.task, at.alias, promotion

    def save_prompts(self, artifacts: Sequence[Artifact]) -> None:
        """Keep these prompts; a disk that is full or gone is told, and takes them later (`catch_up`)."""
        for artifact in artifacts:
            task, digest = artifact.manifest.task, artifact.digest
            manifest = json.dumps(artifact.manifest.to_json()).encode()
            self._save(task, {tensors_key(task, digest): artifact.tensors, manifest_key(task, digest): manifest})

    def save_promotion(self, promotion: Promotion) -> None:
        """Keep what an alias names, behind the prompts that it needs: without these it would answer with nothing."""
        pointer = Pointer(promotion=promotion, nonce="0" * 16)
        key = pointer_key(promotion.task, promotion.alias)
        self._save(promotion.task, {key: pointer.model_dump_json().encode()})

    def catch_up(self) -> None:
        """Write what the disk did not take before."""
        for task in list(self._owed):
            with suppress(PtpError):  # it was told
                self._write(task)
                log.info("%s: what this server answers with is kept for a restart again", task)

    def _save(self, task: str, objects: dict[str, bytes]) -> None:
        owed = self._owed.pop(task, {})
        self._owed[task] = {key: body for key, body in owed.items() if key not in objects} | objects
        try:
            self._write(task)
        except PtpError as error:
            if not owed:
                log.warning("%s: after a restart without the store, this server would not know it: %s", task, error)

    def _write(self, task: str) -> None:
        """Write all that is owed of a task, in its order; what was written is owed no more if a later one fails."""
        owed = self._owed[task]
        for key in list(owed):
            overwrite(self.store, key, owed[key])
            del owed[key]
        del self._owed[task]

    def keep(self, digests: Collection[str]) -> None:
        """Remove all prompts but those of these digests; on the disk not of tasks that are owed, whose pointers there
        name older ones.
        """
        for task, owed in list(self._owed.items()):
            self._owed[task] = {key: body for key, body in owed.items() if not _is_left_out(key, digests)}
        try:
            for key in list(self.store.keys(PROMPTS)):
                if _is_left_out(key, digests) and parse_task(key) not in self._owed:
                    self.store.delete(key)
        except PtpError as error:
            log.warning("what is not served any more stays on the disk: %s", error)


def _is_left_out(key: str, digests: Collection[str]) -> bool:
    """Whether it is of a prompt that is none of these."""
    at = parse(key)
    return isinstance(at, PromptObject) and at.digest not in digests
