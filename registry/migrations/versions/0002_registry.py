"""Overrides and releases in the history, tombstones of what is collected, and what tells a person's edit in MLflow from
a late write of ours.
"""

from alembic import op
from sqlalchemy import JSON, Boolean, Column, Float, Integer, String, Text, false

revision = "0002"
down_revision = "0001"

IMMUTABLE = {
    "version_no_delete": "DELETE ON version",
    "release_no_update": "UPDATE ON release",
    "release_no_delete": "DELETE ON release",
}
TRUNCATED = ("promotion", "version", "release")


def upgrade() -> None:
    op.add_column("promotion", Column("override", Boolean, nullable=False, server_default=false()))
    op.add_column("promotion", Column("release", String(63)))
    op.create_table(
        "release",
        Column("name", String(63), primary_key=True),
        Column("actor", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("versions", JSON, nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.create_table(
        "tombstone",
        Column("task", String(63), primary_key=True),
        Column("digest", String(64), primary_key=True),
        Column("owner", String(200), nullable=False),
        Column("expires_at", Float, nullable=False),
        Column("at", String(32), nullable=False),
    )
    _mlflow()
    _immutable()


def _mlflow() -> None:
    op.create_table(
        "attempt",
        Column("task", String(63), primary_key=True),
        Column("alias", String(63), primary_key=True),
        Column("digest", String(64), primary_key=True),
        Column("owner", String(200), primary_key=True),
        Column("at", String(32), nullable=False),
    )
    op.create_table(
        "sighting",
        Column("task", String(63), primary_key=True),
        Column("alias", String(63), primary_key=True),
        Column("seq", Integer, nullable=False),
        Column("found", String(64), nullable=False),
        Column("seen_at", Float, nullable=False),
    )
    op.create_table("probe", Column("store", String(500), primary_key=True), Column("at", Float, nullable=False))


def _immutable() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for name, event in IMMUTABLE.items():
            op.execute(f"CREATE TRIGGER {name} BEFORE {event} FOR EACH ROW EXECUTE FUNCTION ledger_append_only()")
        for table in TRUNCATED:
            op.execute(
                f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION ledger_append_only()"
            )
        return
    for name, event in IMMUTABLE.items():
        op.execute(f"CREATE TRIGGER {name} BEFORE {event} BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END")
