"""Approvals of candidates, and what is told to others: events and their deliveries."""

from alembic import op
from sqlalchemy import JSON, Boolean, Column, Float, ForeignKeyConstraint, Integer, String, Text

revision = "0006"
down_revision = "0005"

APPEND_ONLY = ("approval_request", "approval", "event")


def upgrade() -> None:
    _approvals()
    _events()
    postgresql = op.get_bind().dialect.name == "postgresql"
    does = (
        "FOR EACH ROW EXECUTE FUNCTION ledger_append_only()"
        if postgresql
        else "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    )
    for table in APPEND_ONLY:
        for event in ("UPDATE", "DELETE"):
            op.execute(f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} {does}")
        if postgresql:
            op.execute(
                f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION ledger_append_only()"
            )


def _approvals() -> None:
    op.create_table(
        "approval_request",
        Column("task", String(63), primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("version", Integer, nullable=False),
        Column("digest", String(64), nullable=False),
        Column("verdict", String(64), nullable=False),
        Column("started_by", Text, nullable=False),
        Column("asked", Float, nullable=False),
        Column("expires", Float, nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.create_index("approval_candidate", "approval_request", ["task", "digest"])
    op.create_table(
        "approval",
        Column("task", String(63), primary_key=True),
        Column("request", Integer, primary_key=True, autoincrement=False),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("approved", Boolean, nullable=False),
        Column("actor", Text, nullable=False),
        Column("key", String(16)),
        Column("reason", Text, nullable=False),
        Column("at", String(32), nullable=False),
        ForeignKeyConstraint(
            ["task", "request"], ["approval_request.task", "approval_request.number"], name="approval_of_request"
        ),
    )


def _events() -> None:
    op.create_table(
        "event",
        Column("seq", Integer, primary_key=True),
        Column("id", String(64), nullable=False, unique=True),
        Column("kind", String(32), nullable=False),
        Column("record", JSON, nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.create_table(
        "subscriber",
        Column("target", String(63), primary_key=True),
        Column("since", Integer, nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.create_table(
        "delivery",
        Column("event", Integer, primary_key=True, autoincrement=False),
        Column("target", String(63), primary_key=True),
        Column("attempts", Integer, nullable=False),
        Column("due", Float, nullable=False),
        Column("delivered", String(32)),
    )
