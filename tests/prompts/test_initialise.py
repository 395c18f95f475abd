"""First values of prompts come from the base's own embeddings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ptpipeline.errors import BaseModelError, DataError
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, KeyValues
from ptpipeline.models.load import load_base
from ptpipeline.prompts.initialise import (
    compute_activations,
    draw_uniform,
    draw_xavier,
    embed_labels,
    make_initial_prompt,
    read_tensor,
    sample_vocabulary,
    tokenize_text,
)
from ptpipeline.settings import Settings
from ptpipeline.task.recipe import TextInit, Tune
from tests.models.families import family, seq2seq_family
from tests.numbers import number_tokenizer
from tests.tiny import tiny_project


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> FrozenBase:
    folder: Path = tmp_path_factory.mktemp("base")
    return load_base(prepare_base("tiny", Settings(home=folder / "home", tasks=tiny_project(folder))), "float32")


def test_sampled_tokens_are_distinct_and_not_special(base: FrozenBase) -> None:
    ids = sample_vocabulary(base, 50, seed=0).tolist()
    assert len(set(ids)) == 50
    assert not set(ids) & set(base.tokenizer.all_special_ids)


def test_tokens_are_sampled_that_the_tokenizer_has_and_the_base_embeds(base: FrozenBase) -> None:
    """Either may have more: a tokenizer whose last tokens were added, an embedding that was padded."""
    for tokenizer, model in ((base.tokenizer, family("llama")), (number_tokenizer(), base)):
        ids = sample_vocabulary(replace(model, tokenizer=tokenizer), 60, seed=0)
        assert int(ids.max()) < min(len(tokenizer), len(model.model.get_input_embeddings().weight)) == 97


def test_sampled_tokens_follow_the_seed(base: FrozenBase) -> None:
    assert torch.equal(sample_vocabulary(base, 9, 1), sample_vocabulary(base, 9, 1))
    assert not torch.equal(sample_vocabulary(base, 9, 1), sample_vocabulary(base, 9, 2))


def test_more_tokens_than_words_repeat(base: FrozenBase) -> None:
    assert len(sample_vocabulary(base, 900, 0)) == 900


def test_text_is_tiled_and_cut_without_special_tokens(base: FrozenBase) -> None:
    ids = base.encode("good film", False)
    assert tokenize_text(base, "good film", len(ids) + 2).tolist() == [*ids, *ids][: len(ids) + 2]
    assert tokenize_text(base, "good film", 2).tolist() == ids[:2]


def test_prompt_starts_at_the_texts_embeddings(base: FrozenBase) -> None:
    prompt = make_initial_prompt(base, Tune(num_virtual_tokens=2, init=TextInit(text="good film")), {})
    torch.testing.assert_close(prompt, base.embed(torch.tensor(base.encode("good film", False)[:2])).float())


def test_text_without_tokens_is_refused(base: FrozenBase) -> None:
    with pytest.raises(DataError, match=r"tune\.init\.text"):
        tokenize_text(replace(base, tokenizer=number_tokenizer()), "x", 2)


def test_class_labels_are_means_of_their_pieces(base: FrozenBase) -> None:
    labels = {"bad": " negative", "good": " very good film"}
    prompt = embed_labels(base, labels, 5, seed=0)
    for row, words in zip(prompt, labels.values(), strict=False):
        torch.testing.assert_close(row, base.embed(torch.tensor(base.encode(words, False))).float().mean(0))
    table = base.embed(torch.arange(len(base.tokenizer)))
    assert all((table == row).all(1).any() for row in prompt[2:])


def test_more_labels_than_tokens_are_refused(base: FrozenBase) -> None:
    with pytest.raises(DataError, match="a virtual token for each of the 3 labels, num_virtual_tokens is 2"):
        embed_labels(base, {"a": " a", "b": " b", "c": " c"}, 2, seed=0)


def test_uniform_has_the_spread_of_the_embedding_table(base: FrozenBase) -> None:
    drawn, table = draw_uniform(base, 200, seed=0), base.model.get_input_embeddings().weight
    assert float(drawn.std()) == pytest.approx(float(table.std()), rel=0.05)
    assert float(drawn.abs().max()) <= 3**0.5 * float(table.std()) * 1.0001


def test_xavier_is_within_its_bound(base: FrozenBase) -> None:
    drawn = draw_xavier(base, 16, seed=0)
    assert 0.9 * (6 / 80) ** 0.5 < float(drawn.abs().max()) <= (6 / 80) ** 0.5


def test_a_prefix_starts_at_activations_of_its_tokens(base: FrozenBase) -> None:
    """A prefix at its start answers as the embeddings that it stands for."""
    tune = Tune(num_virtual_tokens=2, init=TextInit(text="good film"))
    embeddings, prefix = (
        make_initial_prompt(base, tune.model_copy(update={"method": method}), {}) for method in ("prompt", "prefix")
    )
    assert isinstance(prefix, KeyValues)
    row = [Input([5, 6, 7], [8], 0)]
    torch.testing.assert_close(
        base.compute_states(base.compute_prefix([prefix]), row),
        base.compute_states(base.compute_prefix([embeddings]), row),
    )


@pytest.mark.parametrize("name", ["start.npy", "start.safetensors"])
def test_a_file_gives_its_tensor(tmp_path: Path, name: str) -> None:
    expected = torch.linspace(-1, 1, 12).reshape(3, 4)
    if name.endswith("npy"):
        np.save(tmp_path / name, expected.numpy())
    else:
        save_file({"embeddings": expected.bfloat16()}, tmp_path / name)
    torch.testing.assert_close(read_tensor(tmp_path / name), expected, atol=0.01, rtol=0)


def test_a_file_that_holds_no_prompt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "start.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"start\.npy: no readable prompt"):
        read_tensor(tmp_path / "start.npy")


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "start.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="no readable prompt"):
        read_tensor(tmp_path / "start.npy")


def test_class_labels_may_fill_the_prompt(base: FrozenBase) -> None:
    assert embed_labels(base, {"bad": " negative", "good": " positive"}, 2, seed=0).shape == (2, 64)


def test_the_order_of_labels_changes_no_start(base: FrozenBase) -> None:
    labels = {"bad": " negative", "good": " positive"}
    assert torch.equal(embed_labels(base, labels, 3, 0), embed_labels(base, dict(reversed(labels.items())), 3, 0))


def test_an_encoder_decoder_has_no_keys_and_values_to_start_from() -> None:
    with pytest.raises(BaseModelError, match="set it to `prompt` or `p_tuning`"):
        compute_activations(seq2seq_family("t5 relu tied"), torch.zeros(2, 32, dtype=torch.float64))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(2, 3).to(torch.float8_e4m3fn),
        torch.full((2, 3), torch.inf),
        torch.full((2, 3), torch.nan),
        torch.ones(3),
    ],
)
def test_a_file_has_to_hold_finite_numbers_of_two_bytes_or_more(tensor: torch.Tensor, tmp_path: Path) -> None:
    save_file({"embeddings": tensor}, tmp_path / "start.safetensors")
    with pytest.raises(DataError, match=r"found torch\.\w+ \[.*\]; expected finite floating-point numbers"):
        read_tensor(tmp_path / "start.safetensors")


def test_a_given_prompt_has_to_fit_the_method_and_the_base(base: FrozenBase) -> None:
    tune, width = Tune(num_virtual_tokens=3), base.ref.hidden_size
    prefix = KeyValues(torch.ones(2, 2, 3, 4), torch.ones(2, 2, 3, 4))
    with pytest.raises(DataError, match="keys and values of a prefix cannot start the embeddings of `prompt`"):
        make_initial_prompt(base, tune, {}, prefix)
    with pytest.raises(DataError, match=f"the given prompt is {width + 1} wide, tiny is {width} wide"):
        make_initial_prompt(base, tune, {}, torch.ones(3, width + 1))
    with pytest.raises(DataError, match="starts from a prompt of 2 tokens"):
        make_initial_prompt(base, tune, {}, torch.ones(2, width))


def test_a_given_prompt_of_16_bits_trains_in_32(base: FrozenBase) -> None:
    given = torch.ones(3, base.ref.hidden_size, dtype=torch.float16)
    made = make_initial_prompt(base, Tune(num_virtual_tokens=3), {}, given)
    assert isinstance(made, torch.Tensor)
    assert made.dtype == torch.float32
