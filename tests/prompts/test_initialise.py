"""First values of prompts come from the base's own embeddings."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ptpipeline.errors import DataError
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.load import load_base
from ptpipeline.prompts.initialise import initial_prompt, sampled_vocab, text_tokens
from ptpipeline.settings import Settings
from ptpipeline.task import TextInit, Tune
from tests.tiny import tiny_project


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> FrozenBase:
    folder: Path = tmp_path_factory.mktemp("base")
    return load_base(prepare_base("tiny", Settings(home=folder / "home", tasks=tiny_project(folder))), "float32")


def test_sampled_tokens_are_distinct_and_not_special(base: FrozenBase) -> None:
    ids = sampled_vocab(base, 50, seed=0).tolist()
    assert len(set(ids)) == 50
    assert not set(ids) & set(base.tokenizer.all_special_ids)


def test_sampled_tokens_follow_the_seed(base: FrozenBase) -> None:
    assert torch.equal(sampled_vocab(base, 9, 1), sampled_vocab(base, 9, 1))
    assert not torch.equal(sampled_vocab(base, 9, 1), sampled_vocab(base, 9, 2))


def test_more_tokens_than_words_repeat(base: FrozenBase) -> None:
    assert len(sampled_vocab(base, 900, 0)) == 900


def test_text_is_tiled_and_cut_without_special_tokens(base: FrozenBase) -> None:
    ids = base.encode("good film", False)
    assert text_tokens(base, "good film", len(ids) + 2).tolist() == [*ids, *ids][: len(ids) + 2]
    assert text_tokens(base, "good film", 2).tolist() == ids[:2]


def test_prompt_starts_at_the_texts_embeddings(base: FrozenBase) -> None:
    prompt = initial_prompt(base, Tune(num_virtual_tokens=2, init=TextInit(text="good film")), {})
    torch.testing.assert_close(prompt, base.embed(torch.tensor(base.encode("good film", False)[:2])).float())


def test_text_without_tokens_is_refused(base: FrozenBase) -> None:
    class Mute:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(DataError, match=r"tune\.init\.text"):
        text_tokens(replace(base, tokenizer=Mute()), "x", 2)
