"""Test files of others: csv-spectrum, JSONTestSuite as a column that no task names, parquet-testing, packages."""

import csv
import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ptpipeline.data.files import list_columns
from ptpipeline.data.table import Wanted
from ptpipeline.errors import DataError
from ptpipeline.task.source import Source
from tests.data.tables import load, pairs, read

CORPORA = Path(__file__).parent / "corpora"
SPECTRUM = sorted((CORPORA / "csv_spectrum").glob("*.csv"))
JSON: dict[str, str] = json.loads((CORPORA / "json_test_suite.json").read_text())

# Python's own writer gives these for numbers that JSON has no word for.
TAKEN = {"n_number_NaN", "n_number_infinity", "n_number_minus_infinity"}


@pytest.mark.parametrize("path", SPECTRUM, ids=lambda path: path.stem)
def test_a_csv_file_holds_what_it_should(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_bytes())
    wanted = [Wanted(name, "slices") for name in expected[0]]
    found = read(path, wanted=wanted)
    rows = zip(*(found.columns[one.column].cells for one in wanted), strict=True)
    assert [dict(zip(expected[0], row, strict=True)) for row in rows] == expected
    assert found.misquoted == frozenset()
    assert len(SPECTRUM) == 11


# But for JSON of several lines, which are several rows.
@pytest.mark.parametrize("name", [name for name, text in JSON.items() if name[0] == "n" or not set(text) & set("\r\n")])
def test_a_value_is_taken_if_it_is_json(tmp_path: Path, name: str) -> None:
    body = f'{{"text": "a", "label": "bad", "more": {JSON[name]}}}\n'.encode(errors="surrogatepass")
    try:
        table = load(tmp_path, body, "jsonl")
    except DataError as error:
        assert name[0] in "ni", error  # noqa: PT017
        assert "not readable as jsonl: line 1" in str(error)  # noqa: PT017
        return
    assert pairs(table) == [("a", "bad")]
    assert name[0] in "yi" or name in TAKEN


@pytest.mark.parametrize("name", JSON)
def test_a_file_of_anything_is_one_sentence(tmp_path: Path, name: str) -> None:
    for form in ("jsonl", "csv", "tsv", "parquet"):
        with pytest.raises(DataError) as raised:
            load(tmp_path, JSON[name].encode(errors="surrogatepass"), form)
        assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- Parquet

PARQUET = CORPORA / "parquet_testing"


def test_texts_that_arrow_makes_no_dictionary_of_are_read() -> None:
    path = PARQUET / "delta_length_byte_array.parquet"
    table = read(path, "parquet", [Wanted("FRUIT", "text", text=True)])
    assert table.columns["FRUIT"].cells == pq.read_table(path).column("FRUIT").to_pylist()


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_texts_of_every_encoding_are_read(tmp_path: Path, encoding: str) -> None:
    texts = ["a", None, "ab" * 40, "", "한글"] * 30
    path, plain = tmp_path / "rows.parquet", pa.table({"text": texts, "label": ["bad"] * len(texts)})
    encodings = {"text": encoding, "label": "PLAIN"}
    pq.write_table(plain, path, use_dictionary=False, column_encoding=encodings)
    assert read(path, "parquet").columns["text"].cells == texts


def test_a_column_of_fewer_values_than_rows_is_told() -> None:
    wanted = [Wanted("timestamp_us_no_tz", "slices")]
    with pytest.raises(DataError, match="column 'timestamp_us_no_tz' has 2 values for 5 rows: the file is damaged"):
        read(PARQUET / "ARROW-GH-41317.parquet", "parquet", wanted)


# ---------------------------------------------------------------- tables that installed packages ship


@pytest.mark.parametrize("package", ["sklearn", "statsmodels", "matplotlib"])
def test_a_table_of_a_package_is_read_as_by_csv_or_told(package: str) -> None:
    files = sorted(Path(str(importlib.util.find_spec(package).origin)).parent.rglob("*.csv"))  # type: ignore[union-attr]
    equal = 0
    for path in files:
        source = Source(path=str(path), format="csv")
        try:
            names = list_columns(path.name, path, source).plain
            table = read(path, wanted=[Wanted(name, "slices") for name in dict.fromkeys(names)])
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = [row[: len(names)] for row in csv.reader(file) if len(row) > 1 or (row and row[0].strip())]
        cells = zip(*(table.columns[name].cells for name in names), strict=True)
        assert [list(row) for row in cells] == rows[1:], path
        equal += 1
    assert equal > len(files) / 2
