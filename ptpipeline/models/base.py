"""Base models by name: fetched and converted once under PTP_HOME, and fingerprinted again by every process."""

import hashlib
import logging
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from ptpipeline.durable import publish
from ptpipeline.errors import BaseModelError
from ptpipeline.foreign import parsing
from ptpipeline.hub import asking_hub, check_variables, download, open_hub
from ptpipeline.models.files import CONFIG, INDEX, SHARDS, SIDE_FILES, WEIGHTS, BaseFiles, read_files, read_texts
from ptpipeline.models.fingerprint import compute_fingerprints
from ptpipeline.packages import Packed, find_kept, package_member
from ptpipeline.records.base import digest_of
from ptpipeline.records.prompts import BaseModelRef
from ptpipeline.settings import Settings
from ptpipeline.task.folder import BaseModelSource, find_base_model

log = logging.getLogger(__name__)

_SPARE = 10**9  # bytes of the disk that a download leaves to everything else


class PreparedBase(NamedTuple):
    """A base model's files, what they hash to, and what the same files hashed to before all that is loaded counted."""

    name: str
    files: BaseFiles
    ref: BaseModelRef
    earlier: BaseModelRef

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.files.folder

    @property
    def known(self) -> tuple[BaseModelRef, ...]:
        """All that prompts of this base may name; the first is the one that new prompts name."""
        return self.ref, self.earlier


def prepare_base(name: str, settings: Settings) -> PreparedBase:
    """Return the base model's folder; fetch and convert the model first if that was not done yet.

    Raises NotFound for an unknown name, ServiceUnavailable if the index or hub does not answer, BaseModelError if the
    folder is not a model or does not hash to the fingerprint that `base_models.yaml` pins.
    """
    source = find_base_model(settings.tasks, name)
    prepared = prepare_folder(name, _locate_folder(name, source, settings.home), settings.home)
    check_pin(prepared, source)
    return prepared


def identify_tokenizer(name: str, settings: Settings) -> str:
    """Return the digest of all that decides how many tokens a text has, and may have: the base's tokenizer,
    configuration and chat template. No weights are read. Raises what `prepare_base` raises.
    """
    folder = _locate_folder(name, find_base_model(settings.tasks, name), settings.home)
    return digest_of({file: hashlib.sha256(body).hexdigest() for file, body in read_texts(folder).items()})


def prepare_folder(name: str, folder: Path, home: Path) -> PreparedBase:
    """Return the model in `folder`, with what it hashes to.

    Raises BaseModelError if a file is missing or damaged, or if there is one that no fingerprint covers.
    """
    files = read_files(folder)
    return PreparedBase(name, files, *compute_fingerprints(name, files, home))


def find_folder(name: str, source: BaseModelSource, home: Path) -> Path | None:
    """Return the folder of a base model on this machine; None if it is not here. Nothing is fetched or converted."""
    if source.path is not None:
        folder = Path(os.path.expanduser(source.path))
        return folder if folder.exists() else None
    packed, sha256 = packed_of(source), None
    if packed is not None:
        kept = find_kept(packed, home)
        sha256 = packed.sha256 or (kept.sha256 if kept else None)
        if sha256 is None:
            return None
    folder = name_folder(name, source, home, sha256)
    return folder if folder.exists() else None


def packed_of(source: BaseModelSource) -> Packed | None:
    """Return the file of a package that the base model is converted from; None if it comes from elsewhere."""
    return Packed(source.package, source.member, source.sha256) if source.package and source.member else None


def check_pin(prepared: PreparedBase, source: BaseModelSource) -> None:
    """Raise BaseModelError if the base does not hash to the fingerprint that `base_models.yaml` pins."""
    pinned, actual = source.fingerprint, prepared.ref.fingerprint
    if pinned == prepared.earlier.fingerprint:
        raise BaseModelError(
            f"base model {prepared.name}: base_models.yaml pins {pinned[:12]}, which covers less of the model than "
            f"fingerprints do now; if you trust {prepared.folder}, write `fingerprint: {actual}`"
        )
    if pinned not in (None, actual):
        raise BaseModelError(
            f"base model {prepared.name}: {prepared.folder} hashes to {actual[:12]}, base_models.yaml pins "
            f"{pinned[:12]}; remove the folder to fetch it again, or declare this model under another name"
        )


def _locate_folder(name: str, source: BaseModelSource, home: Path) -> Path:
    if source.path is not None:
        folder = Path(os.path.expanduser(source.path))
        if not (folder / CONFIG).is_file():
            raise BaseModelError(
                f"base model {name}: {folder} holds no config.json; expected the folder of a transformers model"
            )
        return folder
    packed = packed_of(source)
    folder = name_folder(name, source, home, (packed.sha256 or package_member(packed, home).sha256) if packed else None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        if not (folder / CONFIG).is_file():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            if packed is not None:
                _convert_gguf(name, package_member(packed, home).path, partial)
            else:
                _download(name, source, partial)
            publish(partial, folder)
    return folder


def name_folder(name: str, source: BaseModelSource, home: Path, sha256: str | None) -> Path:
    """Where a base that is fetched lies; `sha256` is that of the archive of its package."""
    content = source.model_dump(exclude={"fingerprint", "sha256"})
    if sha256 is not None:  # the name of a package says nothing of its content
        content = {"sha256": sha256, "member": source.member}
    return home / "models" / f"{name}-{digest_of(content)[:8]}"


def _download(name: str, source: BaseModelSource, target: Path) -> None:
    """Fetch the files that are loaded, and no other, at the commit that is pinned; nothing if they do not fit."""
    what, loaded = f"base model {name}: hub:{source.hub}@{source.revision}", [*SIDE_FILES, WEIGHTS, INDEX, SHARDS]
    hub, how, sizes = open_hub(), {"revision": source.revision}, {}
    with asking_hub(what, BaseModelError):
        for entry in hub.list_repo_tree(str(source.hub), **how):
            if any(fnmatch(entry.path, pattern) for pattern in loaded) and "/" not in entry.path:
                sizes[entry.path] = int(entry.size)
    _check_room(what, sum(sizes.values()), target.parent)
    target.mkdir()
    for path, size in sizes.items():
        download(hub, str(source.hub), path, size, what, BaseModelError, local_dir=target, **how)


def _check_room(what: str, needed: int, folder: Path) -> None:
    """Raise BaseModelError if so many bytes do not fit on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise BaseModelError(
            f"{what}: it has {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left, of which "
            f"{_SPARE / 1e9:.0f} stay free; free some, or let PTP_HOME name a folder on a larger disk"
        )


def _convert_gguf(name: str, file: Path, target: Path) -> None:
    """Dequantise once: a packed GGUF cannot be saved, and each load of it takes 11 s."""
    check_variables()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("converting %s to safetensors, once", file.name)
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    with parsing(f"base model {name}: {file}", "it is no GGUF file of a causal model", BaseModelError, quoting=True):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
