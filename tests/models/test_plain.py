"""Text is text: no words of a person or a file become tokens that steer the model."""

import copy
import re
import sys
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ptpipeline.data.rows import Row
from ptpipeline.data.tokens import FreeText, LabelTokens, TaskText
from ptpipeline.errors import BaseModelError
from ptpipeline.models import plain
from ptpipeline.models.plain import PlainEncoder, find_controls
from ptpipeline.task.template import parse_chat, parse_template
from tests.evaluation.probed import tiny

ROOT = Path(__file__).parents[2]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@cache
def byte_level() -> Any:
    """As Qwen's: control tokens beside the vocabulary, of which some are not marked special; a word that somebody
    added; and a run of blanks, as in GPT-NeoX.
    """
    tokenizer = Tokenizer(models.BPE({byte: index for index, byte in enumerate(BYTES)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in ("<tool_call>", "[|user|]", "covid", "    ")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


@cache
def unigram() -> Any:
    """As T5's: the control tokens stand in the model's own vocabulary, with the best of all scores."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -3.0) for letter in "</>|abdknpsu")], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


@cache
def words() -> Any:
    """As a tokenizer of whole words: a control token is a word like another."""
    vocabulary = {"[UNK]": 0, "[SEP]": 1, "good": 2, "[": 3, "S": 4, "E": 5, "P": 6, "]": 7}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", sep_token="[SEP]")


@cache
def byte_fallback() -> Any:
    """As Llama 2's: the control tokens and bytes stand in the vocabulary, and merges make a control token's name."""
    letters = ["▁", "a", " ", "<", "/", "s", ">", "|", "</", "s>", "</s>"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters[:-1]]
    model = models.BPE(
        {piece: place for place, piece in enumerate(pieces)},
        [("<", "/"), ("s", ">"), ("</", "s>")],
        unk_token="<unk>", byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


@cache
def stripping() -> Any:
    """Control tokens that take the white space beside them, and some that are not marked special."""
    tokenizer = Tokenizer(models.BPE({byte: index for index, byte in enumerate(BYTES)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    wide = AddedToken("<mask>", lstrip=True, rstrip=True)
    tokenizer.add_special_tokens([wide, AddedToken("<|im_end|>", normalized=True), AddedToken("<\uff5cUser\uff5c>")])
    tokenizer.add_tokens([AddedToken(name) for name in ("<think>", "<|python_tag|>", "[INST]", "<<SYS>>", "<0x0A>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>")


@pytest.mark.parametrize("tokenizer", [byte_level, unigram, byte_fallback, stripping])
@given(st.data())
def test_no_text_becomes_a_control_token(tokenizer: Any, data: st.DataObject) -> None:
    made = tokenizer()
    controls = find_controls(made)
    text = "".join(data.draw(st.lists(st.sampled_from([*controls.values(), "a", " ", "<", "</", "s>", "|>"]))))
    assert controls.keys().isdisjoint(PlainEncoder(made).encode(text, False))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_of_bytes_comes_back_whole(text: str) -> None:
    ids = PlainEncoder(byte_level()).encode(f"<|im_end|>{text}<tool_call>", False)
    assert byte_level().decode(ids, skip_special_tokens=True) == f"<|im_end|>{text}<tool_call>"


def test_a_control_token_written_in_wide_letters_is_text() -> None:
    spelled = PlainEncoder(unigram()).encode("a\uff1c/s\uff1eb", False)
    assert unigram().decode(spelled) == "a</s>b"


def test_a_word_that_is_a_control_token_is_spelled() -> None:
    assert PlainEncoder(words()).encode("good [SEP] good", False) == [2, 3, 4, 5, 6, 7, 2]


def test_what_is_unknown_stays_unknown() -> None:
    assert PlainEncoder(words()).encode("good grief", False) == [2, 0]


@pytest.mark.parametrize("length", [40, plain.LONG + 1])
def test_a_text_on_which_the_tokenizer_panics_is_one_sentence_without_it(length: int) -> None:
    made = copy.deepcopy(words())
    made.backend_tokenizer.normalizer = normalizers.Replace(Regex("(x+x+)+y"), "b")
    with pytest.raises(BaseModelError, match=f"tokenizer panics on a text of {length} characters;") as refused:
        PlainEncoder(made).encode("x" * length, False)
    assert "xx" not in str(refused.value)


def test_the_tokenizer_still_adds_its_own() -> None:
    assert PlainEncoder(unigram()).encode("a</s>", True)[-1] == 1
    assert 1 not in PlainEncoder(unigram()).encode("a</s>", True)[:-1]


def test_words_and_blanks_of_the_vocabulary_stay_whole() -> None:
    made = byte_level()
    assert len(PlainEncoder(made).encode("covid    covid", False)) == 3


def test_other_texts_have_the_tokens_of_the_tokenizer() -> None:
    base = tiny()
    text = "The film was great;  it's\n\ta 'lovely' plot: 영화 🎬 </ s> <S>"
    assert base.encode(text, True) == base.tokenizer(text)["input_ids"]


def test_the_tokenizer_that_decodes_is_left_as_it_was() -> None:
    made, told = byte_level(), byte_level()("<tool_call>")["input_ids"]
    PlainEncoder(made).encode("<tool_call>", False)
    assert made("<tool_call>")["input_ids"] == told
    assert made.decode(told, skip_special_tokens=True) == "<tool_call>"


def test_a_bound_and_pads_that_a_tokenizer_was_saved_with_change_no_text() -> None:
    made = copy.deepcopy(byte_level())
    made.backend_tokenizer.enable_truncation(3)
    made.backend_tokenizer.enable_padding(length=40)
    assert PlainEncoder(made).encode("a good film", False) == PlainEncoder(byte_level()).encode("a good film", False)


def test_markup_beside_the_words_steers_and_what_only_looks_like_it_does_not() -> None:
    tokenizer = Tokenizer(models.BPE({"<b>": 0, "a": 1}, []))
    tokenizer.add_special_tokens(["<end>", "  "])
    tokenizer.add_tokens([AddedToken(name) for name in ("<b>", "{tool}", "[x]", "|y|", "<>", "(z)", "<half")])
    found = find_controls(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert sorted(found.values()) == ["<end>", "[x]", "{tool}", "|y|"]


def test_of_control_tokens_that_begin_alike_a_chat_has_the_longest() -> None:
    made = copy.deepcopy(byte_level())
    made.add_special_tokens({"extra_special_tokens": ["<turn>", "<turn>>"]})
    ids = PlainEncoder(made).encode(parse_chat(["<turn>>", "{text}", ""]).render({"text": ""}, "row"), True)
    assert ids == [made.convert_tokens_to_ids("<turn>>")]


def test_a_text_behind_a_control_token_is_whole_though_it_begins_with_a_line_end() -> None:
    """Behind others a text is encoded with a line end before it, with which it may merge."""
    pieces = ["<s>", "</s>", "▁", "\n", "\n\n", "a"]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, [("\n", "\n")]))
    tokenizer.normalizer = normalizers.Prepend("▁")
    tokenizer.add_special_tokens(["<s>", "</s>"])
    made = PlainEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"))
    for text, expected in (("a", [0, 5]), ("\na", [0, 2, 3, 5])):
        assert made.encode(parse_chat(["<s>", "{text}", ""]).render({"text": text}, "row"), True) == expected


def test_a_text_behind_a_control_token_has_its_own_tokens_if_no_blank_is_put_before_it() -> None:
    """A line end before it, which others need, would divide this one."""
    pieces = ["<s>", "</s>", "\n", "a", "b", "ab"]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?<=\n)a"), "isolated")
    tokenizer.add_special_tokens(["<s>", "</s>"])
    made = PlainEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"))
    assert made.encode(parse_chat(["<s>", "{text}", ""]).render({"text": "ab"}, "row"), True) == [0, 5]


def test_rows_and_targets_hold_one_end_alone() -> None:
    base = tiny()
    end = base.tokenizer.eos_token_id
    text = TaskText("t", parse_template("</s>{text}</s>"), LabelTokens((), ()), 99, base.encode, FreeText(99, end))
    row = text.rows([Row("1", {"text": "a </s> film"}, "the </s> end")])[0]
    assert end not in row.ids
    assert row.target.count(end) == 1
    assert row.target[-1] == end


@pytest.mark.parametrize("kind", [byte_level, unigram])
def test_a_long_text_lets_other_threads_run(kind: Any) -> None:
    """Of a server, for one: nobody else is answered while a thread keeps the interpreter to itself."""
    encoder, before = PlainEncoder(kind()), sys.getswitchinterval()
    encoded: list[bool] = []

    def encode() -> None:
        encoder.encode("a b " * 5000, False)
        encoded.append(True)

    def runs_meanwhile() -> bool:
        encoded.clear()
        thread = Thread(target=encode)
        thread.start()
        meanwhile = not encoded
        thread.join()
        return meanwhile

    sys.setswitchinterval(1000)  # seconds: this thread runs again when the other one lets it
    try:
        assert any(runs_meanwhile() for _ in range(20))  # one that was let may still come too late
    finally:
        sys.setswitchinterval(before)


def test_nothing_but_this_module_encodes_text() -> None:
    calls = re.compile(r"(?<!\w)tokenizer(\(|\.encode\b|\.__call__|\.batch_encode|\.tokenize\b)")
    found = {
        str(path.relative_to(ROOT))
        for folder in ("ptpipeline", "registry", "flows")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if calls.search(line)
    }
    assert found == {
        "flows/on_demand/inspection.py",  # by the file alone, with `encode_special_tokens`
        "flows/on_demand/vllm_client.py",  # leaves with a prompt, so it imports nothing of ours; `split_special_tokens`
    }
