"""Rows whose scores an evaluation has stored: no probe asks for them again, and each measures what it did."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from ptpipeline.evaluation.probes.likelihood import bare_likelihoods
from ptpipeline.evaluation.probes.membership import measure_membership
from ptpipeline.evaluation.probes.queries import NOTHING, Known
from ptpipeline.evaluation.probes.robustness import measure_robustness
from ptpipeline.evaluation.probes.swaps import measure_swaps
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine, Question
from tests.evaluation.probed import artifact, embeddings, opinions, rows, tiny, writing

Probe = Callable[[Engine, Artifact, Known], dict[str, float]]

TRAIN, TEST = rows(60, 2), rows(50, 1)
PROBES: dict[str, Probe] = {
    "robustness": lambda engine, made, known: measure_robustness(engine, made, TEST, known),
    "swaps": lambda engine, made, known: measure_swaps(engine, made, TEST, [("good", "bad")], known),
    "membership": lambda engine, made, known: measure_membership(engine, made, TRAIN, TEST, known),
}


class Noting(Engine):
    """An engine that notes which texts it is asked."""

    def __init__(self) -> None:
        super().__init__(tiny())
        self.asked: list[str] = []

    def score_labels(self, questions: Sequence[Question]) -> list[Tensor]:
        self.asked += [question.fields["text"] for question in questions]
        return super().score_labels(questions)


def loaded() -> tuple[Noting, Artifact]:
    engine, made = Noting(), artifact(tiny(), embeddings(tiny()))
    engine.load(made)
    return engine, made


def evaluated(engine: Engine, made: Artifact) -> Known:
    """What an evaluation stores of the test rows."""
    scores = engine.score_labels([Question(made.digest, row.fields) for row in TEST])
    return Known({row.id: own.tolist() for row, own in zip(TEST, scores, strict=True)})


@pytest.mark.parametrize("name", PROBES)
def test_no_probe_asks_for_a_row_whose_scores_are_known(name: str) -> None:
    engine, made = loaded()
    known = evaluated(engine, made)
    engine.asked.clear()
    measures, plain = PROBES[name](engine, made, known), {row.text for row in TEST}
    assert engine.asked
    assert not plain & set(engine.asked)
    assert measures == pytest.approx(PROBES[name](engine, made, NOTHING), abs=1e-6)
    assert plain & set(engine.asked)


@pytest.mark.parametrize("name", PROBES)
def test_what_is_known_is_what_counts(name: str) -> None:
    engine, made = loaded()
    known = evaluated(engine, made)
    turned = Known({row: scores[::-1] for row, scores in known.prompted.items()})
    assert PROBES[name](engine, made, turned) != pytest.approx(PROBES[name](engine, made, known), abs=1e-6)


def test_what_test_rows_answered_says_nothing_of_a_training_row_of_the_same_id() -> None:
    engine, made = opinions(tiny())
    turned = Known({row.id: (0.0, 0.0) for row in TRAIN}, {row.id: (0.0, 0.0) for row in TRAIN})
    test = [row for row in TEST if row.id not in turned.prompted]
    assert measure_membership(engine, made, TRAIN, test, turned) == measure_membership(engine, made, TRAIN, test)


def test_the_likelihood_on_the_bare_base_is_the_known_one() -> None:
    engine, made = opinions(tiny())
    known = Known(bare={row.id: (-1.0, -2.0) for row in TEST[:9]})
    aims = [-1.0 if row.label == "negative" else -2.0 for row in TEST[:9]]
    assert bare_likelihoods(engine, made, TEST, known) == aims + bare_likelihoods(engine, made, TEST[9:], NOTHING)


@pytest.mark.parametrize("name", ["robustness", "swaps"])
def test_texts_that_are_known_are_not_generated_again(name: str) -> None:
    engine, made = writing(tiny())
    texts = dict(zip((row.id for row in TEST), engine.generate(ask_plain(made)), strict=True))
    known = PROBES[name](engine, made, Known(texts=texts))
    assert known == PROBES[name](engine, made, NOTHING)
    turned = {row: "negative" if text == "positive" else "positive" for row, text in texts.items()}
    assert PROBES[name](engine, made, Known(texts=turned)) != known


def ask_plain(made: Artifact) -> list[Question]:
    return [Question(made.digest, row.fields) for row in TEST]


def test_known_scores_are_the_same_numbers() -> None:
    engine, made = loaded()
    known = evaluated(engine, made)
    scores = engine.score_labels([Question(made.digest, row.fields) for row in TEST])
    assert all(torch.equal(torch.tensor(known.prompted[row.id]), own) for row, own in zip(TEST, scores, strict=True))
