"""Fingerprints bind a prompt to its base model: weights, tokenizer, and the configuration that matters."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ptpipeline.errors import BaseModelError, NotFound
from ptpipeline.models.base import fingerprint, prepare_base
from ptpipeline.models.load import load_base
from ptpipeline.settings import Settings
from tests.tiny import tiny_base, tiny_project


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "model")


def edited(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_same_files_hash_the_same_elsewhere(folder: Path, tmp_path: Path) -> None:
    other = tiny_base(tmp_path / "other")
    assert fingerprint("a", folder, tmp_path).fingerprint == fingerprint("b", other, tmp_path).fingerprint


def test_one_changed_weight_is_another_model(folder: Path, tmp_path: Path) -> None:
    before = fingerprint("a", folder, tmp_path).fingerprint
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint("a", folder, tmp_path).fingerprint != before


@pytest.mark.parametrize("fields", [{"rms_norm_eps": 0.1}, {"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}])
def test_config_that_matters_is_covered(folder: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    before = fingerprint("a", folder, tmp_path).fingerprint
    edited(folder, **fields)
    assert fingerprint("a", folder, tmp_path).fingerprint != before


@pytest.mark.parametrize("fields", [{"transformers_version": "0.0"}, {"dtype": "float16"}, {"_name_or_path": "elsewhere"}])
def test_config_that_does_not_matter_is_not(folder: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    before = fingerprint("a", folder, tmp_path).fingerprint
    edited(folder, **fields)
    assert fingerprint("a", folder, tmp_path).fingerprint == before


def test_changed_tokenizer_is_another_model(folder: Path, tmp_path: Path) -> None:
    before = fingerprint("a", folder, tmp_path)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    after = fingerprint("a", folder, tmp_path)
    assert (after.fingerprint, after.tokenizer_fingerprint) != (before.fingerprint, before.tokenizer_fingerprint)


def test_pinned_fingerprint_refuses_another_model(tmp_path: Path) -> None:
    tasks = tiny_project(tmp_path)
    (tasks / "base_models.yaml").write_text(f'tiny: {{path: "{tmp_path / "base"}", fingerprint: "{"0" * 64}"}}\n')
    with pytest.raises(BaseModelError, match=r"base_models.yaml pins 000000000000"):
        prepare_base("tiny", Settings(home=tmp_path / "home", tasks=tasks))


def test_unknown_base_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there are tiny"):
        prepare_base("huge", Settings(home=tmp_path / "home", tasks=tiny_project(tmp_path)))


def test_weights_in_memory_are_told_apart(tmp_path: Path) -> None:
    base = load_base(prepare_base("tiny", Settings(home=tmp_path / "home", tasks=tiny_project(tmp_path))), "float32")
    before = base.weights_digest()
    assert base.weights_digest() == before
    base.model.model.norm.weight.data[0] += 1e-3
    assert base.weights_digest() != before
