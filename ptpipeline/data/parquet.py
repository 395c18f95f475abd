"""The one reader of Parquet files that we wrote."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def table_in(body: bytes, columns: Sequence[str] | None = None) -> "pa.Table":
    """The table of those bytes, all columns or the named ones that it has; pyarrow's errors where they are no Parquet
    file.

    Read by this thread, from a buffer of Arrow's own: `read_table` on a Python file goes on in threads of Arrow's that
    ask for the interpreter while it ends, which aborts a process now and then as it exits (apache/arrow issues 33975,
    34314 and 50482).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(body), pre_buffer=False)
    return file.read(columns=list(columns) if columns is not None else None, use_threads=False)
