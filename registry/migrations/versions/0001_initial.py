"""The first schema: versions, promotions, intents, projections, leases, and what each stage remembers."""

from alembic import op
from sqlalchemy import JSON, Boolean, Column, Float, ForeignKeyConstraint, Integer, String, Text, UniqueConstraint

revision = "0001"
down_revision = None

IMMUTABLE = {
    "promotion_no_update": "UPDATE ON promotion",
    "promotion_no_delete": "DELETE ON promotion",
    "version_no_update": "UPDATE ON version",
}
REFUSE = (
    "CREATE FUNCTION ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the "
    "ledger is append-only'; END $$"
)


def upgrade() -> None:
    _registry()
    _projections()
    _memory()
    if op.get_bind().dialect.name == "postgresql":
        op.execute(REFUSE)
        for name, event in IMMUTABLE.items():
            op.execute(f"CREATE TRIGGER {name} BEFORE {event} FOR EACH ROW EXECUTE FUNCTION ledger_append_only()")
        return
    for name, event in IMMUTABLE.items():
        op.execute(f"CREATE TRIGGER {name} BEFORE {event} BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END")


def _registry() -> None:
    op.create_table(
        "version",
        Column("task", String(63), primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("digest", String(64), nullable=False),
        Column("at", String(32), nullable=False),
        UniqueConstraint("task", "digest", name="version_digest"),
    )
    op.create_table(
        "promotion",
        Column("task", String(63), primary_key=True),
        Column("alias", String(63), primary_key=True),
        Column("seq", Integer, primary_key=True, autoincrement=False),
        Column("version", Integer, nullable=False),
        Column("digest", String(64), nullable=False),
        Column("previous", Integer),
        Column("actor", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("verdict", String(64)),
        Column("at", String(32), nullable=False),
        ForeignKeyConstraint(["task", "version"], ["version.task", "version.number"], name="promotion_version"),
    )
    op.create_table(
        "intent",
        Column("task", String(63), primary_key=True),
        Column("digest", String(64), primary_key=True),
        Column("at", String(32), nullable=False),
    )
    op.create_table(
        "publication",
        Column("task", String(63), primary_key=True),
        Column("digest", String(64), primary_key=True),
        Column("record", JSON, nullable=False),
        Column("at", String(32), nullable=False),
    )


def _projections() -> None:
    op.create_table(
        "projection",
        Column("target", String(16), primary_key=True),
        Column("task", String(63), primary_key=True),
        Column("alias", String(63), primary_key=True),
        Column("applied_seq", Integer, nullable=False),
        Column("applied_version", Integer, nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.create_table(
        "lease",
        Column("name", String(200), primary_key=True),
        Column("owner", String(200), nullable=False),
        Column("expires_at", Float, nullable=False),
    )


def _memory() -> None:
    op.create_table(
        "snapshot",
        Column("task", String(63), primary_key=True),
        Column("source_key", String(200), primary_key=True),
        Column("digest", String(64), nullable=False),
        Column("record", JSON, nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.create_table(
        "training",
        Column("task", String(63), primary_key=True),
        Column("training_key", String(64), primary_key=True),
        Column("record", JSON, nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.create_table(
        "evaluation",
        Column("evaluation_key", String(64), primary_key=True),
        Column("task", String(63), nullable=False),
        Column("digest", String(64), nullable=False),
        Column("record", JSON, nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.create_index("evaluation_digest", "evaluation", ["task", "digest"])
    op.create_table(
        "verdict",
        Column("verdict", String(64), primary_key=True),
        Column("gate_key", String(64), nullable=False),
        Column("task", String(63), nullable=False),
        Column("digest", String(64), nullable=False),
        Column("passed", Boolean, nullable=False),
        Column("record", JSON, nullable=False),
        Column("at", String(32), nullable=False),
    )
    op.create_index("verdict_gate", "verdict", ["gate_key"])
    op.create_index("verdict_digest", "verdict", ["task", "digest", "at"])
