"""The frozen values that travel between the stages; each is JSON-able and names what it was made from.

    Snapshot -> TunedPrompt -> Report -> Verdict -> PromptVersion -> Promotion -> Pointer

Digests are lower-case hex sha256 over canonical JSON (RFC 8785).
"""

import hashlib
import re
from datetime import UTC, datetime
from typing import Any, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
PRODUCTION = "production"

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def digest_of(value: Any) -> str:
    """sha256 over the canonical JSON (RFC 8785) of a JSON-able value."""
    return hashlib.sha256(rfc8785.dumps(value)).hexdigest()


def now() -> str:
    """The current time as ISO 8601 in UTC, microseconds included."""
    return datetime.now(UTC).isoformat()


def is_name(text: str) -> bool:
    """Whether `text` may name a task or an alias, and so become part of a key, a path or a URL."""
    return re.fullmatch(NAME_PATTERN, text) is not None


class Record(BaseModel):
    """A frozen value; unknown fields are refused so that an older reader never drops what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for canonical digests and storage."""
        return self.model_dump(mode="json")


# ---------------------------------------------------------------- data


class DataCheck(Record):
    """One ingest check: how many rows it concerns, what was done, and whether it blocks."""

    name: str
    policy: Literal["block", "warn", "off"]
    count: int
    outcome: Literal["ok", "warned", "blocked", "off"]
    detail: str = ""


class SplitInfo(Record):
    """One split of a snapshot; `digest` covers row identities, texts and labels in file order."""

    rows: int
    labels: dict[str, int]
    digest: str


class Snapshot(Record):
    """One immutable copy of a task's data, at `snapshots/<task>/<digest>/{train,dev,test}.parquet` + manifest.json.

    `source_key` identifies the source cheaply (package pin, or path with size and content hash, together with the
    task's data settings): an unchanged key means that no new snapshot is needed.
    """

    schema_version: Literal[1] = 1
    task: str
    digest: str
    source: str
    source_key: str
    train: SplitInfo
    dev: SplitInfo
    test: SplitInfo
    checks: list[DataCheck]

    def split(self, name: Split) -> SplitInfo:
        """The split of that name."""
        found: SplitInfo = getattr(self, name)
        return found


# ---------------------------------------------------------------- prompts


class BaseModelRef(Record):
    """Which frozen model: its name in base_models.yaml and what it must hash to."""

    name: str
    fingerprint: str
    tokenizer_fingerprint: str
    hidden_size: int


class TensorInfo(Record):
    """One tensor of an artifact as its manifest states it."""

    shape: list[int]
    dtype: Literal["float16", "bfloat16", "float32"]


class PromptManifest(Record):
    """Identity of a soft prompt: everything that its digest covers, `tensor_sha256` among it.

    Stored as `prompts/<task>/<digest>/manifest.json`, written after `prompt.safetensors`, so its presence
    means that the artifact is complete.
    """

    schema_version: Literal[1] = 1
    task: str
    method: Literal["prompt"]
    num_virtual_tokens: int
    placement: Literal["before_bos"]
    base_model: BaseModelRef
    template: str
    labels: dict[str, str]
    max_input_tokens: int
    snapshot: str
    recipe: str
    training_key: str
    seed: int
    engine_version: int
    parents: list[str] = []
    tensors: dict[str, TensorInfo]
    tensor_sha256: str

    def digest(self) -> str:
        """The prompt's identity."""
        return digest_of(self.to_json())


def prompt_prefix(task: str, digest: str) -> str:
    """Where the artifact of that digest lies in the object store."""
    return f"prompts/{task}/{digest}"


class CurvePoint(Record):
    """One line of the learning curve. Losses are means over the steps since the previous point.

    `dev` is the task's gate metric on the dev split, None where the step was not evaluated; norms and gradient norms
    are per virtual token, [P].
    """

    step: int
    loss: float
    learning_rate: float
    dev: float | None = None
    token_norms: list[float] = []
    token_gradients: list[float] = []


class TunedPrompt(Record):
    """The outcome of one gang member's training; its bytes lie in the object store under `digest`."""

    task: str
    digest: str
    training_key: str
    snapshot: str
    bytes: int
    steps: int
    best_step: int
    best_dev: float
    stopped_early: bool
    seconds: float
    tokens_per_second: float
    compute_dtype: str
    self_check: dict[str, float | str]
    curve: list[CurvePoint]
    tracking_run: str | None = None


# ---------------------------------------------------------------- evaluation and gate


class Scores(Record):
    """Metrics of one set of predictions over one split; confusion[true][predicted] counts rows."""

    accuracy: float
    macro_f1: float
    per_label: dict[str, dict[str, float]]
    confusion: dict[str, dict[str, int]]
    predicted: dict[str, int]


class Report(Record):
    """One prompt measured on the test split, from its stored bytes through the serving path.

    `rows_key` is the object that holds one row per test row: id, label, prediction, log-likelihood per label.
    """

    task: str
    digest: str
    evaluation_key: str
    snapshot: str
    test_digest: str
    rows: int
    rows_key: str
    prompt: Scores
    zero_shot: Scores
    majority: Scores
    interval: dict[str, tuple[float, float]]
    compute_dtype: str
    seconds: float


class PairedDifference(Record):
    """Challenger minus champion on the rows both can be judged on, with a paired bootstrap interval."""

    metric: str
    difference: float
    lower: float
    upper: float
    confidence: float
    rows: int
    dropped: int


class Check(Record):
    """One line of a verdict: what was observed, what was required, and whether that suffices."""

    name: str
    passed: bool
    observed: str
    required: str


class Verdict(Record):
    """The gate's decision. It binds version, policy, test rows and champion by digest."""

    task: str
    digest: str
    gate_key: str
    policy: str
    evaluation_key: str
    test_digest: str
    champion: str | None
    comparison: PairedDifference | None
    checks: list[Check]
    passed: bool

    def verdict_digest(self) -> str:
        """Identity of the decision, as promotions cite it."""
        return digest_of(self.to_json())

    def failures(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]


# ---------------------------------------------------------------- registry


class PromptVersion(Record):
    """An immutable registered prompt; the ledger numbers it per task. MLflow's names for it are replaceable."""

    task: str
    number: int
    digest: str
    verdict: str | None
    passed: bool | None
    registered_at: str


class Promotion(Record):
    """One row of the append-only ledger that moves an alias; seq counts from 1 per (task, alias)."""

    task: str
    alias: str
    seq: int
    version: int
    digest: str
    previous: int | None
    actor: str
    reason: str
    verdict: str | None
    at: str


class Pointer(Record):
    """What serving reads: `prompts/<task>/aliases/<alias>.json`, the whole promotion row.

    The nonce makes equal promotions differ in bytes, because an ETag is a hash of the content.
    """

    schema_version: Literal[1] = 1
    promotion: Promotion
    nonce: str = Field(min_length=16)


def pointer_key(task: str, alias: str) -> str:
    """Where the pointer of an alias lies in the object store."""
    return f"prompts/{task}/aliases/{alias}.json"


class VersionName(Record):
    """What a version's number stands for, at `prompts/<task>/versions/<number>.json`: for readers without the ledger."""

    schema_version: Literal[1] = 1
    task: str
    number: int
    digest: str


def version_key(task: str, number: int) -> str:
    """Where the name of a numbered version lies in the object store."""
    return f"prompts/{task}/versions/{number}.json"


# ---------------------------------------------------------------- serving


class Answer(Record):
    """One prediction: label, probability of every label, and the version that answered."""

    label: str
    probabilities: dict[str, float]
    version: str
    digest: str
