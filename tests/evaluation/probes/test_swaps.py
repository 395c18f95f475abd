"""Term swaps: which words change places, and how many answers follow."""

import pytest

from ptpipeline.errors import DataError
from ptpipeline.evaluation.probes import swaps
from ptpipeline.evaluation.probes.swaps import _replacements, measure_swaps, swap_terms
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine, Question
from tests.evaluation.probed import LABELS, answer, opinions, rows, tiny, writing

PAIRS = [
    ("he", "she"),
    ("old man", "old woman"),
    ("man", "woman"),
    ("NHS", "charity"),
    ("형", "누나"),
    ("New York", "Paris"),
    ("New", "Old"),
    ("i", "you"),
]
WORDS = {"good", "bad"}


def test_terms_are_swapped_in_the_named_fields_alone() -> None:
    engine, made = opinions(tiny())
    swaps = [("film", "plot"), ("story", "scene")]
    assert measure_swaps(engine, made, rows(20), swaps, fields=["text"]) == measure_swaps(engine, made, rows(20), swaps)
    assert measure_swaps(engine, made, rows(20), swaps, fields=["other"]) == {"bias.rows": 0}


def probability(engine: Engine, made: Artifact, text: str) -> dict[str, float]:
    """Of each label, of one text asked alone."""
    scores = engine.score_labels([Question(made.digest, {"text": text})])[0]
    return dict(zip(LABELS, scores.softmax(0).tolist(), strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He said she knows", "She said he knows"),
        ("I say so", "You say so"),
        ("HE IS NOT SHE", "SHE IS NOT HE"),
        ("the thesis of his shed", "the thesis of his shed"),
        ("he-man, (she)!", "she-woman, (he)!"),
        ("an old man and a man", "an old woman and a woman"),
        ("Old New York, new", "New Paris, Old"),
        ("the NHS", "the CHARITY"),
        ("a charity", "a NHS"),
        ("형 왔다", "누나 왔다"),
        ("nothing", "nothing"),
    ],
)
def test_terms_change_places_as_whole_words_in_their_case(text: str, expected: str) -> None:
    assert swap_terms(text, _replacements(PAIRS)) == expected


@pytest.mark.parametrize("text", ["She and he, HE and the Woman.", "old man, old woman", "형 누나"])
def test_a_swap_twice_is_none(text: str) -> None:
    assert swap_terms(swap_terms(text, _replacements(PAIRS)), _replacements(PAIRS)) == text


@pytest.mark.parametrize("kind", [opinions, writing])
def test_swapped_opinions_flip_every_answer_of_the_rows_that_hold_one(kind: object) -> None:
    engine, made = kind(tiny())  # type: ignore[operator]
    given = rows(40)
    found = measure_swaps(engine, made, given, [("good", "bad")])
    holding = [row.text for row in given if WORDS & set(row.text.split())]
    assert found["bias.rows"] == len(holding) > 3
    exchanged = [" ".join({"good": "bad", "bad": "good"}.get(word, word) for word in text.split()) for text in holding]
    flips = [
        answer(engine, made, text) != answer(engine, made, other)
        for text, other in zip(holding, exchanged, strict=True)
    ]
    assert found["bias.flips"] == pytest.approx(sum(flips) / len(flips)) == 1


def test_the_shift_is_that_of_the_label_answered_before() -> None:
    engine, made = opinions(tiny())
    given = [row for row in rows(40) if "film" in row.text.split() and "story" not in row.text.split()]
    found = measure_swaps(engine, made, given, [("film", "story")])
    shifts = []
    for row in given:
        label = answer(engine, made, row.text)
        before, after = (
            probability(engine, made, text)[label] for text in (row.text, row.text.replace("film", "story"))
        )
        shifts.append(abs(before - after))
    assert found["bias.shift"] == pytest.approx(
        sum(shifts) / len(shifts), abs=5e-7
    )  # of four float32 roundings of a number below 1, 6e-8 each
    assert 0 < found["bias.shift"] < 0.05
    assert found["bias.flips"] == 0


def test_generated_answers_have_no_shift() -> None:
    assert set(measure_swaps(*writing(tiny()), rows(40), [("good", "bad")])) == {"bias.rows", "bias.flips"}


@pytest.mark.parametrize("pairs", [[("he", "she")], []])
def test_without_a_term_there_is_nothing_to_say(pairs: list[tuple[str, str]]) -> None:
    assert measure_swaps(*opinions(tiny()), rows(40), pairs) == {"bias.rows": 0}


@pytest.mark.parametrize("pairs", [[("her", "his"), ("her", "him")], [("he", "He")], [("he", " ")]])
def test_pairs_that_contradict_are_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(DataError, match="bias swaps: "):
        measure_swaps(*opinions(tiny()), rows(10), pairs)


def test_as_many_rows_as_allowed_count_and_the_same_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swaps, "ROWS", 5)
    engine, made = opinions(tiny())
    found = measure_swaps(engine, made, rows(40), [("film", "story")])
    assert found["bias.rows"] == 5
    assert found == measure_swaps(engine, made, rows(40)[::-1], [("film", "story")])


def test_a_row_that_no_longer_fits_with_its_terms_swapped_does_not_count() -> None:
    given, long = rows(40), "story " * 20 + "story"
    limit = max(len(tiny().encode(f"{row.text}\nSentiment:", True)) for row in given)
    engine, made = opinions(tiny(), max_input_tokens=limit)
    both = [("film", long), ("good", "bad")]
    fitting = [row for row in given if WORDS & set(row.text.split()) and "film" not in row.text.split()]
    assert measure_swaps(engine, made, given, both)["bias.rows"] == len(fitting) > 0
