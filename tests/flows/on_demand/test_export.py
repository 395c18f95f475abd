"""Prompts that leave for other tools, and prompts that come from them: an import is a candidate like any other."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flows.on_demand.adopt import adopt as take_in
from flows.on_demand.export import export
from flows.stages.outcome import Outcome
from ptpipeline.errors import (
    DataError,
    NotFound,
    PreconditionFailed,
)
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.load import load_base
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.prompts.tensors import unpack
from tests.flows.project import Project
from tests.prompts.adapters import ours, theirs

TASK = "tiny-sentiment"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, (TASK,))


def base_of(project: Project) -> FrozenBase:
    return load_base(prepare_base("tiny", project.settings), "float32")


def adopt(project: Project, path: Path) -> Outcome:
    project.lines.clear()
    return take_in(project.stages, project.task(TASK), path, "ann")


@pytest.mark.parametrize(
    "recipe",
    [
        "",
        "method: prefix, ",
        "method: p_tuning, encoder: mlp, encoder_width: 8, ",
        "method: residual, encoder_width: 8, ",
    ],
)
def test_peft_loads_a_version_and_computes_the_same(project: Project, recipe: str) -> None:
    project.edit("tune: {", f"tune: {{{recipe}")
    project.edit("steps: 10", "steps: 4")
    version = project.run().version
    done = export(project.settings, f"{TASK}@{version}", "peft", project.folder / "out")
    assert done.files == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    base = base_of(project)
    prompt = unpack(read_artifact(project.stages.registry.store, TASK, done.digest), base.ref)
    ids = base.encode("good film\nSentiment:", True)
    torch.testing.assert_close(theirs(base, project.folder / "out", ids), ours(base, prompt, ids), rtol=1e-5, atol=1e-5)
    assert json.loads((project.folder / "out/adapter_config.json").read_text())["base_model_name_or_path"] == str(
        project.folder / "base"
    )


def test_members_of_an_ensemble_are_adapters_of_their_own(project: Project) -> None:
    project.edit("tune: {", "tune: {method: ensemble, ensemble: {members: 2}, ")
    project.edit("steps: 10", "steps: 5")
    project.run()
    done = export(project.settings, f"{TASK}@1", "peft", project.folder / "out")
    assert [name for name in done.files if name.endswith("safetensors")] == [
        "0/adapter_model.safetensors",
        "1/adapter_model.safetensors",
    ]
    one, two = (
        load_file(project.folder / "out" / name / "adapter_model.safetensors")["prompt_embeddings"] for name in "01"
    )
    assert not torch.equal(one, two)


def test_a_prompt_behind_bos_leaves_as_an_array_only(project: Project) -> None:
    path = project.folder / "base/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(tokenizer))
    project.edit("tune: {", "tune: {placement: after_bos, ")
    project.edit("steps: 10", "steps: 5")
    project.run()
    with pytest.raises(DataError, match=r"behind BOS .*--format npy"):
        export(project.settings, f"{TASK}@1", "peft", project.folder / "out")
    assert not (project.folder / "out").exists()
    export(project.settings, f"{TASK}@1", "npy", project.folder / "out")
    adopt(project, project.folder / "out/embeddings.npy")
    store = project.stages.registry.store
    trained, adopted = (
        read_artifact(store, TASK, version.digest)
        for version in reversed(project.stages.registry.ledger.versions(TASK))
    )
    assert (adopted.manifest.placement, adopted.tensors) == ("after_bos", trained.tensors)


def test_a_folder_for_vllm_holds_the_prompt_as_it_is_sent(project: Project) -> None:
    project.edit("steps: 10", "steps: 2")
    project.run()
    done = export(project.settings, f"{TASK}@1", "vllm", project.folder / "out")
    assert done.files == ["README.md", "client.py", "embeddings.safetensors", "manifest.json", "vllm.json"]
    base, store = base_of(project), project.stages.registry.store
    prompt = unpack(read_artifact(store, TASK, done.digest), base.ref)
    assert torch.equal(load_file(project.folder / "out/embeddings.safetensors")["embeddings"], prompt)
    assert (
        f"vllm serve {project.folder / 'base'} --enable-prompt-embeds" in (project.folder / "out/README.md").read_text()
    )


def test_a_folder_that_holds_something_is_left_alone(project: Project) -> None:
    project.edit("steps: 10", "steps: 2")
    project.run()
    out = project.folder / "out"
    out.mkdir()
    export(project.settings, f"{TASK}@1", "npy", out)
    before = sorted(out.iterdir())
    with pytest.raises(PreconditionFailed, match="not empty; name a new folder"):
        export(project.settings, f"{TASK}@1", "peft", out)
    (project.folder / "file").write_text("x")
    with pytest.raises(PreconditionFailed, match="cannot be written"):
        export(project.settings, f"{TASK}@1", "peft", project.folder / "file")
    assert sorted(out.iterdir()) == before
    assert not list(project.folder.glob(".out*"))


def test_what_others_put_beside_an_export_is_not_followed(project: Project) -> None:
    """The name of the folder that is renamed in the end cannot be foreseen."""
    project.edit("steps: 10", "steps: 2")
    project.run()
    shared, victim = project.folder / "shared", project.folder / "victim"
    shared.mkdir()
    victim.mkdir()
    (shared / f".out.{os.getpid()}.partial").symlink_to(victim)
    export(project.settings, f"{TASK}@1", "npy", shared / "out")
    assert (list(victim.iterdir()), (shared / "out").is_symlink()) == ([], False)


def test_a_version_that_is_not_there_is_not_exported(project: Project) -> None:
    with pytest.raises(NotFound, match="has no production version"):
        export(project.settings, TASK, "peft", project.folder / "out")
    assert not (project.folder / "out").exists()
