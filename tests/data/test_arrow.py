"""Parquet as pandas, Arrow and `datasets` write it: each type as text, and what is said of what is no text."""

import datetime
import decimal
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptpipeline.data import arrow, table, writing
from ptpipeline.errors import DataError
from tests.data.tables import encrypted, load, pairs, read

D = datetime.datetime
SEOUL = datetime.timezone(datetime.timedelta(hours=9))


def stored(folder: Path, columns: Any, **options: Any) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


def labels(folder: Path, values: pa.Array) -> tuple[list[str | None], str]:
    column = read(stored(folder, {"text": ["a"] * len(values), "label": values}), "parquet").columns["label"]
    return column.cells, column.kinds[0]


# ---------------------------------------------------------------- what is read

TYPES: list[tuple[pa.Array, list[str | None], str]] = [
    (pa.array([1, None, -3], pa.int8()), ["1", None, "-3"], "integers"),
    (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"], "integers"),
    (pa.array([1.0, None, float("nan"), 2.5], pa.float64()), ["1", None, None, "2.5"], "numbers"),
    (pa.array([0.1, 1.0, -0.0], pa.float32()), ["0.1", "1", "0"], "numbers"),
    (pa.array(np.array([0.5, 2], np.float16)), ["0.5", "2"], "numbers"),
    (pa.array([1e300, 1e-7, float("inf")]), ["1e+300", "1e-07", "inf"], "numbers"),
    (pa.array([True, None, False]), ["true", None, "false"], "booleans"),
    (pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")]), ["1.5", "2"], "numbers"),
    (pa.array([decimal.Decimal("100")], pa.decimal256(40, 0)), ["100"], "numbers"),
    (pa.array([decimal.Decimal("0"), decimal.Decimal("1e-7")], pa.decimal128(38, 18)), ["0", "0.0000001"], "numbers"),
    (
        pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 1, None], pa.int8())),
        ["false", "true", None],
        "booleans",
    ),
    (pa.array([datetime.date(2020, 1, 31), None]), ["2020-01-31", None], "dates"),
    (pa.array([D(2020, 1, 31), D(2020, 1, 31, 12, 30)]), ["2020-01-31", "2020-01-31 12:30:00"], "dates"),
    (pa.array([D(2020, 1, 31, 0, 0, 0, 500000)], pa.timestamp("ns")), ["2020-01-31 00:00:00.5"], "dates"),
    (pa.array([D(2020, 1, 31, tzinfo=SEOUL)]), ["2020-01-31 00:00:00+0900"], "dates"),
    (pa.array([datetime.time(1, 2)]), ["01:02:00"], "times"),
    (pa.array([None, None], pa.null()), [None, None], "text"),
    (pa.array(["", "NA", None]), ["", "NA", None], "text"),
    (pa.array(["a", None], pa.large_string()), ["a", None], "text"),
    (pa.array(["a", None], pa.string_view()), ["a", None], "text"),
    (pa.array([b"a", b"caf\xe9"]), ["a", "caf\udce9"], "text"),
    (pa.array([b"good", b"caf\xe9", None], pa.binary(4)), ["good", "caf\udce9", None], "text"),
    (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"], "text"),
    (pa.DictionaryArray.from_arrays([1, 0, None], pa.array([10, 20])), ["20", "10", None], "integers"),
]


@pytest.mark.parametrize(("values", "cells", "kind"), TYPES, ids=lambda value: str(getattr(value, "type", "")))
@pytest.mark.parametrize("dictionary", [False, True])
def test_a_label_is_written_as_a_person_would(
    tmp_path: Path, values: pa.Array, cells: list[str | None], kind: str, dictionary: bool
) -> None:
    path = stored(tmp_path, {"text": ["a"] * len(values), "label": values}, use_dictionary=dictionary)
    column = read(path, "parquet").columns["label"]
    assert (column.cells, column.kinds) == (cells, (kind,))


def test_a_decimal_with_an_exponent_keeps_its_zeros() -> None:
    assert writing.write_values(pa.array([decimal.Decimal("1.2E+10")], pa.decimal128(3, -9))) == ["1.2E+10"]


UNWRITTEN: list[tuple[pa.Array, str]] = [
    (pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), "a date that no calendar has"),
    (pa.array([-(2**62)], pa.int64()).cast(pa.timestamp("ms")), "a date that no calendar has"),
    (pa.array([1], pa.timestamp("us", "Mars/Phobos")), "timestamp[us, tz=Mars/Phobos], which cannot be written"),
    (pa.array([2**62], pa.duration("s")), "duration[s], which cannot be written"),
]


@pytest.mark.parametrize(("values", "told"), UNWRITTEN, ids=lambda value: str(getattr(value, "type", "")))
def test_a_label_that_nobody_could_write_is_told_with_its_column(tmp_path: Path, values: pa.Array, told: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"column 'label' holds {told}")) as raised:
        labels(tmp_path, values)
    assert "as text" in str(raised.value)


def test_periods_are_told_with_a_command_that_writes_them_as_text(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": pd.PeriodIndex(["2020-01", None], freq="M")})
    frame.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"column 'label', which .* names, holds periods of pandas") as raised:
        read(tmp_path / "rows.parquet", "parquet")
    command = str(raised.value).partition(" by: ")[2].replace("FILE NEW.parquet", "rows.parquet new.parquet")
    subprocess.run(command.replace("python ", f"{sys.executable} ", 1), shell=True, check=True, cwd=tmp_path)
    assert pairs(read(tmp_path / "new.parquet", "parquet")) == [("a", "2020-01"), ("b", None)]


@pytest.mark.parametrize(
    "more",
    [
        pa.array([[1], None]),
        pa.array([{"text": "x", "label": "y"}, None]),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        pa.array([b"\xff\xfe", None]),
        pa.array([datetime.timedelta(1), None]),
        pa.array([None, None], pa.null()),
    ],
    ids=lambda values: str(values.type),
)
def test_what_the_task_does_not_name_decides_nothing(tmp_path: Path, more: pa.Array) -> None:
    path = stored(tmp_path, {"more": more, "text": ["a", "b"], "label": ["bad", "good"]})
    assert pairs(read(path, "parquet")) == [("a", "bad"), ("b", "good")]


def test_texts_of_one_length_are_texts(tmp_path: Path) -> None:
    path = stored(tmp_path, {"text": pa.array([b"abcd", b"efgh"], pa.binary(4)), "label": ["bad", "good"]})
    assert pairs(read(path, "parquet")) == [("abcd", "bad"), ("efgh", "good")]


def test_two_columns_of_a_name_decide_nothing_unless_they_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    arrays = [pa.array([1]), pa.array([2]), pa.array(["a"]), pa.array(["bad"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["x", "x", "text", "label"]), path)
    assert pairs(read(path, "parquet")) == [("a", "bad")]
    pq.write_table(pa.Table.from_arrays(arrays[1:], names=["text", "text", "label"]), path)
    with pytest.raises(DataError, match=r"2 columns have the name 'text', which data.text names"):
        read(path, "parquet")


def test_a_name_with_dots_is_a_name(tmp_path: Path) -> None:
    from ptpipeline.data.table import Wanted

    path = stored(tmp_path, {"a.b": ["x"], "a": [{"b": "y"}]})
    found = read(path, "parquet", (Wanted("a.b", "text", text=True),))
    assert found.columns["a.b"].cells == ["x"]


def test_bytes_that_are_not_utf8_are_kept_apart(tmp_path: Path) -> None:
    broken = pa.array([b"caf\xe9", "caf\ufffd".encode(), None]).view(pa.string())
    for values in (broken, broken.dictionary_encode()):
        path = stored(tmp_path, {"text": values, "label": ["a", "b", "c"]})
        assert pairs(read(path, "parquet")) == [("caf\udce9", "a"), ("caf\ufffd", "b"), (None, "c")]


def test_a_place_is_the_number_of_the_row(tmp_path: Path) -> None:
    path = stored(tmp_path, {"text": ["a", "b"], "label": ["a", "b"]}, row_group_size=1)
    assert read(path, "parquet").places.describe([2]) == "row 2"


def test_the_names_of_a_classlabel_column_stand_for_its_numbers(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    column = read(tmp_path / "rows.parquet", "parquet").columns["label"]
    assert (column.cells, column.codes) == (["pos", "neg", None], {"neg": "0", "pos": "1"})


VALUE = b'{"info": {"features": {"label": {"_type": "Value", "names": ["neg", "pos"]}}}}'


@pytest.mark.parametrize(
    "stated", [b"{", b"[]", b'{"info": {"features": {"label": 1}}}', b'{"info": null}', b"\xff", VALUE]
)
def test_metadata_that_say_nothing_are_no_fault(tmp_path: Path, stated: bytes) -> None:
    columns = pa.table({"text": ["a"], "label": [1]}).replace_schema_metadata({b"huggingface": stated})
    pq.write_table(columns, tmp_path / "rows.parquet")
    assert pairs(read(tmp_path / "rows.parquet", "parquet")) == [("a", "1")]


# ---------------------------------------------------------------- what is told


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"text": [1], "label": [1]}, "column 'text', which data.text names, holds int64; expected text"),
        ({"text": ["a"], "label": [[1]]}, "column 'label', which data.label names, holds nested values; expected text"),
        ({"text": [["a"]], "label": [1]}, "column 'text', which data.text names, holds nested values"),
        ({"review": ["a"], "label": [1]}, "no column 'text', which data.text names; the columns are review, label"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "there are no rows"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, columns: Any, sentence: str) -> None:
    with pytest.raises(DataError) as raised:
        read(stored(tmp_path, columns), "parquet")
    assert str(raised.value).partition("rows.parquet: ")[2].startswith(sentence)


@pytest.mark.parametrize(
    ("readable_footer", "told"), [(True, "the file has encrypted columns"), (False, "the file is an encrypted Parquet")]
)
def test_an_encrypted_file_is_one_sentence(tmp_path: Path, readable_footer: bool, told: str) -> None:
    """Arrow aborts the process that asks for the sizes of an encrypted column behind a readable footer."""
    body = encrypted(pa.table({"text": ["a"], "label": ["b"]}), readable_footer)
    with pytest.raises(DataError, match=f"{told}.*; write it without encryption"):
        load(tmp_path, body, "parquet")


@pytest.mark.parametrize("cut", [4, 40, 200, -1])
def test_a_truncated_file_is_told_as_such(tmp_path: Path, cut: int) -> None:
    path = stored(tmp_path, {"text": ["a"], "label": ["b"]})
    path.write_bytes(path.read_bytes()[:cut])
    told = "the file is a Parquet file that was cut off; fetch or write it again"
    with pytest.raises(DataError, match=f"not readable as parquet: {told}"):
        read(path, "parquet")


def test_an_altered_page_is_one_sentence_or_reads(tmp_path: Path) -> None:
    path = stored(tmp_path, {"text": [f"text {n}" for n in range(99)], "label": ["b"] * 99}, compression="zstd")
    body = path.read_bytes()
    for place in range(4, len(body) - 4, 7):
        path.write_bytes(body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :])
        with suppress(DataError):
            assert len(read(path, "parquet").columns["text"].cells) == 99


def test_what_unfolds_too_far_is_refused_before_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path, {"text": ["a" * 10_000] * 9, "label": ["b"] * 9}, use_dictionary=False)
    monkeypatch.setattr(arrow, "MAX_BYTES", 80_000)
    with pytest.raises(DataError, match=r"its columns unfold into 9.... bytes, at most 80000 allowed"):
        read(path, "parquet")
    monkeypatch.setattr(arrow, "MAX_ROWS", 8)
    with pytest.raises(DataError, match=f"more than {table.MAX_ROWS} rows"):
        read(path, "parquet")


def test_a_long_text_that_many_rows_name_is_unfolded_for_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path, {"text": ["a" * 2**14] * 4096, "label": ["b"] * 4096})
    assert path.stat().st_size < 2**18
    monkeypatch.setattr(arrow, "ARRAY", 2**20)
    sizes = [array.nbytes for array in arrow._Reader(path, ["text"]).arrays("text")]
    assert max(sizes) < 2**21
    monkeypatch.setattr(arrow, "MAX_BYTES", 2**25)
    with pytest.raises(DataError, match="its columns unfold into more than 33554432 bytes"):
        read(path, "parquet")


# ---------------------------------------------------------------- what programs write

TEXTS = st.none() | st.text(st.characters(codec="utf-8"), max_size=9) | st.sampled_from(["", "\ufffd", "\0", "NA"])
ROWS = st.lists(st.tuples(TEXTS, st.none() | st.integers(-(2**50), 2**50)), min_size=1, max_size=9)
FEW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(rows: list[tuple[str | None, int | None]]) -> list[tuple[str | None, str | None]]:
    return [(text, None if label is None else str(label)) for text, label in rows]


@FEW
@given(ROWS, st.sampled_from(["snappy", "zstd", "none"]), st.sampled_from(["1.0", "2.6"]), st.booleans())
def test_what_arrow_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str | None, int | None]], compression: str, version: str, dictionary: bool
) -> None:
    columns = {
        "text": pa.array([text for text, _ in rows], pa.string()),
        "label": pa.array([n for _, n in rows], pa.int64()),
    }
    path = stored(
        tmp_path, columns, compression=compression, version=version, use_dictionary=dictionary, row_group_size=3
    )
    assert pairs(read(path, "parquet")) == written(rows)


@FEW
@given(ROWS, st.sampled_from([None, True, False]), st.sampled_from(["object", "string", "category"]))
def test_what_pandas_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str | None, int | None]], index: bool | None, kind: str
) -> None:
    frame = pd.DataFrame({"text": pd.Series([text for text, _ in rows], dtype="object"), "label": [n for _, n in rows]})
    frame["text"] = frame["text"].astype(kind)
    frame.index = pd.Index([f"i{n}" for n in range(len(frame))])
    frame.to_parquet(tmp_path / "rows.parquet", index=index)
    assert pairs(read(tmp_path / "rows.parquet", "parquet")) == written(rows)


@FEW
@given(ROWS, st.booleans(), st.sampled_from(["string", "categorical"]))
def test_what_polars_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str | None, int | None]], statistics: bool, kind: str
) -> None:
    frame = pl.DataFrame(rows, schema={"text": pl.String, "label": pl.Int64}, orient="row")
    if kind == "categorical":
        frame = frame.with_columns(pl.col("text").cast(pl.Categorical))
    frame.write_parquet(tmp_path / "rows.parquet", statistics=statistics, row_group_size=4)
    assert pairs(read(tmp_path / "rows.parquet", "parquet")) == written(rows)


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("counts", [(9, 9), (99, 1), (1, 99), (0, 9)])
def test_files_behind_each_other_are_told(tmp_path: Path, counts: tuple[int, int], index: bool) -> None:
    """As `cat *.parquet` writes them: the footer of the last one is that of the file."""
    body = b""
    for count in counts:
        rows = {"text": [f"text {n}" for n in range(count)], "label": ["b"] * count}
        body += stored(tmp_path, rows, write_page_index=index).read_bytes()
    with pytest.raises(DataError, match=r"holds several Parquet files, one behind the other.* of its own$"):
        load(tmp_path, body, "parquet")


def test_a_text_may_hold_how_a_file_ends_and_begins(tmp_path: Path) -> None:
    texts = ["PAR1PAR1", "\x15 \x04\0\0\0PAR1PAR1", "a" * 2**20 + "PAR1PAR1"]
    path = stored(tmp_path, {"text": texts, "label": ["b"] * 3}, write_page_index=True, compression="none")
    assert read(path, "parquet").columns["text"].cells == texts


def test_columns_of_nested_values_are_told_whatever_they_are_called(tmp_path: Path) -> None:
    """As pandas stores intervals, and Arrow tensors: by a type of their own."""
    frame = pd.DataFrame({"text": ["a", "b"], "span": pd.interval_range(0, 2), "label": ["x", "y"]})
    frame.to_parquet(tmp_path / "rows.parquet")
    assert arrow.list_fields(tmp_path / "rows.parquet") == (["text", "label"], ["span"])
