"""What is wrong with a task's rows, recipe or base ends its run in one sentence, and nothing is registered."""

from collections.abc import Callable

import pytest

import ptpipeline
from ptpipeline.errors import (
    ArtifactError,
    BaseModelError,
    ContextError,
    DataError,
    NotFound,
    PtpError,
)
from ptpipeline.storage.keys import prompt_prefix
from registry.repair.doctor import examine
from tests.flows.project import Project
from tests.flows.stages.test_chain import project
from tests.tiny import other_base, sentences, write_csv

__all__ = ["project"]  # a fixture


def nothing_registered(project: Project) -> bool:
    store = project.stages.registry.store
    return not list(store.keys("prompts")) and project.stages.registry.ledger.versions() == []


def spoil_label(project: Project) -> None:
    path = project.folder / "tiny-sentiment.csv"
    path.write_text(path.read_text().replace(",positive", ",splendid", 1))


@pytest.mark.parametrize(
    ("spoil", "error", "sentence"),
    [
        (lambda p: p.edit("text: text", "text: body"), DataError, r"no column 'body'.*text, label"),
        (
            spoil_label,
            DataError,
            "check unknown_label found 1: line 2: the column holds text: 'splendid'",
        ),
        (
            lambda p: p.edit("num_virtual_tokens: 4", "num_virtual_tokens: 255"),
            PtpError,
            r"no room for text.*context of 256",
        ),
        (lambda p: p.edit("base_model: tiny", "base_model: large"), NotFound, "there are tiny"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    project: Project, spoil: Callable[[Project], None], error: type[PtpError], sentence: str
) -> None:
    spoil(project)
    with pytest.raises(error, match=sentence) as caught:
        project.run()
    assert "\n" not in str(caught.value)
    assert nothing_registered(project)


def test_a_text_over_the_context_is_named(project: Project) -> None:
    rows = sentences(240)
    rows[0] = ("good " * 300, "positive")
    write_csv(project.folder / "tiny-sentiment.csv", rows)
    with pytest.raises(PtpError, match=r"too long: .*tiny-sentiment.csv: line 2; a text may have \d+"):
        project.run()
    assert nothing_registered(project)


@pytest.mark.usefixtures("promoted")
def test_a_question_over_the_context_is_refused(project: Project) -> None:
    with pytest.raises(ContextError, match="text 1 for tiny-sentiment@1: the text has"):
        ptpipeline.load("tiny-sentiment", project.settings).predict(["good " * 300])


@pytest.mark.usefixtures("promoted")
def test_another_base_than_the_artifacts_is_refused(project: Project) -> None:
    (project.tasks / "base_models.yaml").write_text(f'tiny: {{path: "{other_base(project.folder / "other")}"}}\n')
    with pytest.raises(BaseModelError, match="trained on base model tiny"):
        ptpipeline.load("tiny-sentiment", project.settings)


@pytest.mark.parametrize("alter", [lambda b: b[:-5], lambda b: b[:-1] + b"x"])
@pytest.mark.usefixtures("promoted")
def test_a_truncated_or_altered_artifact_is_refused(project: Project, alter: Callable[[bytes], bytes]) -> None:
    digest = project.stages.registry.ledger.version("tiny-sentiment", 1).digest
    path = project.folder / "store" / prompt_prefix("tiny-sentiment", digest) / "prompt.safetensors"
    path.write_bytes(alter(path.read_bytes()))
    with pytest.raises(ArtifactError, match="truncated or altered"):
        ptpipeline.load("tiny-sentiment", project.settings)
    assert [d.what for d in examine(project.stages.registry)] == ["bytes of version 1"]
