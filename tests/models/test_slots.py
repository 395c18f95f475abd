"""Slots hold each row's keys and values whatever rows come, go and grow, and copy all of them only once a chunk."""

import random

import pytest
import torch
from torch import Tensor

from ptpipeline.models.inputs import PrefixCache
from ptpipeline.models.slots import CHUNK, Slots

LAYERS, HEADS, WIDTH = 2, 3, 4


def numbers(rows: int, tokens: int) -> Tensor:
    return torch.randn(rows, HEADS, tokens, WIDTH)


def own(*lengths: int) -> PrefixCache:
    """A cache whose pads, at the left, hold other rows' numbers."""
    return PrefixCache(tuple(numbers(len(lengths), max(lengths) + 1) for _ in range(2 * LAYERS)), torch.tensor(lengths))


class Plain:
    """The same by lists of rows, each of which is copied for every token."""

    def __init__(self) -> None:
        self.rows: list[list[Tensor]] = []

    def add(self, cache: PrefixCache) -> None:
        for row, length in enumerate(cache.lengths.tolist()):
            self.rows.append([tensor[row, :, cache.width - length :] for tensor in cache.tensors])

    def remove(self, row: int) -> None:
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last

    def grow(self, more: list[Tensor]) -> None:
        for number, tensors in enumerate(self.rows):
            self.rows[number] = [torch.cat([t, new[number, :, None]], 1) for t, new in zip(tensors, more, strict=True)]


def grow(slots: Slots) -> list[Tensor]:
    """Write a token of every row, as a model does, and return it: keys of all layers, then values."""
    slots.reserve()
    more = [torch.randn(len(slots), HEADS, WIDTH) for _ in range(2 * LAYERS)]
    for layer in range(LAYERS):
        keys, values = slots.write(layer, more[layer], more[LAYERS + layer])
        assert torch.equal(keys[:, :, -1], more[layer])
        assert torch.equal(values[:, :, -1], more[LAYERS + layer])
    slots.advance()
    return more


def assert_equal(slots: Slots, plain: Plain) -> None:
    assert len(slots) == len(plain.rows)
    if not plain.rows:
        return
    mask = slots.mask(0)
    for layer in range(LAYERS):
        for read, index in zip(slots.read(layer), (layer, LAYERS + layer), strict=True):
            assert read.isfinite().all()
            for row, tensors in enumerate(plain.rows):
                assert torch.equal(read[row][:, mask[row]], tensors[index])


@pytest.mark.parametrize("seed", range(12))
def test_rows_keep_what_they_read_and_wrote_whoever_comes_and_goes(seed: int) -> None:
    torch.manual_seed(seed)
    dice, slots, plain = random.Random(seed), Slots(), Plain()
    for _ in range(150):
        move = dice.choice(["add", "grow", "grow", "grow", "remove"])
        if move == "add" or not plain.rows:
            cache = own(*(dice.choice([1, 2, 5, 90]) for _ in range(dice.randint(1, 3))))
            slots.add(cache)
            plain.add(cache)
        elif move == "remove":
            row = dice.randrange(len(plain.rows))
            slots.remove(row)
            plain.remove(row)
        else:
            for _ in range(dice.choice([1, 30])):
                plain.grow(grow(slots))
        assert_equal(slots, plain)


def broken(*lengths: int) -> PrefixCache:
    cache = own(*lengths)
    return cache._replace(tensors=tuple(tensor * torch.nan for tensor in cache.tensors))


def test_numbers_that_are_none_never_reach_a_row_that_takes_their_place() -> None:
    slots, plain = Slots(), Plain()
    sound = own(3, 4)
    slots.add(broken(80))
    slots.add(sound)
    plain.add(sound)
    slots.remove(0)  # the last row takes the place of the broken one
    plain.rows.reverse()
    long = own(100, 90)
    slots.add(long)
    plain.add(long)
    assert_equal(slots, plain)


def test_numbers_that_are_none_never_reach_a_shorter_row_that_joins_in_their_place() -> None:
    slots, plain = Slots(), Plain()
    for cache in (long := own(90), broken(80)):
        slots.add(cache)
    slots.remove(1)
    short = own(3)
    slots.add(short)
    plain.add(long)
    plain.add(short)
    assert_equal(slots, plain)


def test_a_chunk_of_tokens_is_written_where_the_row_stands() -> None:
    slots = Slots()
    slots.add(own(5, 9))
    grow(slots)
    places = {slots.read(0)[0].untyped_storage().data_ptr()}
    for _ in range(CHUNK - 2):
        grow(slots)
        places.add(slots.read(0)[0].untyped_storage().data_ptr())
    assert len(places) == 1


def count_bytes(slots: Slots) -> int:
    return slots.read(0)[0].untyped_storage().nbytes()


@pytest.mark.parametrize("how", ["others join", "it grows"])
def test_the_room_of_a_longer_row_that_went_is_given_back(how: str) -> None:
    slots = Slots()
    slots.add(own(5000))
    slots.add(own(3))
    slots.remove(0)
    if how == "others join":
        slots.add(own(2, 2))
    else:
        for _ in range(CHUNK + 1):
            grow(slots)
    assert count_bytes(slots) <= 4 * HEADS * WIDTH * {"others join": 3 * (3 + CHUNK), "it grows": 3 + 2 * CHUNK}[how]


def test_rows_that_join_one_by_one_are_seldom_moved() -> None:
    slots, moves, before = Slots(), 0, 0
    for _ in range(100):
        slots.add(own(3))
        moves, before = moves + (count_bytes(slots) != before), count_bytes(slots)
    assert moves < 20


def test_memory_is_that_of_the_rows_that_are_here() -> None:
    slots = Slots()
    slots.add(own(*[3] * 100))
    for _ in range(99):
        slots.remove(0)
    slots.add(own(5000))  # not 100 rows of 5,000
    assert slots.read(0)[0].untyped_storage().nbytes() < 4 * HEADS * WIDTH * (5000 + CHUNK) * 3
    slots.remove(0)
    slots.remove(0)
    slots.add(own(2))
    assert slots.read(0)[0].untyped_storage().nbytes() < 4 * HEADS * WIDTH * (CHUNK + 3) * 2
