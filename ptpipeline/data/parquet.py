"""The only reader of Parquet files that this project wrote."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def read_table(body: bytes, columns: Sequence[str] | None = None) -> "pa.Table":
    """Return the table in `body` with all columns, or with those of the named ones that it has.

    Raises pyarrow's own errors if the bytes are not a Parquet file. Read by the calling thread, from a buffer that
    Arrow owns: pyarrow's `read_table` on a Python file continues in Arrow's threads, which may ask for the interpreter
    while it shuts down and abort the process (apache/arrow issues 33975, 34314 and 50482).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(body), pre_buffer=False)
    return file.read(columns=list(columns) if columns is not None else None, use_threads=False)
