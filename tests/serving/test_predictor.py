"""The predictor hashes the base while it imports what computes, so its own module imports none of that."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
import polars as pl
import pytest
from torch import Tensor

from ptpipeline.errors import ArtifactError, ContextError, DataError
from ptpipeline.serving import predictor as predictor_module
from ptpipeline.serving.engine import Engine, Rendered
from ptpipeline.serving.predictor import Predictor, list_texts
from ptpipeline.serving.resolver import Resolved
from tests.evaluation.probed import artifact, blind, embeddings, tiny


def test_importing_the_predictor_imports_no_torch() -> None:
    code = "import sys, ptpipeline.serving.predictor; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


FRAME = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})


@pytest.mark.parametrize(
    "given",
    [
        ["a", "b"],
        ("a", "b"),
        (text for text in ["a", "b"]),
        map(str, ["a", "b"]),
        {"a": 1, "b": 2}.keys(),
        FRAME["text"],
        FRAME["text"].to_numpy(),
        FRAME["text"].tolist(),
        pl.Series(["a", "b"]),
    ],
)
def test_texts_are_taken_from_whatever_gives_them(given: Any) -> None:
    assert list_texts(given) == ["a", "b"]


@pytest.mark.parametrize("given", ["a", b"a", {"text": "a"}, FRAME, FRAME[["text"]], pl.DataFrame(FRAME), 7, None])
def test_what_is_no_list_of_texts_is_told(given: Any) -> None:
    with pytest.raises(DataError, match="predict takes a list of texts"):
        list_texts(given)


def test_the_columns_of_a_table_are_taken_as_the_message_says() -> None:
    with pytest.raises(DataError, match=r"table\['text'\]\.tolist\(\), or all fields as table\.to_dict\('records'\)"):
        list_texts(FRAME)
    assert list_texts(FRAME["text"].tolist()) == ["a", "b"]
    assert list_texts(FRAME.to_dict("records"))[0] == {"text": "a", "label": "x"}


def test_scores_that_are_no_numbers_are_no_answer() -> None:
    made = artifact(tiny(), embeddings(tiny(), " yes"))
    engine = Engine(blind(tiny(), " dull"))
    engine.load(made)
    predictor = Predictor(engine, Resolved(made.manifest.task, 1, made, []))
    assert predictor.predict(["a film"])[0].label in made.manifest.labels
    with pytest.raises(ArtifactError, match=r"@1: its scores are no finite numbers; roll it back"):
        predictor.predict(["very dull"])


@pytest.mark.parametrize("given", ["caf\udce9", {"text": "caf\udce9"}])
def test_half_a_surrogate_pair_is_told_with_its_number(given: Any) -> None:
    made = artifact(tiny(), embeddings(tiny(), " yes"))
    predictor = Predictor(Engine(tiny()), Resolved(made.manifest.task, 1, made, []))
    with pytest.raises(DataError, match="text 2 for movies@1: not Unicode"):
        predictor.predict(["a film", given])


@pytest.mark.parametrize(
    "lines", [["a film", " ", "film " * 200], [{"text": "a"}, {"text": ""}, {"text": "film " * 200}]]
)
def test_a_line_is_told_by_its_own_place_and_a_blank_one_asks_nothing(lines: list[Any]) -> None:
    made = artifact(tiny(), embeddings(tiny(), " yes"))
    engine = Engine(tiny())
    engine.load(made)
    predictor = Predictor(engine, Resolved(made.manifest.task, 1, made, []))
    with pytest.raises(ContextError, match=r"^rows\.csv: line 4: the text has [0-9]+ tokens"):
        next(predictor.answer_lines(lines, lambda number: f"rows.csv: line {number + 1}"))
    labels = [answer.label for answer in predictor.answer_lines([*lines[:2], lines[0]], lambda number: "rows.csv")]
    assert [label is None for label in labels] == [False, True, False]


def test_answers_come_a_portion_at_a_time_and_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, computed = artifact(tiny(), embeddings(tiny(), " yes")), list[int]()

    class Counting(Engine):
        def score(self, texts: Sequence[Rendered]) -> list[Tensor]:
            computed.append(len(texts))
            return super().score(texts)

    engine = Counting(tiny())
    engine.load(made)
    predictor = Predictor(engine, Resolved(made.manifest.task, 1, made, []))
    monkeypatch.setattr(predictor_module, "PORTION", 2)
    lines = ["a film", "", "bad", "the plot", "good", "a scene of the film"]
    answers = predictor.answer_lines(lines, str)
    first = [next(answers) for _ in range(3)]
    assert computed == [2]
    told = [*first, *answers]
    assert computed == [2, 2, 1]
    expected = predictor.predict([line for line in lines if line])
    assert [answer.label for answer in told] == [expected[0].label, None, *(answer.label for answer in expected[1:])]
    assert told[2].probabilities == pytest.approx(expected[1].probabilities, abs=1e-5)


def test_a_field_that_is_no_text_is_told_as_such() -> None:
    made = artifact(tiny(), embeddings(tiny(), " yes"))
    engine = Engine(tiny())
    engine.load(made)
    with pytest.raises(DataError, match="the field 'text' is int; expected text"):
        Predictor(engine, Resolved(made.manifest.task, 1, made, [])).predict([{"text": 7}])  # type: ignore[dict-item]
