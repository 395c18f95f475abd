"""Which training rows a hard prompt writes out, and what is left of it in a small room."""

from dataclasses import replace

import pytest
import torch

from ptpipeline.data.rows import Row
from ptpipeline.evaluation.examples import Writer, _select_fitting, choose_examples
from ptpipeline.task.task import HardPrompt
from tests.evaluation.probed import NUMBERS, artifact
from tests.models.families import family
from tests.numbers import number_tokenizer

BOS = 3


@pytest.mark.parametrize(("rows", "chosen"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_examples_are_from_the_shorter_half_of_the_rows_rounded_up(rows: int, chosen: int) -> None:
    train = [Row(f"{index}", {"text": "word " * (index + 1)}, "a") for index in range(rows)]
    assert {row.id for row in choose_examples(train, 9, True)} == {f"{index}" for index in range(chosen)}


def test_an_example_that_does_not_fit_is_followed_by_none() -> None:
    assert _select_fitting([0], [[1], [2, 2, 2], [3]], 3) == [[1]]
    assert _select_fitting([0], [[1], [2, 2, 2], [3]], 5) == [[1], [2, 2, 2]]
    assert _select_fitting([0], [[1]], 1) == []


def test_bos_alone_is_no_hard_prompt() -> None:
    base = replace(family("llama"), tokenizer=number_tokenizer(begin=BOS))
    manifest = artifact(base, torch.zeros(2, 32), template="{text}", labels=NUMBERS).manifest
    train = [Row("1", {"text": "5 6"}, "negative")]
    whole = Writer(base, manifest).write(HardPrompt(examples=1), train, 9).ids
    assert whole == [BOS, 5, 6, int(NUMBERS["negative"])]
    assert Writer(base, manifest).write(HardPrompt(examples=1), train, len(whole) - 1).ids == []
