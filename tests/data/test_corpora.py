"""Test files of others: the csv files of csv-spectrum, and JSONTestSuite as a column that no task names."""

import json
from pathlib import Path

import pytest

from ptpipeline.data.table import Wanted
from ptpipeline.errors import DataError
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
