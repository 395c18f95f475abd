"""What a server answered with last, as files of its own: so it starts and serves while the store is away.

The folder holds the same objects under the same keys as the store, and all of them are verified again when they are
read. Its files are its owner's alone. What is not in use any more is removed.
"""

import json
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ptpipeline.errors import ArtifactError, NotFound, PtpError
from ptpipeline.foreign import parse_record
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.base import digest_of
from ptpipeline.records.versions import Pointer, Promotion
from ptpipeline.storage import FolderStore
from ptpipeline.storage.addresses import AliasPointer, PromptObject, parse
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
        self.store = FolderStore((own / FOLDER / digest_of(where)[:16]).absolute())

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
        """Keep these prompts; a disk that is full or gone is told, and no more."""
        for artifact in artifacts:
            task, digest = artifact.manifest.task, artifact.digest
            with self._telling(f"{task} {digest[:12]}"):
                overwrite(self.store, tensors_key(task, digest), artifact.tensors)
                overwrite(self.store, manifest_key(task, digest), json.dumps(artifact.manifest.to_json()).encode())

    def save_promotion(self, promotion: Promotion) -> None:
        """Keep what an alias names, behind the prompts that it needs."""
        with self._telling(f"{promotion.task}@{promotion.alias}"):
            pointer = Pointer(promotion=promotion, nonce="0" * 16)
            overwrite(self.store, pointer_key(promotion.task, promotion.alias), pointer.model_dump_json().encode())

    def keep(self, digests: Collection[str]) -> None:
        """Remove all prompts but those of these digests."""
        with self._telling("what is not served any more"):
            for key in list(self.store.keys(PROMPTS)):
                at = parse(key)
                if isinstance(at, PromptObject) and at.digest not in digests:
                    self.store.delete(key)

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except PtpError as error:
            log.warning("%s: after a restart without the store, this server would not know it: %s", what, error)
