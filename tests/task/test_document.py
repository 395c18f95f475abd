"""What a task file may unfold into is bounded, and it is a regular file."""

import os
import time
from pathlib import Path

import pytest

from ptpipeline.errors import TaskFileError
from ptpipeline.task.folder import load_task
from tests.task.test_task import GOOD, message_of, written

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


CHAIN = "a0: &a0 [x]\n" + "".join(f"a{level}: &a{level} [*a{level - 1}]\n" for level in range(1, 500))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (LAUGHS, "more than 4000 values, counted as often as aliases"),
        (CHAIN, "more than 4000 values, counted as often as aliases"),
        ("labels: &a [*a]\n", "more than 4000 values, counted as often as aliases"),
        ("labels: &a {b: *a}\n", "more than 4000 values, counted as often as aliases"),
        ("labels: [" + "x," * 50_000 + "]", "more than 4000 values"),
        ("labels: " + "[" * 33 + "]" * 33, "more than 32 levels"),
        ("".join(f"{'  ' * level}a:\n" for level in range(100)), "more than 32 levels"),
        ("#\n" * 100_000, "100000 lines, at most 5000 allowed"),
        ("name: " + "x" * 2**18, "at most 262144 allowed"),
        ("? [a, {b: c}]\n: !!python/object:os.system d\n", ""),
        ("name: !!binary $\n", ""),
        ("<<: 1\n", ""),
        ("name: " + "9" * 5000, ""),
    ],
)
def test_what_a_file_may_unfold_into_is_bounded(tmp_path: Path, text: str, sentence: str) -> None:
    began = time.process_time()
    assert sentence in message_of(tmp_path, text)
    assert time.process_time() - began < 2


def test_a_value_that_an_alias_repeats_is_read(tmp_path: Path) -> None:
    text = GOOD.replace('labels: {bad: " bad", good: " good"}', 'labels: {bad: &word " bad", good: *word}')
    assert "labels" in message_of(tmp_path, text)  # two labels of the same words
    assert load_task(written(tmp_path, GOOD.replace("steps: 5", "steps: &n 5, eval_every: *n"))).tune.eval_every == 5


@pytest.mark.parametrize("key", ["{a: b}", "[a, b]"])
@pytest.mark.parametrize("place", ["", "tune: "])
def test_a_key_that_is_no_text_is_told_as_an_unknown_field(tmp_path: Path, key: str, place: str) -> None:
    more = f"{{? {key} : }}\n" if place else f"? {key}\n:\n"
    kept = "\n".join(line for line in GOOD.splitlines() if not place or not line.startswith(place))
    assert "unknown field; allowed here" in message_of(tmp_path, f"{kept}\n{place}{more}")


def test_a_pipe_is_no_task_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "reviews.yaml")
    with pytest.raises(TaskFileError, match="not a regular file"):
        load_task(tmp_path / "reviews.yaml")
