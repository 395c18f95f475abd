"""Secrets that seal stored bytes, the chain of promotions, and leases that no clock decides."""

from alembic import op
from sqlalchemy import Column, Integer, String

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "secret",
        Column("name", String(63), primary_key=True),
        Column("value", String(64), nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.add_column("promotion", Column("chain", String(64)))
    op.add_column("lease", Column("boot", String(64)))
    op.add_column("lease", Column("generation", Integer, nullable=False, server_default="0"))
