"""The version that an alias names beside its own: a canary, or a shadow."""

from alembic import op
from sqlalchemy import JSON, Column

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("promotion", Column("beside", JSON(none_as_null=True)))
