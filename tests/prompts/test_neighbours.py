"""Nearest vocabulary tokens against brute force in numpy, and how tokens are shown."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ptpipeline.errors import DataError
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import KeyValues
from ptpipeline.models.load import load_base
from ptpipeline.prompts.interpretation import MEASURES, WARNING, Neighbours
from ptpipeline.prompts.neighbours import (
    BLOCK,
    compare_with_vocabulary,
    embed_vocabulary,
    find_nearest,
    find_neighbours,
    make_readable,
    make_token_printer,
)
from ptpipeline.settings import Settings
from tests.models.families import family
from tests.tiny import tiny_project


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> FrozenBase:
    folder: Path = tmp_path_factory.mktemp("base")
    return load_base(prepare_base("tiny", Settings(home=folder / "home", tasks=tiny_project(folder))), "float32")


def brute_force(
    prompt: torch.Tensor, vocabulary: torch.Tensor, k: int
) -> dict[str, tuple[list[list[int]], np.ndarray]]:
    """Ids by a full sort over (worse, id), and their values, by loops in numpy."""
    found: dict[str, tuple[list[list[int]], list[list[float]]]] = {measure: ([], []) for measure in MEASURES}
    rows = vocabulary.numpy().astype(np.float64)
    for x in prompt.numpy().astype(np.float64):
        dot = np.array([(x * v).sum() for v in rows])
        scale = np.sqrt((x**2).sum()) * np.sqrt((rows**2).sum(1))
        worse = {
            "dot": -dot,
            "cosine": -dot / np.where(scale > 0, scale, 1),
            "euclidean": np.sqrt(((rows - x) ** 2).sum(1)),
        }
        for measure, values in worse.items():
            values = values.astype(np.float32)
            order = np.lexsort((np.arange(len(values)), values))[:k]
            found[measure][0].append(order.tolist())
            found[measure][1].append((values if measure == "euclidean" else -values)[order].tolist())
    return {measure: (ids, np.array(values)) for measure, (ids, values) in found.items()}


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(4, 60), st.integers(1, 4), st.integers(0, 99))
def test_neighbours_are_those_of_brute_force(tokens: int, width: int, size: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prompt, vocabulary = torch.randn(tokens, width, generator=generator), torch.randn(size, width, generator=generator)
    expected = brute_force(prompt, vocabulary, k)
    for measure, found in find_nearest(prompt, vocabulary, k).items():
        assert found.ids.tolist() == expected[measure][0]
        np.testing.assert_allclose(found.values.numpy(), expected[measure][1], rtol=1e-5, atol=1e-6)


def test_blocks_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    vocabulary = torch.randn(2 * BLOCK // 1024 + 700, 1024, generator=generator)  # two blocks and a part
    prompt = vocabulary[[5, 3000, len(vocabulary) - 1]] + 0.1
    expected = brute_force(prompt, vocabulary, 3)
    for measure, found in find_nearest(prompt, vocabulary, 3).items():
        assert found.ids.tolist() == expected[measure][0]


def test_lowest_ids_come_first_among_equal_rows() -> None:
    row = torch.randn(256, generator=torch.Generator().manual_seed(3))
    vocabulary = torch.randn(BLOCK // 256 + 40, 256, generator=torch.Generator().manual_seed(2))
    twins = [7, 8, 4000, BLOCK // 256 - 1, BLOCK // 256, len(vocabulary) - 1]  # in both blocks, at their edges
    vocabulary[twins] = row
    for found in find_nearest(row[None], vocabulary, 4).values():
        assert found.ids.tolist() == [twins[:4]]


def test_rows_of_the_vocabulary_find_themselves(base: FrozenBase) -> None:
    ids = [40, 200, 301]
    found = find_nearest(embed_vocabulary(base)[ids], embed_vocabulary(base), 1)
    assert found["euclidean"].ids[:, 0].tolist() == found["cosine"].ids[:, 0].tolist() == ids
    assert found["euclidean"].values.tolist() == [[0.0]] * 3
    assert found["cosine"].values[:, 0].tolist() == pytest.approx([1.0] * 3)


def test_overlap_is_the_jaccard_index_of_the_lists(base: FrozenBase) -> None:
    found = find_neighbours(base, embed_vocabulary(base)[[40, 200]] * 7 + 0.3, 4)
    for near in found.tokens:
        for pair, overlap in near.overlap.items():
            one, other = ({neighbour.id for neighbour in near.nearest[measure]} for measure in pair.split("/"))  # type: ignore[index]
            assert overlap == len(one & other) / len(one | other)
    assert found.overlap == {pair: np.mean([near.overlap[pair] for near in found.tokens]) for pair in found.overlap}
    assert len(found.overlap) == 3


def test_measures_that_disagree_share_nothing() -> None:
    vocabulary = torch.tensor(
        [[100.0, 0.0], [0.1, 0.1], [1.4, 0.6]]
    )  # nearest of (1, 1) by dot product, cosine and distance
    found = compare_with_vocabulary(torch.tensor([[1.0, 1.0]]), vocabulary, str, 1)
    assert [found.tokens[0].nearest[measure][0].id for measure in ("dot", "cosine", "euclidean")] == [0, 1, 2]
    assert set(found.overlap.values()) == {0.0}


def test_neighbours_read_back_from_json_with_their_warning(base: FrozenBase) -> None:
    found = find_neighbours(base, embed_vocabulary(base)[:2].to(torch.float16))
    assert Neighbours.model_validate(found.to_json()) == found
    assert found.warning == WARNING
    assert all(name in WARNING for name in ("Khashabi et al. 2022", "Bailey et al. 2023", "never proof"))


def test_a_prefix_states_that_it_has_none() -> None:
    found = find_neighbours(family("llama"), KeyValues(torch.zeros(3, 2, 4, 8), torch.zeros(3, 2, 4, 8)))
    assert not found.tokens
    assert "no embeddings" in str(found.absent)


def test_a_row_of_zeros_is_near_to_nothing_by_cosine() -> None:
    found = find_nearest(torch.ones(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]), 2)["cosine"]
    assert found.ids.tolist() == [[1, 0]]
    assert found.values[0].tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(
    ("prompt", "vocabulary", "k", "named"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), 1, "one width"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 5, "choose 1 to 4"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 0, "choose 1 to 4"),
        (torch.full((2, 3), torch.nan), torch.zeros(4, 3), 1, "not finite"),
    ],
)
def test_unfit_numbers_are_refused(prompt: torch.Tensor, vocabulary: torch.Tensor, k: int, named: str) -> None:
    with pytest.raises(DataError, match=named):
        find_nearest(prompt, vocabulary, k)


def test_tokens_of_bytes_are_shown_as_text(base: FrozenBase) -> None:
    show = make_token_printer(base)
    assert [show(token) for token in base.encode(" good", False)] == ["▁good"]
    assert show(base.tokenizer.bos_token_id) == "<s>"
    assert show(base.encode("\n", False)[0]) == "\\n"


def test_tokens_that_were_added_are_no_bytes(base: FrozenBase) -> None:
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.add_tokens(["<말 1>"])
    show = make_token_printer(replace(base, tokenizer=tokenizer))
    assert show(tokenizer.convert_tokens_to_ids("<말 1>")) == "<말▁1>"


def test_bytes_that_are_no_text_are_escaped() -> None:
    assert make_readable("Ġâľ", True) == "▁\\xe2\\x9c"
    assert make_readable("é", True) == "\\xe9", "a byte of byte-level BPE"
    assert make_readable("é", False) == "é"
    assert make_readable("\u200b", False) == "\\u200b"


def test_tokens_of_sentencepiece_are_shown_as_they_are(base: FrozenBase) -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁né", -1.0)], unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    other = type(base)(
        base.model, PreTrainedTokenizerFast(tokenizer_object=tokenizer), base.ref, base.dtype, base.context
    )
    assert make_token_printer(other)(1) == "▁né"
