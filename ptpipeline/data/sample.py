"""A few rows of many: the same ones each time, and at most one other if a row comes or goes."""

import hashlib
from collections.abc import Sequence

from ptpipeline.data.rows import Row


def sample_rows(rows: Sequence[Row], limit: int, purpose: str = "probe") -> list[Row]:
    """Return up to `limit` rows, those whose ids have the lowest hashes with the purpose, by rising hash."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{purpose}:{row.id}".encode()).digest())[:limit]


def choose_dev_rows(rows: Sequence[Row], limit: int) -> list[Row]:
    """Return up to `limit` rows for a training to answer, in their order."""
    ids = {row.id for row in sample_rows(rows, limit, "dev")}
    return [row for row in rows if row.id in ids]
