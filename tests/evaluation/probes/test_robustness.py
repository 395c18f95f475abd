"""White space and case: flips are counted as a loop over single requests counts them."""

import copy
from dataclasses import replace

import pytest
from tokenizers import Regex, normalizers

from ptpipeline.evaluation.probes.queries import change_fields
from ptpipeline.evaluation.probes.robustness import VARIANTS, measure_robustness
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.tensors import pack_ensemble
from ptpipeline.serving.engine import Engine
from tests.evaluation.probed import answer, artifact, embeddings, fields, opinions, rows, tiny, writing

CHANGES = {name: change for variants in VARIANTS.values() for name, change in variants.items()}
BLANKS = {"^  +": "", r"\s*\nSentiment": "\nSentiment", " +": " "}  # a label's own blank stays
WORDS = normalizers.Sequence([normalizers.Replace(Regex(found), kept) for found, kept in BLANKS.items()])


def reading(normalizer: normalizers.Normalizer) -> FrozenBase:
    """The tiny base with a tokenizer that never sees what the normalizer takes away."""
    tokenizer = copy.deepcopy(tiny().tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizer
    return replace(tiny(), tokenizer=tokenizer)


def flips(engine: Engine, made: Artifact, variant: str, count: int) -> float:
    """The share by one request after another."""
    given = [row.text for row in rows(count)]
    return sum(answer(engine, made, text) != answer(engine, made, CHANGES[variant](text)) for text in given) / count


@pytest.mark.parametrize("kind", [opinions, writing])
def test_flips_are_those_of_single_requests(kind: object) -> None:
    engine, made = kind(tiny())  # type: ignore[operator]
    found = measure_robustness(engine, made, rows(20))
    assert {name: found[f"robustness.{name}"] for name in CHANGES} == {
        name: pytest.approx(flips(engine, made, name, 20)) for name in CHANGES
    }
    assert found["robustness.case"] == found["robustness.upper"] > 0.2
    assert (found["robustness.rows"], found["robustness.left_out"]) == (20, 0)


def test_only_the_named_fields_are_changed() -> None:
    row = {"premise": "a Film", "claim": "Good"}
    assert change_fields(row, str.upper, ["claim"]) == {"premise": "a Film", "claim": "GOOD"}
    assert change_fields(row, str.upper) == {"premise": "A FILM", "claim": "GOOD"}


def test_a_text_of_which_no_field_is_changed_never_flips() -> None:
    engine, made = opinions(tiny())
    found = measure_robustness(engine, made, rows(20), fields=["other"])
    assert found["robustness.case"] == found["robustness.white_space"] == 0


def test_a_base_that_reads_small_letters_only_flips_by_no_case() -> None:
    engine, made = opinions(reading(normalizers.Lowercase()))
    assert measure_robustness(engine, made, rows(40))["robustness.case"] == 0


def test_a_base_that_reads_words_only_flips_by_no_white_space_and_by_case_still() -> None:
    engine, made = opinions(reading(WORDS))
    found = measure_robustness(engine, made, rows(40))
    assert found["robustness.white_space"] == 0 < found["robustness.case"]


def test_white_space_that_matters_is_found() -> None:
    fooled = reading(
        normalizers.Replace(Regex(r"(good|fine|great|lovely)  "), "bad ")
    )  # sees another word before two blanks
    engine, made = opinions(fooled)
    found = measure_robustness(engine, made, rows(40))
    assert found["robustness.doubled_blanks"] == pytest.approx(flips(engine, made, "doubled_blanks", 40))
    assert (
        found["robustness.white_space"]
        == found["robustness.doubled_blanks"]
        > found["robustness.trailing_blanks"]
        > found["robustness.leading_blanks"]
        == 0
    )


def test_texts_that_no_longer_fit_are_counted_and_left_out() -> None:
    base = tiny()
    lengths = {
        name: [len(base.encode(f"{change(row.text)}\nSentiment:", True)) for row in rows(40)]
        for name, change in CHANGES.items()
    }
    limit = max(len(base.encode(f"{row.text}\nSentiment:", True)) for row in rows(40))
    engine, made = opinions(base, max_input_tokens=limit)
    found = measure_robustness(engine, made, rows(40))
    assert found["robustness.left_out"] == sum(length > limit for variant in lengths.values() for length in variant) > 0
    fitting = [row for row, length in zip(rows(40), lengths["upper"], strict=True) if length <= limit]
    assert found["robustness.upper"] == pytest.approx(measure_robustness(engine, made, fitting)["robustness.upper"])


def test_a_hundred_rows_at_most_and_the_same_in_any_order() -> None:
    engine, made = opinions(tiny())
    found = measure_robustness(engine, made, rows(230))
    assert found["robustness.rows"] == 100
    assert found == measure_robustness(engine, made, rows(230)[::-1])


def test_no_rows_give_no_shares() -> None:
    engine, made = opinions(tiny())
    assert measure_robustness(engine, made, []) == {"robustness.rows": 0, "robustness.left_out": 0}


def test_an_ensemble_is_probed_as_it_answers() -> None:
    base = tiny()
    members = [artifact(base, embeddings(base, text)) for text in (" yes", " yes good", " the film")]
    made = pack_ensemble(members, "average", fields(base) | {"method": "ensemble"})
    engine = Engine(base)
    engine.load(made, members)
    assert measure_robustness(engine, made, rows(20))["robustness.upper"] == pytest.approx(
        flips(engine, made, "upper", 20)
    )
