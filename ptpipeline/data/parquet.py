"""The only reader of Parquet files that this project wrote; what a file may unfold into is bounded first.

A few kilobytes can state a billion rows, or name one long text of a dictionary in every row. So the footer is read
first, texts are decoded as a dictionary with a number for each row, and the sizes are summed before any is unfolded.
A page that unfolds into more than the footer states is Arrow's to refuse, after it has taken up to 2 GiB.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptpipeline.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa

LEAST_BYTES, MOST_TIMES = 32 * 2**20, 100  # what any file may unfold into; and beyond that, so many times its own size
CELL_BYTES = 16  # at least, of each cell as Python holds it
FOOTER_BYTES, FOOTER_FIELDS = 16 * 2**20, 100_000
_SIGNATURE = 28  # bytes behind a readable footer, if columns are encrypted


def read_table(body: bytes, columns: Sequence[str] | None = None) -> "pa.Table":
    """Return the table in `body` with all columns, or with those of the named ones that it has.

    Raises ArtifactError if it unfolds into more than its size allows, and pyarrow's own errors if the bytes are not a
    Parquet file: call it within `parsing`. Read by the calling thread, from a buffer that Arrow owns: pyarrow's
    `read_table` on a Python file continues in Arrow's threads, which may ask for the interpreter while it shuts down
    and abort the process (apache/arrow issues 33975, 34314 and 50482).
    """
    import pyarrow as pa

    most = LEAST_BYTES + MOST_TIMES * len(body)
    schema = open_parquet(pa.BufferReader(body)).schema_arrow
    chosen = [field for field in schema if columns is None or field.name in columns]
    if not all(_is_plain(field.type) for field in chosen) or len({field.name for field in chosen}) < len(chosen):
        raise ArtifactError("a Parquet file with columns that are no texts or numbers, or twice of one name")
    texts = [field.name for field in chosen if pa.types.is_string(field.type)]
    file = open_parquet(pa.BufferReader(body), texts)
    footer = file.metadata
    if is_encrypted(footer, body[-8:]):
        raise ArtifactError("a Parquet file with encrypted columns")
    stated = sum(footer.row_group(index).total_byte_size for index in range(footer.num_row_groups))
    _check(max(stated, footer.num_rows * CELL_BYTES * max(1, len(chosen))), most)
    table = file.read(columns=[field.name for field in chosen] if columns is not None else None, use_threads=False)
    _check(sum(_count_bytes(table.column(name)) for name in texts), most)
    return table.cast(pa.schema([schema.field(name) for name in table.column_names], metadata=table.schema.metadata))


def open_parquet(source: Any, texts: Sequence[str] = ()) -> Any:
    """Return the Parquet file; `texts` are decoded as a dictionary with a number for each row.

    Raises pyarrow's own errors if it is none: call it within `parsing`.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(
        source,
        read_dictionary=list(texts),
        pre_buffer=False,
        page_checksum_verification=True,  # of pages that have one
        thrift_string_size_limit=FOOTER_BYTES,
        thrift_container_size_limit=FOOTER_FIELDS,
    )


def is_encrypted(footer: Any, end: bytes) -> bool:
    """Whether a file has encrypted columns behind a readable footer; end: its last eight bytes.

    Arrow ends the process if it is asked for the sizes of such a column.
    """
    return int.from_bytes(end[:4], "little") - int(footer.serialized_size) == _SIGNATURE


def _is_plain(kind: Any) -> bool:
    import pyarrow as pa

    checks = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(check(kind) for check in checks)


def _count_bytes(column: Any) -> int:
    """Return the bytes of the column's texts, each counted as often as a row names it."""
    import pyarrow.compute as pc

    counts = (
        pc.sum(pc.take(pc.cast(pc.binary_length(chunk.dictionary), "int64"), chunk.indices)).as_py()
        for chunk in column.chunks
    )
    return sum(count or 0 for count in counts)


def _check(count: int, most: int) -> None:
    if count > most:
        raise ArtifactError(f"a Parquet file that unfolds into {count} bytes, at most {most} allowed for its size")
