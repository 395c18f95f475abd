"""Labels and texts as token ids, and the bounds of the model's context."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import (
    Encode,
    FreeText,
    LabelTokens,
    TaskText,
    apply_scoring,
    check_template,
    cut_fields,
    encode_text,
    label_tokens,
    max_input_tokens,
)
from ptpipeline.errors import ContextError, TaskFileError
from ptpipeline.records.prompts import Scoring, TooLong
from ptpipeline.task.template import parse_template
from tests.tiny import tiny_base

BOS = 1
TEXT = parse_template("{text}")
LABELS = {"bad": " bad", "good": " very good"}


def by_word(text: str, special: bool) -> list[int]:
    """One token per word, whichever its case, behind a BOS."""
    return [BOS] * special + [int.from_bytes(word.lower().encode(), "big") for word in text.split()]


def task_text(limit: int) -> TaskText:
    return TaskText("reviews", parse_template("Say: {text}"), label_tokens("reviews", LABELS, by_word), limit, by_word)


def test_labels_have_no_bos() -> None:
    labels = label_tokens("reviews", LABELS, by_word)
    assert labels.names == ("bad", "good")
    assert [len(ids) for ids in labels.ids] == [1, 2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (" ", r"task reviews: labels\.good: ' ' has no tokens"),
        (" Bad", "labels.good: its words have the same tokens as those of 'bad'"),
        (" bad luck", r"labels\.good: ' bad luck' begins with all tokens of ' bad' \(labels\.bad\)"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(words: str, expected: str) -> None:
    with pytest.raises(TaskFileError, match=expected):
        label_tokens("reviews", {**LABELS, "good": words}, by_word)


def test_labels_may_begin_alike() -> None:
    assert label_tokens("reviews", {"bad": " very bad", "good": " very good"}, by_word)


def test_the_context_less_prompt_and_longest_label_is_left_for_text() -> None:
    assert max_input_tokens(64, 16, label_tokens("reviews", LABELS, by_word)) == 46


@pytest.mark.parametrize("virtual_tokens", [62, 64, 1000])
def test_a_prompt_that_eats_the_context_is_refused(virtual_tokens: int) -> None:
    with pytest.raises(
        ContextError,
        match=rf"tune\.num_virtual_tokens: {virtual_tokens} virtual tokens and a label of 2 leave no room .* 64",
    ):
        max_input_tokens(64, virtual_tokens, label_tokens("reviews", LABELS, by_word))


@pytest.mark.parametrize(
    ("answers", "fix"),
    [
        (LabelTokens(("good",), (tuple(range(60)),)), "give the labels shorter words"),
        (FreeText(60, 9), r"lower generate\.max_new_tokens"),
    ],
)
def test_an_answer_that_eats_the_context_is_what_is_to_be_shortened(answers: LabelTokens | FreeText, fix: str) -> None:
    with pytest.raises(ContextError, match=f"of 60 leave no room .* 64; {fix}"):
        max_input_tokens(64, 4, answers)


@pytest.mark.parametrize(("limit", "told"), [(2, True), (3, False)])
def test_a_template_that_leaves_no_room_is_told_as_such(limit: int, told: bool) -> None:
    with (
        pytest.raises(ContextError, match="task reviews: template: 2 tokens without a text") if told else nullcontext()
    ):
        check_template(task_text(limit))


def test_rows_become_tokens_of_text_and_label() -> None:
    (row,) = task_text(4).rows([Row("a1", {"text": "so good"}, "good")])
    assert row == ("a1", by_word("Say: so good", True), task_text(4).labels.ids[1], "good")


def test_a_text_that_just_fits_is_taken() -> None:
    assert len(encode_text(TEXT, {"text": "a b c"}, 4, "text 1", by_word)) == 4


def test_a_text_too_long_names_its_row_and_not_its_words() -> None:
    with pytest.raises(ContextError, match=r"task reviews, row a2: the text has 5 tokens, at most 4 fit") as raised:
        task_text(4).rows([Row("a1", {"text": "fits here"}, "bad"), Row("a2", {"text": "does not fit"}, "bad")])
    assert "does" not in str(raised.value)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ContextError, match="text 1: the rendered text has no tokens"):
        encode_text(TEXT, {"text": " "}, 4, "text 1", lambda text, special: by_word(text, False))


def test_a_real_tokenizer_keeps_labels_apart(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base(tmp_path / "base"))
    encode: Encode = lambda text, special: tokenizer(text, add_special_tokens=special)["input_ids"]  # noqa: E731
    labels = label_tokens("reviews", {"negative": " negative", "positive": " positive"}, encode)
    assert tokenizer.decode(labels.ids[1]) == " positive"


def by_letter(text: str, special: bool) -> list[int]:
    """One token per character."""
    return [ord(letter) for letter in text]


@pytest.mark.parametrize(("template", "joint"), [("{text}:", " "), ("{text}:\n", ""), ("{text}", " ")])
def test_a_target_follows_behind_one_space_unless_the_text_ends_in_white_space(template: str, joint: str) -> None:
    text = TaskText("words", parse_template(template), LabelTokens((), ()), 50, by_letter, FreeText(4, BOS))
    (row,) = text.rows([Row("a1", {"text": "so"}, " yes\n")])
    assert row.target == (*by_letter(f"{joint}yes", False), BOS)
    assert row.label == " yes\n"


def test_a_target_longer_than_what_is_generated_names_its_row() -> None:
    text = TaskText("words", parse_template("{text}:"), LabelTokens((), ()), 50, by_letter, FreeText(4, BOS))
    with pytest.raises(
        ContextError,
        match=r"task words, row a1: the target has 5 tokens, at most 4 are generated; raise generate\.max_new_tokens",
    ):
        text.rows([Row("a1", {"text": "so"}, "four")])


def test_all_new_tokens_are_kept_free_of_text() -> None:
    assert max_input_tokens(64, 16, FreeText(30, BOS)) == 18
    with pytest.raises(ContextError, match="an answer of 48 leave no room"):
        max_input_tokens(64, 16, FreeText(48, BOS))


PAIR = parse_template("Say: {a} {b} !")


@pytest.mark.parametrize(
    ("how", "kept"),
    [("truncate_end", "1 2 3 4"), ("truncate_start", "6 7 8 9"), ("truncate_middle", "1 2 8 9")],
)
def test_the_longest_field_is_cut_and_never_the_template(how: TooLong, kept: str) -> None:
    ids = encode_text(PAIR, {"a": "1 2 3 4 5 6 7 8 9", "b": "x y"}, 9, "text 1", by_word, how)
    assert ids == by_word(f"Say: {kept} x y !", True)


@pytest.mark.parametrize(("limit", "kept"), [(3, "abg"), (4, "abfg")])
def test_the_middle_is_cut_out_of_a_text(limit: int, kept: str) -> None:
    assert cut_fields(TEXT, {"text": "abcdefg"}, limit, by_letter, "truncate_middle") == {"text": kept}


def test_a_text_that_fits_is_not_cut() -> None:
    fields = {"a": "1 2 3", "b": "x y"}
    assert cut_fields(PAIR, fields, 8, by_word, "truncate_end") == fields


def test_the_next_field_is_cut_when_the_longest_is_empty() -> None:
    assert cut_fields(PAIR, {"a": "11 22 33", "b": "x y z"}, 4, by_word, "truncate_end") == {"a": "", "b": "x "}


def test_a_template_that_is_too_long_by_itself_is_refused() -> None:
    with pytest.raises(ContextError, match="text 1: the text has 3 tokens, at most 2 fit"):
        encode_text(PAIR, {"a": "1", "b": "2"}, 2, "text 1", by_word, "truncate_middle")


def test_a_long_target_is_found_and_never_cut() -> None:
    text = TaskText("words", PAIR, LabelTokens((), ()), 50, by_letter, FreeText(4, BOS), "truncate_end")
    rows = [Row("1", {"a": "a", "b": "b"}, label) for label in ("two", "three")]
    assert text.find_long(rows) == [1]
    assert text.is_target_long(rows[1])


def test_a_target_follows_its_text_as_it_is_cut() -> None:
    text = TaskText("words", TEXT, LabelTokens((), ()), 3, by_letter, FreeText(3, BOS), "truncate_end")
    row = Row("1", {"text": "ab cd"}, "abc")  # cut to `ab `, so no further space joins them
    assert not text.is_target_long(row)
    assert text.rows([row])[0].target == (*map(ord, "abc"), BOS)
    assert text._replace(limit=5).is_target_long(row)


@pytest.mark.parametrize(("limit", "fits"), [(8, True), (7, False)])
def test_a_template_has_to_fit_without_a_text_if_labels_are_calibrated(limit: int, fits: bool) -> None:
    labels = LabelTokens(("bad",), ((5,),))
    with nullcontext() if fits else pytest.raises(ContextError, match=r"has 8 tokens without a text, at most 7 fit"):
        scoring = Scoring(calibrated=True)
        apply_scoring(labels, scoring, parse_template("{text}ab"), limit, lambda text, special: list(map(ord, text)))
