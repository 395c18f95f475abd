"""Nights: when each ran, what began it, and what it came to for each task."""

from alembic import op
from sqlalchemy import Column, Float, Integer, String, Text

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "night",
        Column("id", String(64), primary_key=True),
        Column("flow", String(63), nullable=False),
        Column("cause", Text, nullable=False),
        Column("page", Text),
        Column("started", String(32), nullable=False, index=True),
        Column("ended", String(32)),
        Column("state", String(63)),
    )
    op.create_table(
        "night_task",
        Column("night", String(64), primary_key=True),
        Column("task", String(63), primary_key=True),
        Column("status", String(63), nullable=False),
        Column("reason", Text, nullable=False),
        Column("verdict", Text),
        Column("version", Integer),
        Column("rows", Integer),
        Column("tokens", Integer),
        Column("seconds", Float),
        Column("processor_seconds", Float),
        Column("at", String(32), nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        function = "EXECUTE FUNCTION ledger_append_only()"
        ended = "FOR EACH ROW WHEN (OLD.ended IS NOT NULL)"
        op.execute(f"CREATE TRIGGER night_no_update BEFORE UPDATE ON night {ended} {function}")
        op.execute(f"CREATE TRIGGER night_no_delete BEFORE DELETE ON night FOR EACH ROW {function}")
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER night_task_no_{event.lower()} BEFORE {event} ON night_task FOR EACH ROW {function}"
            )
        for table in ("night", "night_task"):
            op.execute(f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} {function}")
        return
    refuse = "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    op.execute(f"CREATE TRIGGER night_no_update BEFORE UPDATE ON night WHEN OLD.ended IS NOT NULL {refuse}")
    op.execute(f"CREATE TRIGGER night_no_delete BEFORE DELETE ON night {refuse}")
    for event in ("UPDATE", "DELETE"):
        op.execute(f"CREATE TRIGGER night_task_no_{event.lower()} BEFORE {event} ON night_task {refuse}")
