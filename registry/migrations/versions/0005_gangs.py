"""The gang that a task trains in, so that another process can go on with it."""

from alembic import op
from sqlalchemy import Column, String

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("lease", Column("gang", String(64)))
