"""How often which test rows decided about a candidate."""

from alembic import op
from sqlalchemy import Column, Integer, LargeBinary, String, UniqueConstraint

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "test_set",
        Column("task", String(63), primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("rows", LargeBinary, nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.create_table(
        "look",
        Column("task", String(63), primary_key=True),
        Column("test_set", Integer, primary_key=True, autoincrement=False),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("question", String(64), nullable=False),
        Column("at", String(32), nullable=False),
        UniqueConstraint("task", "question", name="look_question"),
    )
    if op.get_bind().dialect.name == "postgresql":
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER look_no_{event.lower()} BEFORE {event} ON look FOR EACH ROW EXECUTE FUNCTION "
                "ledger_append_only()"
            )
        op.execute("CREATE TRIGGER look_no_truncate BEFORE TRUNCATE ON look EXECUTE FUNCTION ledger_append_only()")
        return
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER look_no_{event.lower()} BEFORE {event} ON look BEGIN SELECT RAISE(ABORT, 'the "
            "ledger is append-only'); END"
        )
