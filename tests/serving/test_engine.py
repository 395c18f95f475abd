"""Calibrated prompts in the engine: what they were scored by is part of what they are, and training ranks as they
answer.
"""

import pytest
import torch

from ptpipeline.data.tokens import CONTENT_FREE
from ptpipeline.errors import ArtifactError, ContextError, NotFound
from ptpipeline.prompts.tensors import pack_ensemble
from ptpipeline.records.prompts import Scoring
from ptpipeline.serving.combine import combine
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.ranking import Query
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.tracker import NoTracker
from ptpipeline.tuning.tune import build_task_text
from tests.evaluation.probed import artifact, embeddings, fields, opinions, tiny
from tests.models.families import family
from tests.prompts.test_artifact import artifact as stored
from tests.serving.test_scoring import by_hand_behind
from tests.tuning.jobs import declared, job

TEXTS = ["the good film", "awful plot and story", "a scene"]
CALIBRATED = Scoring(calibrated=True)


def plain(word: str, texts: list[str]) -> torch.Tensor:
    """Log-likelihoods [texts, labels] behind a word's embeddings, without calibration."""
    made = artifact(tiny(), embeddings(tiny(), word))
    engine = Engine(tiny())
    engine.load(made)
    return torch.stack(engine.score_labels([Question(made.digest, {"text": text}) for text in texts]))


def calibrated(word: str) -> torch.Tensor:
    """Of `TEXTS`, divided by the mean probabilities behind texts without content."""
    return plain(word, TEXTS) - plain(word, list(CONTENT_FREE)).softmax(-1).mean(0).log()


def test_a_calibrated_prompt_answers_less_what_labels_get_without_content() -> None:
    engine, made = opinions(tiny(), scoring=CALIBRATED)
    found = torch.stack(engine.score_labels([Question(made.digest, {"text": text}) for text in TEXTS]))
    torch.testing.assert_close(found, calibrated(" yes"), rtol=1e-4, atol=1e-4)
    assert (found - plain(" yes", TEXTS)).abs().min() > 1e-3


def test_calibrated_and_plain_prompts_answer_together_as_alone() -> None:
    engine = Engine(tiny())
    made = [
        artifact(tiny(), embeddings(tiny(), word), scoring=scoring)
        for word in (" yes", " the film")
        for scoring in (Scoring(), CALIBRATED)
    ]
    for one in made:
        engine.load(one)
    asked = [Question(made[(index * 3) % 4].digest, {"text": text}) for index, text in enumerate(TEXTS * 4)]
    for question, scores in zip(asked, engine.score_labels(asked), strict=True):
        torch.testing.assert_close(engine.score_labels([question])[0], scores, rtol=1e-5, atol=1e-5)


def test_members_of_an_ensemble_are_calibrated_each_for_itself() -> None:
    members = [artifact(tiny(), embeddings(tiny(), word), scoring=CALIBRATED) for word in (" yes", " bad")]
    whole = pack_ensemble(members, "average", fields(tiny()) | {"method": "ensemble", "scoring": CALIBRATED})
    engine = Engine(tiny())
    engine.load(whole, members)
    expected = [
        combine(torch.stack(rows), "average") for rows in zip(calibrated(" yes"), calibrated(" bad"), strict=True)
    ]
    for found, wanted in zip(
        engine.score_labels([Question(whole.digest, {"text": text}) for text in TEXTS]), expected, strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_altered_bytes_are_refused_before_they_are_asked() -> None:
    engine, made = Engine(tiny()), artifact(tiny(), embeddings(tiny()))
    with pytest.raises(ArtifactError, match="truncated or altered"):
        engine.add(made._replace(tensors=made.tensors[:-1]))
    with pytest.raises(NotFound):
        engine.find(made.digest)


def test_texts_without_content_are_asked_once_per_loaded_prompt() -> None:
    engine, made = opinions(tiny(), scoring=CALIBRATED)
    engine._priors[made.digest] = (torch.tensor([5.0, 0.0]),)
    found = engine.score_labels([Question(made.digest, {"text": TEXTS[0]})])[0]
    torch.testing.assert_close(found, plain(" yes", TEXTS[:1])[0] - torch.tensor([5.0, 0.0]), rtol=1e-4, atol=1e-4)


def test_a_template_that_fills_the_context_cannot_be_calibrated() -> None:
    with pytest.raises(
        ContextError, match=r"scoring\.calibrated: the template has .* tokens without a text, at most 2 fit"
    ):
        Engine(tiny()).load(artifact(tiny(), embeddings(tiny()), scoring=CALIBRATED, max_input_tokens=2))


def test_scoring_is_identity_only_where_it_is_not_plain() -> None:
    assert stored().digest == "38a9eea32166730b7af03e35837665ae2eb1a9710c409232c7eb6e9641af03c5"
    assert "scoring" not in stored().manifest.to_json()
    changed = stored().manifest.model_copy(update={"scoring": Scoring(length_normalised=True)})
    assert changed.digest() != stored().digest
    assert type(changed).model_validate(changed.to_json()) == changed


def test_scoring_is_part_of_the_recipe_only_where_it_is_not_plain() -> None:
    task = declared("t")
    assert task.recipe_digest() == "dba259e07cb65608c5e1f528092dc81a103d48acd621dc97a17d4e83b6f2def1"
    kinds = [
        task.model_copy(update={"scoring": scoring})
        for scoring in (Scoring(), CALIBRATED, Scoring(length_normalised=True))
    ]
    assert len({kind.recipe_digest() for kind in kinds}) == 3


def test_training_judges_its_dev_rows_as_they_will_be_answered() -> None:
    base, made = family("llama"), job(family("llama"), "a")
    labels = made.text.labels._replace(normalised=True, content_free=((3,), (4, 5)))
    member = run_gang(
        base, [made._replace(text=made.text._replace(labels=labels))], NoTracker(), lambda line: None
    ).members[0]
    assert isinstance(member.best, torch.Tensor)
    scores = [by_hand_behind(base, member.best, Query(row.ids, labels, 0)) for row in made.dev]
    right = [labels.names[int(one.argmax())] == row.label for one, row in zip(scores, made.dev, strict=True)]
    assert member.best_dev == sum(right) / len(right)


def test_a_tasks_rows_are_ranked_as_it_says() -> None:
    task = declared("t").model_copy(
        update={"template": "{text} :", "scoring": Scoring(length_normalised=True, calibrated=True)}
    )
    labels = build_task_text(tiny(), task, task.tune).labels
    assert labels.normalised
    assert labels.content_free == tuple(tuple(tiny().encode(f"{text} :", True)) for text in CONTENT_FREE)
    plain_labels = build_task_text(tiny(), declared("t"), task.tune).labels
    assert (plain_labels.normalised, plain_labels.content_free) == (False, ())
