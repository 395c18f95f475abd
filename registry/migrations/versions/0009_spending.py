"""What each look at test rows spent of their error budget, also if no verdict came of it."""

from alembic import op
from sqlalchemy import JSON, Column, Float, Integer, String, column, select, table

revision = "0009"
down_revision = "0008"

LOOK = table(
    "look",
    column("task", String),
    column("test_set", Integer),
    column("number", Integer),
    *(column(name, Float) for name in ("alpha", "spent", "budget")),
)
VERDICT = table("verdict", column("task", String), column("record", JSON))


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    for name in ("alpha", "spent", "budget"):
        op.add_column("look", Column(name, Float))
    op.execute("DROP TRIGGER look_no_update ON look" if postgresql else "DROP TRIGGER look_no_update")
    _fill()
    # what is unknown may be added once
    if postgresql:
        refuse = "FOR EACH ROW WHEN (OLD.alpha IS NOT NULL) EXECUTE FUNCTION ledger_append_only()"
    else:
        refuse = "WHEN OLD.alpha IS NOT NULL BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    op.execute(f"CREATE TRIGGER look_no_update BEFORE UPDATE ON look {refuse}")


def _fill() -> None:
    """Take what the looks spent from the verdicts; of a look without one it is unknown."""
    connection = op.get_bind()
    for task, record in connection.execute(select(VERDICT.c.task, VERDICT.c.record)).all():
        for look in (record.get("look"), (record.get("reveal") or {}).get("look")):
            if look:
                place = [LOOK.c.task == task, *(LOOK.c[name] == look[name] for name in ("test_set", "number"))]
                figures = {name: look[name] for name in ("alpha", "spent", "budget")}
                connection.execute(LOOK.update().where(*place).values(**figures))
