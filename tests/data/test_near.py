"""Near duplicates: found where brute force finds them, the same whatever the order, and never in two splits."""

from collections import Counter
from functools import cache
from itertools import combinations
from random import Random
from time import monotonic

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st

from ptpipeline.data import near
from ptpipeline.data.near import find_near_duplicates, find_representatives, normalise, strip_punctuation
from ptpipeline.data.rows import CheckedRows
from ptpipeline.data.validation import check_rows
from tests.shipped import shipped, texts

LONG = "the quick brown fox jumps over the lazy dog near the old mill by the river"
WORDS = st.lists(st.sampled_from(LONG.split()), min_size=4, max_size=14).map(" ".join)


def shingles(text: str) -> set[str]:
    """The runs of five characters, or the text itself if it is shorter."""
    return {text[start : start + 5] for start in range(max(1, len(text) - 4))}


def pieces(text: str) -> set[str]:
    """What a text is compared by."""
    return shingles(strip_punctuation(normalise(text)))


def jaccard(mine: set[str], theirs: set[str]) -> float:
    """The similarity that MinHash estimates."""
    return len(mine & theirs) / len(mine | theirs)


def variants(rows: list[str], dice: Random) -> list[str]:
    """Each of the texts once more, with one word doubled or left out, another ending, or in capitals."""
    changes = (
        lambda t: t + "!!!",
        str.upper,
        lambda t: " ".join([*(words := t.split()), words[-1]]),
        lambda t: " ".join(t.split()[1:]),
    )
    return [dice.choice(changes)(text) for text in rows]


TEXTS = st.text(st.sampled_from("ab .!\0\x1c한글é\U0001f600\ud800\udc00"), max_size=30).map(normalise)


@given(st.lists(TEXTS, max_size=20), st.sampled_from([near.BANDS * near.BAND, near.SIGNATURE]))
def test_signatures_are_those_of_datasketch(rows: list[str], length: int) -> None:
    whole = MinHash(num_perm=near.SIGNATURE, seed=1, scheme="affine32")
    expected = []
    for text in rows:
        sketch = MinHash(num_perm=length, scheme="affine32", permutations=whole.permutations[:, :length])
        sketch.update_batch(shingle.encode(errors="surrogatepass") for shingle in shingles(strip_punctuation(text)))
        expected.append(sketch.hashvalues.tolist())
    assert [values for _, some in near._minhash(rows, length) for values in some.tolist()] == expected


def test_more_texts_than_are_hashed_at_once_keep_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [normalise(row.text) for row in texts("tweet-sentiment")[:50]]
    bands, signatures = near._compute_bands(rows), near._compute_signatures(rows)
    monkeypatch.setattr(near, "HASHED", 300)
    assert (near._compute_bands(rows) == bands).all()
    assert (near._compute_signatures(rows) == signatures).all()


@given(st.lists(WORDS, max_size=25), st.randoms(use_true_random=False))
def test_order_and_copies_change_no_cluster(rows: list[str], dice: Random) -> None:
    again = dice.sample(rows, len(rows)) + rows[:3]
    assert find_representatives(again) == find_representatives(rows)


@given(st.lists(WORDS, min_size=2, max_size=20, unique=True), st.integers(0, 19))
def test_unrelated_texts_change_no_cluster(rows: list[str], place: int) -> None:
    other = "0123456789 98765 43210 24680 13579"
    assert find_representatives([*rows[:place], other, *rows[place:]]) == find_representatives(rows)


@given(st.lists(WORDS, max_size=20))
def test_a_representative_belongs_to_its_own_cluster(rows: list[str]) -> None:
    found = find_representatives(rows)
    assert all(found[representative] == representative for representative in found.values())
    assert all(count > 1 for count in Counter(found.values()).values())


@given(WORDS, st.sampled_from([" !", "...", "?!", " -", " :)"]))
def test_punctuation_never_parts_two_texts(text: str, ending: str) -> None:
    found = find_representatives([text, text + ending, LONG.upper()])
    assert found[text] == found[text + ending]


@given(st.lists(st.text(max_size=12), max_size=10), st.lists(st.text(max_size=12), max_size=10))
def test_equal_texts_are_always_near(rows: list[str], of: list[str]) -> None:
    known = {normalise(text) for text in of}
    equal = {index for index, text in enumerate(rows) if normalise(text) in known}
    assert equal <= set(find_near_duplicates(rows, of))


INVISIBLE = [
    "\u200b",
    "\u200d",
    "\u00ad",
    "\ufeff",
    "\u2060",
    "\u202e",
    "\u2066",
    "\u034f",
    "\u3164",
    "\ufe0f",
    "\U000e0061",
]


@given(WORDS, st.sampled_from(INVISIBLE), st.integers(0, 60))
def test_invisible_characters_make_no_other_text(text: str, character: str, place: int) -> None:
    assert normalise(text[:place] + character + text[place:]) == text


@pytest.mark.parametrize("character", INVISIBLE)
def test_a_text_of_invisible_characters_is_empty(character: str) -> None:
    assert normalise(f" {character} {character}") == ""


def test_signatures_with_four_fifths_in_common_are_near() -> None:
    one, many = np.zeros(near.SIGNATURE, np.uint16), np.zeros((2, near.SIGNATURE), np.uint16)
    many[0, near.SIGNATURE * 4 // 5 :] = many[1, near.SIGNATURE * 4 // 5 - 1 :] = 1
    assert near._are_near(one, many).tolist() == [True, False]


def test_texts_without_letters_are_compared_whole() -> None:
    assert find_representatives([":)", ":(", "..."]) == {}
    assert find_near_duplicates([":)"], [":("]) == []


def test_nothing_is_near_nothing() -> None:
    assert (find_representatives([]), find_near_duplicates([], ["a"]), find_near_duplicates(["a"], [])) == ({}, [], [])


def test_near_duplicates_are_those_of_brute_force() -> None:
    dice = Random(5)
    rows = [normalise(row.text) for row in dice.sample(texts("tweet-sentiment"), 200)]
    asked = variants(rows, dice)
    known = [pieces(text) for text in rows]
    best = [max(jaccard(mine, theirs) for theirs in known) for mine in map(pieces, asked)]
    found = set(find_near_duplicates(asked, rows))
    assert {
        index for index, value in enumerate(best) if value >= 0.9
    } <= found  # four standard errors off the threshold
    assert not found & {index for index, value in enumerate(best) if value < 0.7}
    assert sum(value >= 0.8 for value in best) == pytest.approx(len(found), abs=8)
    assert 100 < len(found) < 200


def test_clusters_of_the_shipped_tweets_are_those_of_brute_force() -> None:
    rows = sorted(normalise(row.text) for row in texts("tweet-sentiment"))[-400:]
    found, sets = find_representatives(rows), [pieces(text) for text in rows]
    linked = set()
    for one, two in combinations(range(len(rows)), 2):
        value = jaccard(sets[one], sets[two])
        together = rows[one] in found and found[rows[one]] == found.get(rows[two])
        assert together or value < 0.9
        linked |= {rows[one], rows[two]} if value >= 0.7 else set()
    assert found.keys() <= linked
    assert len(found) > 20


def test_thousands_of_a_template_take_seconds() -> None:
    dice = Random(0)
    rows = [
        f"dear customer {n}, your order {dice.randrange(10**6)} left {dice.choice(['seoul', 'busan'])} and "
        f"arrives in {n % 7} days"
        for n in range(1500)
    ]
    began = monotonic()
    find_representatives(rows)
    find_near_duplicates(rows[:300], rows[300:])
    assert monotonic() - began < 30


def test_a_long_text_is_compared_by_its_beginning_and_its_end() -> None:
    dice = Random(3)
    one, two, three, other = ("".join(dice.choices("abcdefghijklmnop", k=near.MAX_COMPARED)) for _ in range(4))
    assert find_near_duplicates([one + two], [one + three]) == []
    assert find_near_duplicates([two + one], [three + one]) == []
    assert find_near_duplicates([one + three + two], [one + other + two]) == [0]


# ---------------------------------------------------------------- the shipped tasks


@cache
def tweets() -> CheckedRows:
    return check_rows(*shipped("tweet-sentiment"))


def test_the_shipped_tweets_have_near_duplicates() -> None:
    (check,) = [check for check in tweets().checks if check.name == "near_duplicate"]
    assert (check.count, check.detail) == (
        135,
        "lines 2, 7, 9 and more share the split of what they nearly repeat, 53 moved there",
    )


def test_no_tweet_in_test_nearly_stands_in_training() -> None:
    rows = tweets().rows
    assert (
        find_near_duplicates(
            *([row.text for row in rows if (row.split == "test") == judging] for judging in (True, False))
        )
        == []
    )
