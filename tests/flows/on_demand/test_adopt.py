"""Prompts that come from other tools: an import is a candidate like any other."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch

import ptpipeline
from flows.on_demand.export import export
from ptpipeline.errors import (
    ArtifactError,
    BaseModelError,
    ContextError,
    NotFound,
    PtpError,
)
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.prompts.tensors import unpack
from registry.repair.doctor import examine
from tests.flows.on_demand.test_export import TASK, adopt, base_of, project
from tests.flows.project import Project
from tests.prompts.adapters import ours, saved_by_peft, theirs

__all__ = ["project"]  # a fixture


def trained_by_peft(
    project: Project, folder: Path, text: str | None = " yes", method: str = "prompt"
) -> peft.PeftModel:
    """An adapter of PEFT over the tiny base: at the embeddings of a text, of which ` yes` alone helps, or trained from
    PEFT's default.
    """
    given = (
        {
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": text,
            "tokenizer_name_or_path": str(project.folder / "base"),
        }
        if text
        else {}
    )
    kinds = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
    return saved_by_peft(
        base_of(project),
        kinds[method](task_type="CAUSAL_LM", num_virtual_tokens=4, **given),
        folder,
        steps=0 if text else 2,
    )


@pytest.fixture(scope="module")
def first_import(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that took in an adapter of PEFT, which is in production."""
    made = Project(tmp_path_factory.mktemp("first-import"), (TASK,))
    trained_by_peft(made, made.folder / "adapter")
    assert adopt(made, made.folder / "adapter").status == "promoted"
    return made


@pytest.fixture
def imported(project: Project, first_import: Project) -> None:
    """The test's project took in an adapter of PEFT, which is in production."""
    project.lines += first_import.copy(project.folder).lines


def test_an_adapter_of_peft_that_passes_the_gate_is_promoted(project: Project) -> None:
    model = trained_by_peft(project, project.folder / "adapter")
    outcome = adopt(project, project.folder / "adapter")
    assert (outcome.status, outcome.verdict, outcome.version) == ("promoted", "passed", 1)
    assert any(
        f"its file names the base {model.peft_config['default'].base_model_name_or_path!r}, which proves nothing"
        in line
        for line in project.lines
    )
    [answer] = ptpipeline.load(TASK, project.settings).predict(["the good film was a story"])
    assert answer.label == "positive"
    assert examine(project.stages.registry) == []


@pytest.mark.usefixtures("imported")
def test_an_import_is_promoted_by_the_person_who_brings_it(project: Project) -> None:
    assert [row.actor for row in project.stages.registry.ledger.history(TASK)] == ["ann"]


def test_what_was_imported_computes_as_in_peft(project: Project) -> None:
    project.edit("eval_every: 5", "eval_every: 5, store_dtype: float32")
    for method in ("prompt", "prefix"):
        trained_by_peft(project, project.folder / method, text=None, method=method)
        adopt(project, project.folder / method)
        version = project.stages.registry.ledger.versions(TASK)[0]
        base = base_of(project)
        artifact = read_artifact(project.stages.registry.store, TASK, version.digest)
        assert artifact.manifest.method == method
        prompt, ids = unpack(artifact, base.ref), base.encode("good film", True)
        torch.testing.assert_close(
            ours(base, prompt, ids), theirs(base, project.folder / method, ids), rtol=1e-5, atol=1e-5
        )


def test_an_adapter_that_fails_the_gate_is_registered_and_stays_out(project: Project) -> None:
    trained_by_peft(project, project.folder / "adapter", text=" film")
    outcome = adopt(project, project.folder / "adapter")
    assert (outcome.status, outcome.version) == ("no gain", 1)
    with pytest.raises(NotFound, match="no production version"):
        ptpipeline.load(TASK, project.settings)


def test_a_task_of_manual_policy_waits_for_a_person(project: Project) -> None:
    project.edit("promote: auto", "promote: manual")
    trained_by_peft(project, project.folder / "adapter")
    assert adopt(project, project.folder / "adapter").status == "awaiting approval"


def test_a_repeated_import_registers_nothing_new(project: Project) -> None:
    trained_by_peft(project, project.folder / "adapter")
    first = adopt(project, project.folder / "adapter")
    project.edit("steps: 10", "steps: 11")  # another recipe of training makes no other import
    second = adopt(project, project.folder / "adapter")
    assert (second.version, second.status) == (first.version, "unchanged")
    assert len(project.stages.registry.ledger.versions(TASK)) == 1


@pytest.mark.usefixtures("promoted")
def test_the_nightly_run_takes_an_import_for_no_training_of_its_own(project: Project) -> None:
    trained_by_peft(project, project.folder / "adapter")
    adopt(project, project.folder / "adapter")
    project.run()
    assert not project.trained
    project.edit("steps: 10", "steps: 3")
    project.run()
    assert project.trained


@pytest.mark.usefixtures("imported")
def test_an_import_first_leaves_the_training_to_be_done(project: Project) -> None:
    outcome = project.run()
    assert project.trained
    assert outcome.version == 2


@pytest.mark.usefixtures("imported")
def test_an_imported_champion_can_be_trained_further(project: Project) -> None:
    project.edit('init: {text: " yes"}, steps: 10', "init: champion, steps: 3")
    project.run()
    versions = project.stages.registry.ledger.versions(TASK)
    assert read_artifact(project.stages.registry.store, TASK, versions[0].digest).manifest.parents == [
        versions[1].digest
    ]


def test_out_and_in_again_keeps_every_bit(project: Project) -> None:
    project.edit("steps: 10", "steps: 3")
    project.run()
    export(project.settings, f"{TASK}@1", "peft", project.folder / "out")
    adopt(project, project.folder / "out")
    store = project.stages.registry.store
    adopted, trained = (
        read_artifact(store, TASK, version.digest) for version in project.stages.registry.ledger.versions(TASK)
    )
    assert adopted.tensors == trained.tensors
    assert adopted.digest != trained.digest
    assert adopted.manifest.recipe != trained.manifest.recipe


def spoiled_width(project: Project) -> Path:
    np.save(project.folder / "a.npy", np.ones((4, 63), np.float32))
    return project.folder / "a.npy"


def too_long(project: Project) -> Path:
    np.save(project.folder / "a.npy", np.ones((255, 64), np.float32))
    return project.folder / "a.npy"


def too_large(project: Project) -> Path:
    np.save(project.folder / "a.npy", np.full((4, 64), 1e6, np.float32))
    return project.folder / "a.npy"


def other_layers(project: Project) -> Path:
    from tests.models.families import family

    saved_by_peft(
        family("llama", torch.float32),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        project.folder / "a",
        0,
    )
    return project.folder / "a"


def other_kind(project: Project) -> Path:
    from tests.models.families import seq2seq_family

    base = seq2seq_family("t5 relu tied", torch.float32)
    saved_by_peft(
        base, peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4), project.folder / "a", 0
    )
    return project.folder / "a"


@pytest.mark.parametrize(
    ("spoil", "error", "sentence"),
    [
        (spoiled_width, BaseModelError, "the prompt is 63 wide, base model tiny is 64 wide"),
        (too_long, ContextError, "no room for text"),
        (too_large, ArtifactError, r"values up to 1e\+06, more than float16 holds; set tune\.store_dtype: float32"),
        (other_layers, BaseModelError, "the prefix has 3 layers of 2 heads of 8, this model has 2 of 2 of 16"),
        (other_kind, BaseModelError, r"for an encoder-decoder \(SEQ_2_SEQ_LM\), base model tiny is a causal model"),
    ],
)
def test_what_does_not_fit_the_base_is_refused(project: Project, spoil, error: type[PtpError], sentence: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=sentence):
        adopt(project, spoil(project))
    assert project.stages.registry.ledger.versions() == []
    assert not list(project.stages.registry.store.keys("prompts"))
