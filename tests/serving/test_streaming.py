"""Pieces of a text: together the text that its tokens decode to, cut where a stop string is complete first."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ptpipeline.serving.streaming import UNFINISHED, TextStream
from tests.tiny import FOLDER

BYTES = AutoTokenizer.from_pretrained(FOLDER)


def sentencepiece() -> Any:
    """As Llama 2's: a blank before a first word, which decoding drops, and bytes for what is not in the vocabulary."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abco.", "▁a", "ab", "▁ab", "▁▁"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


PIECES = sentencepiece()


def decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def stream(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The pieces of a text, and whether a stop string ended it."""
    own = TextStream(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(own.push(token))
        if own.stopped:
            return pieces, True
    return [*pieces, own.close()], False


def cut_plainly(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Character by character: the text before the longest stop string that the first characters end with."""
    for end in range(len(text) + 1):
        complete = [string for string in stop if string and text[:end].endswith(string)]
        if complete:
            return text[: end - max(map(len, complete))].strip(), True
    return text.strip(), False


TEXTS = st.text(st.sampled_from("ab \nä漢🙂👩‍🚀."), max_size=12)


@given(text=TEXTS)
def test_every_character_comes_once_and_whole(text: str) -> None:
    ids = BYTES.encode(text, add_special_tokens=False)
    pieces, _ = stream(BYTES, ids)
    assert "".join(pieces) == text.strip()
    assert not any(UNFINISHED in piece for piece in pieces)


@given(text=TEXTS, stop=st.lists(st.text(st.sampled_from("ab \nä"), max_size=3), max_size=3))
def test_a_text_ends_before_the_stop_string_that_is_complete_first(text: str, stop: list[str]) -> None:
    ids = BYTES.encode(text, add_special_tokens=False)
    pieces, stopped = stream(BYTES, ids, tuple(stop))
    assert ("".join(pieces), stopped) == cut_plainly(text, tuple(stop))


def test_a_stop_string_is_found_across_tokens_and_within_one() -> None:
    ids = BYTES.encode("good film plot", add_special_tokens=False)
    for stop, expected in {"od fi": "go", "oo": "g", "lm plot": "good fi", "x": "good film plot"}.items():
        assert "".join(stream(BYTES, ids, (stop,))[0]) == expected


def test_of_two_stop_strings_in_one_token_the_one_that_is_complete_first_counts() -> None:
    ids = BYTES.encode("good film plot", add_special_tokens=False)
    assert [decode(BYTES, [token]) for token in ids[:2]] == ["g", "ood"]
    assert "".join(stream(BYTES, ids, ("good", "oo"))[0]) == "g"


def test_what_may_become_a_stop_string_is_held_back_no_longer_than_that() -> None:
    ids = BYTES.encode("good film plot", add_special_tokens=False)
    assert [decode(BYTES, [token]) for token in ids] == ["g", "ood", " film", " plot"]
    assert stream(BYTES, ids, ("d fine",))[0] == ["g", "oo", "d film", " plot", ""]


@given(ids=st.lists(st.integers(2, len(PIECES) - 1), max_size=12))
def test_pieces_join_to_what_all_tokens_decode_to(ids: list[int]) -> None:
    whole = decode(PIECES, ids)
    pieces, _ = stream(PIECES, ids)
    if UNFINISHED not in whole:
        assert "".join(pieces) == whole.strip()


def test_blanks_between_words_are_kept_where_decoding_drops_those_before_the_first() -> None:
    ids = PIECES.convert_tokens_to_ids(["▁a", "▁ab", "▁", "▁▁", "b"])
    assert "".join(stream(PIECES, ids)[0]) == "a ab   b"


def test_half_a_character_is_never_given_out() -> None:
    half = BYTES.encode("aä漢", add_special_tokens=False)[:-1]
    assert UNFINISHED in decode(BYTES, half)
    assert "".join(stream(BYTES, half)[0]) == "aä"


def test_special_tokens_add_nothing_and_hide_no_blank() -> None:
    end = PIECES.convert_tokens_to_ids("</s>")
    ids = [*PIECES.convert_tokens_to_ids(["▁a"]), end, *PIECES.convert_tokens_to_ids(["▁ab"])]
    assert "".join(stream(PIECES, ids)[0]) == "a ab"
