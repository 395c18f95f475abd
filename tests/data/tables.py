"""Reads what a test wrote, through the reader of one file."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption

from ptpipeline.data.files import load_file
from ptpipeline.data.table import Table, Wanted
from ptpipeline.task.data import Source

WANTED = (Wanted("text", "text", text=True), Wanted("label", "label"))


def read(path: Path, form: str = "csv", wanted: Sequence[Wanted] = WANTED, **source: Any) -> Table:
    """The table in the file."""
    return load_file(str(path), path, Source.model_validate({"path": str(path), "format": form, **source}), wanted)


def load(folder: Path, body: bytes | str, form: str = "csv", wanted: Sequence[Wanted] = WANTED, **source: Any) -> Table:
    """The table in a file of these bytes."""
    path = folder / f"rows.{form}"
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return read(path, form, wanted, **source)


def pairs(table: Table) -> list[tuple[str | None, str | None]]:
    """Text and label of each row."""
    return list(zip(table.columns["text"].cells, table.columns["label"].cells, strict=True))


class _Keys(encryption.KmsClient):  # type: ignore[misc]
    """Hides no key: it stands in the file."""

    def __init__(self, _config: object) -> None:
        encryption.KmsClient.__init__(self)

    def wrap_key(self, key: bytes, _master: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, _master: str) -> bytes:
        return base64.b64decode(wrapped)


def encrypted(table: pa.Table, readable_footer: bool) -> bytes:
    """The bytes of a Parquet file whose column `text` is encrypted, and the footer too or not."""
    how = encryption.EncryptionConfiguration(
        footer_key="footer", column_keys={"column": ["text"]}, plaintext_footer=readable_footer
    )
    factory = encryption.CryptoFactory(_Keys)
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), how)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    return buffer.getvalue()
