"""The ledger's tables as SQLAlchemy describes them; the migrations create them.

`version` numbers what is registered, `promotion` is the append-only history of every alias, `intent` names what is being
published, `projection` says how far MLflow and the object store follow, and the rest remembers stages that need not run
again.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA = "0001"

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
    ForeignKeyConstraint(["task", "version"], ["version.task", "version.number"], name="promotion_version"),
)

intent = Table(
    "intent",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("digest", String(64), primary_key=True),
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

lease = Table(
    "lease",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("expires_at", Float, nullable=False),
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
