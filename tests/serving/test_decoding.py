"""Rows that are generated together, join and leave, have the texts that each has alone."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from ptpipeline.errors import ArtifactError, ContextError
from ptpipeline.models.base import prepare_folder
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, KeyValues, PrefixCache
from ptpipeline.models.load import load_base
from ptpipeline.records.prompts import ChatForm, Generation
from ptpipeline.serving import decoding
from ptpipeline.serving.answerer import Piece, Sampling
from ptpipeline.serving.decoding import READ_TOKENS, Decoder
from ptpipeline.serving.engine import Engine, Question
from tests.evaluation.probed import artifact, embeddings
from tests.models.families import FAMILIES, SEQ2SEQ_FAMILIES, family, seq2seq_family
from tests.tiny import tiny_base
from tests.tuning.jobs import words

GREEDY = Sampling()
ROWS = [(3, 4), (9, 6), (1, 6), (5, 2), (12, 9), (2, 1), (30, 40)]  # tokens of the text, limit


def random_base(name: str, end: int | None = None) -> FrozenBase:
    base = words(family(name) if name in FAMILIES else seq2seq_family(name))
    base.model.generation_config.eos_token_id = end
    return base


def prompts() -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(length, 32, dtype=torch.float64) * 2 for length in (2, 6)]


def text_of(length: int) -> list[int]:
    return list(range(5, 5 + length))


def run(decoder: Decoder, steps: int | None = None) -> dict[int, list[Any]]:
    """What each row was given, by handle, until all ended or for so many steps."""
    given = defaultdict(list)
    while len(decoder) and steps != 0:
        for handle, outcome in decoder.step():
            given[handle].append(outcome)
        steps = None if steps is None else steps - 1
    return given


def join_text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def decode_alone(base: FrozenBase, prompt: Any, row: tuple[int, int]) -> str:
    cache = base.compute_prefix([prompt])
    return base.tokenizer.decode(base.decode(cache, [Input(text_of(row[0]), (), 0)], row[1])[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sorted([*FAMILIES, *SEQ2SEQ_FAMILIES]))
def test_rows_that_join_others_under_way_end_as_alone(name: str) -> None:
    base = random_base(name)
    cache, decoder, given = base.compute_prefix(prompts()), Decoder(base), defaultdict(list)
    for index, (length, limit) in enumerate(ROWS):
        assert decoder.join(cache, text_of(length), GREEDY, limit, index % 2) == index
        for handle, pieces in run(decoder, steps=2).items():
            given[handle] += pieces
    for handle, pieces in run(decoder).items():
        given[handle] += pieces
    for index, (length, limit) in enumerate(ROWS):
        text, (_, tokens, read, finish) = decode_alone(base, prompts()[index % 2], (length, limit)), given[index][-1]
        assert join_text(given[index]) == text
        assert (tokens, read) == (len(text.split()), length + (2, 6)[index % 2])
        assert finish == ("length" if tokens == limit else "stop")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> FrozenBase:
    """A base with a real tokenizer; of long texts, whose end it never says."""
    folder = tmp_path_factory.mktemp("tiny")
    base = load_base(prepare_folder("tiny", tiny_base(folder / "base"), folder), "float32")
    base.model.generation_config.eos_token_id = None
    return base


def ask(base: FrozenBase, text: str, sampling: Sampling = GREEDY, beside: int = 0, limit: int = 24) -> list[Any]:
    """What a row is given, which joins between others that draw and end at their own time."""
    decoder = Decoder(base)
    for number in range(beside):
        decoder.join(None, base.encode("the film" + " was" * number, True), Sampling(temperature=1.0), 5 * number + 1)
    run(decoder, steps=2)
    handle = decoder.join(None, base.encode(text, True), sampling, limit)
    given = run(decoder, steps=3)[handle]
    for number in range(beside):
        decoder.join(None, base.encode("a very great" + " plot" * number, True), Sampling(temperature=2.0), 9)
    return given + run(decoder)[handle]


def test_a_text_is_the_one_that_transformers_generates(tiny: FrozenBase) -> None:
    ids = tiny.encode("the film was very", True)
    generated = tiny.model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=None)[0]
    expected = tiny.tokenizer.decode(generated[len(ids) :], skip_special_tokens=True).strip()
    assert join_text(ask(tiny, "the film was very", beside=3)) == expected != ""


def test_a_text_behind_a_prompt_is_the_one_that_transformers_generates(tiny: FrozenBase) -> None:
    torch.manual_seed(2)
    prompt, ids = torch.randn(5, tiny.model.config.hidden_size) * 0.3, tiny.encode("the film was", True)
    embedded = torch.cat([prompt, tiny.embed(torch.tensor(ids))])[None]
    generated = tiny.model.generate(inputs_embeds=embedded, max_new_tokens=20, do_sample=False, eos_token_id=None)[0]
    decoder = Decoder(tiny)
    decoder.join(None, tiny.encode("a story", True), GREEDY, 30)
    handle = decoder.join(tiny.compute_prefix([prompt]), ids, GREEDY, 20)
    assert join_text(run(decoder)[handle]) == tiny.tokenizer.decode(generated, skip_special_tokens=True).strip()


def test_a_prefix_of_keys_and_values_stands_beside_a_prompt() -> None:
    base = random_base("llama")
    torch.manual_seed(5)
    prefix = KeyValues(*(torch.randn(3, 2, 4, 8, dtype=torch.float64) for _ in range(2)))
    decoder = Decoder(base)
    for prompt in (prefix, prompts()[1]):
        decoder.join(base.compute_prefix([prompt]), text_of(4), GREEDY, 8)
    given = run(decoder)
    assert join_text(given[0]) == decode_alone(base, prefix, (4, 8))
    assert join_text(given[1]) == decode_alone(base, prompts()[1], (4, 8))


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_seeded_text_does_not_depend_on_the_rows_beside_it(tiny: FrozenBase, top_p: float) -> None:
    drawn = Sampling(temperature=3.0, top_p=top_p, seed=11)
    alone = join_text(ask(tiny, "the plot", drawn))
    assert [join_text(ask(tiny, "the plot", drawn, beside)) for beside in (1, 4)] == [alone, alone]
    assert alone != join_text(ask(tiny, "the plot"))


def test_another_seed_and_none_give_other_texts(tiny: FrozenBase) -> None:
    seeded = [join_text(ask(tiny, "the plot", Sampling(temperature=1.5, seed=seed))) for seed in (1, 2)]
    unseeded = [join_text(ask(tiny, "the plot", Sampling(temperature=1.5))) for _ in range(2)]
    assert len({*seeded, *unseeded}) == 4


def test_a_text_ends_before_a_stop_string_that_several_tokens_say(tiny: FrozenBase) -> None:
    whole = join_text(ask(tiny, "the film was very"))
    stop = whole[len(whole) // 2 - 3 : len(whole) // 2 + 3]
    given = ask(tiny, "the film was very", Sampling(stop=(stop,)), beside=2)
    assert join_text(given) == whole[: whole.index(stop)].strip()
    assert given[-1].finish == "stop"
    assert given[-1].tokens < 24


def test_a_text_ends_at_the_bases_own_end_and_does_not_say_it() -> None:
    base = random_base("llama")
    whole = decode_alone(base, prompts()[0], (4, 8)).split()
    end = next(token for token in whole if token != whole[0])
    stopping = random_base("llama", int(end))
    decoder = Decoder(stopping)
    decoder.join(stopping.compute_prefix(prompts()[:1]), text_of(4), GREEDY, 8)
    given = run(decoder)[0]
    before = whole.index(end)
    assert (join_text(given), given[-1].tokens, given[-1].finish) == (" ".join(whole[:before]), before, "stop")


def test_max_tokens_stands_before_the_prompts_own_limit(tiny: FrozenBase) -> None:
    for most in (0, 1, 7, 40):
        given = ask(tiny, "the film", Sampling(max_tokens=most), beside=1, limit=9)
        assert (given[-1].tokens, given[-1].finish) == (most, "length")


def test_a_row_that_leaves_gives_its_place_and_changes_no_other() -> None:
    base = random_base("llama")
    cache, decoder = base.compute_prefix(prompts()), Decoder(base)
    for index, (length, limit) in enumerate(ROWS):
        decoder.join(cache, text_of(length), GREEDY, limit, index % 2)
    given = run(decoder, steps=1)
    for handle in (1, 4, 99, 1):
        decoder.leave(handle)
    late = decoder.join(cache, text_of(7), GREEDY, 5)
    decoder.leave(decoder.join(cache, text_of(7), GREEDY, 5))  # one that waits
    for handle, pieces in run(decoder).items():
        given[handle] += pieces
    assert join_text(given[late]) == decode_alone(base, prompts()[0], (7, 5))
    for index in {*range(len(ROWS))} - {1, 4}:
        assert join_text(given[index]) == decode_alone(base, prompts()[index % 2], ROWS[index])
    assert [given[gone][-1].finish for gone in (1, 4)] == [None, None]


def test_a_row_of_broken_numbers_ends_alone() -> None:
    base = random_base("llama")
    decoder, sound = Decoder(base), base.compute_prefix(prompts()[:1])
    broken = PrefixCache(
        tuple(tensor * torch.nan for tensor in base.compute_prefix(prompts()[1:]).tensors), torch.tensor([6])
    )
    for cache, length in ((sound, 3), (broken, 30), (sound, 5)):
        decoder.join(cache, text_of(length), GREEDY, 6)
    given = run(decoder)
    assert [type(outcome) for outcome in given[1]] == [ArtifactError]
    for handle, length in ((0, 3), (2, 5)):
        assert join_text(given[handle]) == decode_alone(base, prompts()[0], (length, 6))


def test_more_than_the_context_or_the_bound_is_refused_in_words(tiny: FrozenBase) -> None:
    ids = tiny.encode("the film", True)
    with pytest.raises(ContextError, match=f"{len(ids)} tokens and 100000 more .* at most"):
        Decoder(tiny).join(None, ids, Sampling(max_tokens=100_000), 4)
    with pytest.raises(ContextError, match="room for 9"):
        Decoder(tiny, slots=9).join(None, ids, GREEDY, 8)


def test_rows_wait_for_room_and_begin_in_the_order_in_which_they_joined() -> None:
    base = random_base("llama")
    cache, decoder = base.compute_prefix(prompts()), Decoder(base, slots=80)
    held, begun, given = [], list[int](), defaultdict(list)
    for index, (length, limit) in enumerate(ROWS * 3):
        decoder.join(cache, text_of(length), GREEDY, limit, index % 2)
    while len(decoder):
        for handle, piece in decoder.step():
            given[handle].append(piece)
            begun += [handle] if handle not in begun else []
        held.append(sum(len(group.rows) * max(row.longest for row in group.rows) for group in decoder._groups))
    assert max(held) <= 80
    assert begun == sorted(begun) == list(range(3 * len(ROWS)))
    for index, row in enumerate(ROWS * 3):
        assert join_text(given[index]) == decode_alone(base, prompts()[index % 2], row)


def test_a_step_reads_no_more_of_new_texts_than_its_share(tiny: FrozenBase) -> None:
    decoder, ids = Decoder(tiny), tiny.encode("the film", True) * 40
    for _ in range(30):
        decoder.join(None, ids, GREEDY, 4)
    decoder.step()
    assert 30 - decoder.waiting == READ_TOKENS // len(ids)


def test_texts_with_one_head_are_read_behind_it_and_end_as_alone() -> None:
    base = random_base("llama")
    cache, decoder, head = base.compute_prefix(prompts()), Decoder(base), text_of(70)
    rows = [([*head, 7 + index], index % 2) for index in range(4)]
    for ids, prompt in rows:
        decoder.join(cache, ids, GREEDY, 8, prompt)
    given = run(decoder)
    for index, (ids, prompt) in enumerate(rows):
        (alone,) = base.decode(cache, [Input(ids, (), prompt)], 8)
        assert join_text(given[index]) == base.tokenizer.decode(alone)
        assert given[index][-1].read == 71 + (2, 6)[prompt]


def test_rows_without_a_prompt_stand_beside_rows_behind_one() -> None:
    base = random_base("llama")
    decoder, caches = Decoder(base), [None, base.compute_prefix(prompts()), None]
    for index, cache in enumerate(caches):
        decoder.join(cache, text_of(3 + index), GREEDY, 6, 1 if cache else 0)
    given = run(decoder)
    for index, cache in enumerate(caches):
        (alone,) = base.decode(cache, [Input(text_of(3 + index), (), 1 if cache else 0)], 6)
        assert join_text(given[index]) == base.tokenizer.decode(alone)


def test_chats_and_texts_of_several_fields_are_those_that_transformers_generates(tiny: FrozenBase) -> None:
    """Three tasks in one batch; what a message says of control tokens is text, what the chat's form says is none."""
    forms: list[dict[str, Any]] = [
        {"template": "{claim}, the {text}:"},
        {"chat": ChatForm(template="0" * 64, parts=["</s>the film ", "{text}", "</s>was very ", "{claim}", "</s>"])},
        {"template": "{text} and {claim}"},
    ]
    asked = {"text": "</s> good story", "claim": "a {text}"}
    engine, decoder, expected = Engine(tiny), Decoder(tiny), []
    for index, form in enumerate(forms):
        prompt = embeddings(tiny, " lovely plot"[: 7 + 5 * (index % 2)]) * (1 + index)
        made = artifact(tiny, prompt, labels={}, generate=Generation(max_new_tokens=9), **form)
        engine.load(made)
        ids = engine.render(Question(made.digest, asked)).ids
        assert ids.count(tiny.tokenizer.eos_token_id) == (3 if "chat" in form else 0)
        decoder.join(engine.find_cache(made.digest), ids, GREEDY, 9)
        embedded = torch.cat([prompt, tiny.embed(torch.tensor(ids))])[None]
        generated = tiny.model.generate(inputs_embeds=embedded, max_new_tokens=9, do_sample=False, eos_token_id=None)
        expected.append(tiny.tokenizer.decode(generated[0], skip_special_tokens=True).strip())
    given = run(decoder)
    assert [join_text(given[handle]) for handle in range(3)] == expected


def test_a_row_beyond_the_scale_of_rotations_changes_no_row_beside_it() -> None:
    base = random_base("phi3 longrope")
    base.tokenizer.eos_token_id = None
    rows, decoder, cache = [(50, 30), (3, 40), (45, 25)], Decoder(base), base.compute_prefix(prompts())
    for row in rows:
        decoder.join(cache, text_of(row[0]), GREEDY, row[1])
    given = run(decoder)
    assert [join_text(given[index]) for index in range(3)] == [decode_alone(base, prompts()[0], row) for row in rows]


def test_long_and_short_texts_that_begin_together_are_read_apart() -> None:
    base, read = random_base("llama"), list[tuple[int, ...]]()
    decoder, cache, lengths = Decoder(base), base.compute_prefix(prompts()), [60, 3, 58, 4, 61, 5, 2]
    texts = [[10 + index, *text_of(length - 1)] for index, length in enumerate(lengths)]
    for text in texts:
        decoder.join(cache, text, GREEDY, 5)
    embedding = base.model.get_input_embeddings()
    with embedding.register_forward_pre_hook(lambda module, given: read.append(tuple(given[0].shape))):
        given = run(decoder)
    assert [shape for shape in read if len(shape) == 2] == [(3, 61), (4, 5)]  # rows, and tokens of the longest
    for index, text in enumerate(texts):
        assert join_text(given[index]) == base.tokenizer.decode(base.decode(cache, [Input(text, (), 0)], 5)[0])


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_text_that_is_read_in_parts_ends_as_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "READ_TOKENS", 16)
    base = random_base(name)
    cache, decoder, given = base.compute_prefix(prompts()), Decoder(base), defaultdict(list)
    rows = [(4, 20), (45, 5), (17, 7), (40, 6), (3, 8)]
    for index, (length, limit) in enumerate(rows):
        decoder.join(cache, text_of(length), GREEDY, limit, index % 2)
        for handle, pieces in run(decoder, steps=1).items():
            given[handle] += pieces
    for handle, pieces in run(decoder).items():
        given[handle] += pieces
    for index, (length, limit) in enumerate(rows):
        assert join_text(given[index]) == decode_alone(base, prompts()[index % 2], (length, limit))
        assert given[index][-1].read == length + (2, 6)[index % 2]


def test_a_long_text_lets_the_others_go_on_and_takes_no_room_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "READ_TOKENS", 16)
    base, read = random_base("llama"), list[int]()
    decoder, cache = Decoder(base, slots=200), base.compute_prefix(prompts()[:1])
    short = [decoder.join(cache, text_of(4), GREEDY, 14) for _ in range(4)]
    run(decoder, steps=1)
    long = decoder.join(cache, text_of(90), GREEDY, 5)
    late = decoder.join(cache, text_of(5), GREEDY, 4)  # behind it, and does not wait for it
    embedding = base.model.get_input_embeddings()
    with embedding.register_forward_pre_hook(lambda module, given: read.append(given[0].numel())):
        steps = [dict(decoder.step()) for _ in range(13)]
    assert all(set(short) <= set(step) for step in steps)
    assert set(steps[1]) >= {late}
    assert [long in step for step in steps[11:]] == [False, True]  # eleven parts of eight tokens, and the rest
    assert max(read) == 8
    assert join_text(run(decoder)[long]) != ""


def test_a_long_row_that_leaves_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "READ_TOKENS", 16)
    base = random_base("llama")
    decoder, cache = Decoder(base), base.compute_prefix(prompts()[:1])
    long = decoder.join(cache, text_of(90), GREEDY, 5)
    run(decoder, steps=3)
    decoder.leave(long)
    assert (len(decoder), decoder._groups) == (0, [])
