"""The ledger's tables as SQLAlchemy describes them; the migrations create them.

`version` numbers what is registered, `promotion` is the append-only history of every alias, `release` names promotions
that were made together, `test_set` and `look` count how often which test rows decided. `approval_request` says which
candidate waits for people, `approval` what they decided. `event` is what happened and is told to others, `subscriber`
since when a target is told, `delivery` what it was told. `intent` names what is being published and `tombstone` what is
being collected. `projection` says which promotion MLflow and the object store show, `attempt` which writes to MLflow's
aliases may still be under way, `sighting` which of its aliases differed, `lease` who may write a projection or work on
a task, `judged` when a task last came to a verdict, `probe` when an object store was last tested, `secret` what seals
stored bytes, `night` and `night_task` what the nights came to. The rest keeps results of stages, so that they need not
run again.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from ptpipeline.records.versions import Promotion

SCHEMA = "0009"

metadata = MetaData()

version = Table(
    "version",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("at", String(32), nullable=False),
    UniqueConstraint("task", "digest", name="version_digest"),
)

promotion = Table(
    "promotion",
    metadata,
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
    Column("override", Boolean, nullable=False, server_default=false()),
    Column("release", String(63)),
    Column("chain", String(64)),
    Column("beside", JSON(none_as_null=True)),
    ForeignKeyConstraint(["task", "version"], ["version.task", "version.number"], name="promotion_version"),
)

intent = Table(
    "intent",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("at", String(32), nullable=False),
)

tombstone = Table(
    "tombstone",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("at", String(32), nullable=False),
)

approval_request = Table(
    "approval_request",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("verdict", String(64), nullable=False),
    Column("started_by", Text, nullable=False),
    Column("asked", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("at", String(32), nullable=False),
    Index("approval_candidate", "task", "digest"),
)

approval = Table(
    "approval",
    metadata,
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

event = Table(
    "event",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
    Column("record", JSON, nullable=False),
    Column("at", String(32), nullable=False),
)

subscriber = Table(
    "subscriber",
    metadata,
    Column("target", String(63), primary_key=True),
    Column("since", Integer, nullable=False),
    Column("at", String(32), nullable=False),
)

delivery = Table(
    "delivery",
    metadata,
    Column("event", Integer, primary_key=True, autoincrement=False),
    Column("target", String(63), primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("due", Float, nullable=False),
    Column("delivered", String(32)),
)

judged = Table(
    "judged",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("at", String(32), nullable=False),
)

release = Table(
    "release",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("at", String(32), nullable=False),
)

publication = Table(
    "publication",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("record", JSON, nullable=False),
    Column("at", String(32), nullable=False),
)

projection = Table(
    "projection",
    metadata,
    Column("target", String(16), primary_key=True),
    Column("task", String(63), primary_key=True),
    Column("alias", String(63), primary_key=True),
    Column("applied_seq", Integer, nullable=False),
    Column("applied_version", Integer, nullable=False),
    Column("at", String(32), nullable=False),
)

attempt = Table(
    "attempt",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("alias", String(63), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("owner", String(200), primary_key=True),
    Column("at", String(32), nullable=False),
)

sighting = Table(
    "sighting",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("alias", String(63), primary_key=True),
    Column("seq", Integer, nullable=False),
    Column("found", String(64), nullable=False),
    Column("seen_at", Float, nullable=False),
)

probe = Table(
    "probe",
    metadata,
    Column("store", String(500), primary_key=True),
    Column("at", Float, nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("boot", String(64)),
    Column("generation", Integer, nullable=False, server_default="0"),
    Column("gang", String(64)),
)

secret = Table(
    "secret",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("value", String(64), nullable=False),
    Column("at", String(32), nullable=False),
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("source_key", String(200), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("record", JSON, nullable=False),
    Column("at", String(32), nullable=False),
)

training = Table(
    "training",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("training_key", String(64), primary_key=True),
    Column("record", JSON, nullable=False),
    Column("at", String(32), nullable=False),
)

evaluation = Table(
    "evaluation",
    metadata,
    Column("evaluation_key", String(64), primary_key=True),
    Column("task", String(63), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("record", JSON, nullable=False),
    Column("at", String(32), nullable=False),
    Index("evaluation_digest", "task", "digest"),
)

verdict = Table(
    "verdict",
    metadata,
    Column("verdict", String(64), primary_key=True),
    Column("gate_key", String(64), nullable=False),
    Column("task", String(63), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("record", JSON, nullable=False),
    Column("at", String(32), nullable=False),
    Index("verdict_gate", "gate_key"),
    Index("verdict_digest", "task", "digest", "at"),
)

test_set = Table(
    "test_set",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("rows", LargeBinary, nullable=False),
    Column("at", String(32), nullable=False),
)

look = Table(
    "look",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("test_set", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("question", String(64), nullable=False),
    Column("at", String(32), nullable=False),
    Column("alpha", Float),
    Column("spent", Float),
    Column("budget", Float),
    UniqueConstraint("task", "question", name="look_question"),
)

night = Table(
    "night",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("flow", String(63), nullable=False),
    Column("cause", Text, nullable=False),
    Column("page", Text),
    Column("started", String(32), nullable=False, index=True),
    Column("ended", String(32)),
    Column("state", String(63)),
)

night_task = Table(
    "night_task",
    metadata,
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


def promotion_columns(promotion: Promotion) -> dict[str, Any]:
    """Return the promotion as the columns of its row, also what its JSON leaves out."""
    return dict(promotion) | {"beside": promotion.beside.to_json() if promotion.beside else None}


def read_revision(connection: Connection) -> str:
    """Return the revision of the schema of a database that holds a ledger."""
    return str(connection.scalar(text("SELECT version_num FROM alembic_version")))
