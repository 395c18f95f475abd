"""Parquet read without threads of its own, so that a process that read some ends as it should."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ptpipeline.data.parquet import read_table
from ptpipeline.errors import ArtifactError
from tests.data.tables import encrypted

TABLE = pa.table({"id": [str(number) for number in range(60)], "text": ["word " * 10] * 60, "number": list(range(60))})


def body(compression: str = "zstd") -> bytes:
    buffer = io.BytesIO()
    pq.write_table(TABLE, buffer, compression=compression, row_group_size=7)
    return buffer.getvalue()


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_what_was_written_is_read(compression: str) -> None:
    assert read_table(body(compression)).equals(TABLE)


def test_columns_are_chosen_and_missing_ones_left_out() -> None:
    assert read_table(body(), ["text", "id"]).to_pydict() == TABLE.select(["text", "id"]).to_pydict()
    assert read_table(body(), ["id", "other"]).column_names == ["id"]


@pytest.mark.parametrize("spoilt", [b"", b"PAR1", body()[:-9], b"x" * 100])
def test_other_bytes_are_refused(spoilt: bytes) -> None:
    with pytest.raises((OSError, ValueError)):
        read_table(spoilt)


@pytest.mark.parametrize(
    "columns",
    [
        {"text": pa.array(["x" * 2**20] * 200).dictionary_encode()},  # one text, which every row names
        {"number": pa.array(np.zeros(4_000_000, np.int8))},
    ],
)
def test_what_unfolds_into_too_much_for_its_size_is_refused(columns: dict[str, pa.Array]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd", store_schema=False)
    assert len(buffer.getvalue()) < 100_000
    with pytest.raises(ArtifactError, match=r"a Parquet file that unfolds into \d+ bytes, at most \d+ allowed"):
        read_table(buffer.getvalue())


def test_encrypted_columns_are_refused() -> None:
    with pytest.raises(ArtifactError, match="a Parquet file with encrypted columns"):
        read_table(encrypted(TABLE, readable_footer=True))


READERS = """
import os, sys
from ptpipeline.data.parquet import read_table
body = open(sys.argv[1], "rb").read()
ended = []
for _ in range(5):
    readers = []
    for _ in range(4):
        readers.append(os.fork())
        if not readers[-1]:
            for _ in range(3):
                read_table(body, ["id"])
            sys.exit()
    ended += [os.waitpid(reader, 0)[1] for reader in readers]
print(ended)
"""


def test_a_process_that_read_some_ends_well(tmp_path: Path) -> None:
    """With pyarrow's own read_table of a Python file one of seven such processes aborts at its end."""
    (tmp_path / "rows.parquet").write_bytes(body())
    command = [sys.executable, "-c", READERS, str(tmp_path / "rows.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == f"{[0] * 20}\n"


def test_a_table_with_two_columns_of_one_name_is_refused() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), buffer)
    with pytest.raises(ArtifactError, match="twice of one name"):
        read_table(buffer.getvalue())
