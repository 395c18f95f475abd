"""Parquet files that lie damaged on a disk: every row is read, or a sentence says that the file is damaged.

Arrow ends the process if it is asked for what some damaged footers say; so damaged files are read in another one here.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptpipeline.errors import DataError
from tests.data.tables import load, pairs
from tests.processes import in_child

ROWS = [(f"text number {number}", "bad" if number % 2 else "good") for number in range(7)]
TABLE = pa.table({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]})


def by_arrow(**options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(TABLE, buffer, row_group_size=4, **options)
    return buffer.getvalue()


def by_polars() -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(ROWS, schema=["text", "label"], orient="row").write_parquet(buffer, row_group_size=4)
    return buffer.getvalue()


FILES = {"arrow": by_arrow(), "bare": by_arrow(store_schema=False, compression="none"), "polars": by_polars()}


def footer_of(body: bytes) -> Iterator[int]:
    """The places of the footer's bytes."""
    end = len(body) - 8
    return iter(range(end - int.from_bytes(body[end : end + 4], "little"), end))


def change(body: bytes, at: int, bits: int) -> bytes:
    return body[:at] + bytes([body[at] ^ bits]) + body[at + 1 :]


def count(folder: Path, body: bytes) -> int | None:
    """The rows that are read; None if a sentence tells what is wrong."""
    try:
        return len(pairs(load(folder, body, "parquet")))
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return None


@pytest.mark.parametrize("writer", FILES)
def test_a_change_of_the_footer_loses_no_row_and_ends_no_process(tmp_path: Path, writer: str) -> None:
    """The bits 1 and 2 change small numbers of rows and the sizes of statistics."""
    body = FILES[writer]

    def read_all() -> None:
        for bits in (1, 2):
            found = {count(tmp_path, change(body, at, bits)) for at in footer_of(body)}
            assert found <= {None, len(ROWS)}, found

    in_child(read_all)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    writer=st.sampled_from(list(FILES)),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_a_damaged_file_loses_no_row_unsaid(tmp_path: Path, writer: str, changes: list[tuple[int, int]]) -> None:
    body = FILES[writer]
    for at, bits in changes:
        body = change(body, at % len(body), bits)
    in_child(lambda: _expect_rows(tmp_path, body))


def _expect_rows(folder: Path, body: bytes) -> None:
    found = count(folder, body)
    assert found in (None, len(ROWS)), found


@pytest.mark.parametrize("end", [0.3, 0.6, 0.95])
def test_a_file_that_was_cut_off_is_told(tmp_path: Path, end: float) -> None:
    body = FILES["arrow"]
    assert count(tmp_path, body[: int(end * len(body))]) is None


def test_a_change_in_a_page_with_a_checksum_is_told(tmp_path: Path) -> None:
    """As Spark and newer programs write them."""
    body = by_arrow(write_page_checksum=True, compression="none", use_dictionary=False)
    assert count(tmp_path, body) == len(ROWS)
    changed = body.replace(b"number 2", b"number 9")
    assert changed != body
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path, changed, "parquet")


def test_parts_that_state_other_rows_than_the_file_are_told(tmp_path: Path) -> None:
    body = FILES["bare"]
    told = []
    for at in footer_of(body):
        try:
            load(tmp_path, change(body, at, 4), "parquet")
        except DataError as error:
            told += [str(error)]
    assert [one for one in told if "rows, and" in one and "in its parts: the file is damaged; write it again" in one]
