"""The frozen values that travel between the stages; each is JSON-able and names what it was made from.

    Snapshot -> TunedPrompt -> Report -> Verdict -> PromptVersion -> Promotion -> Pointer

Digests are lower-case hex sha256 over canonical JSON (RFC 8785).
"""

import hashlib
import re
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
PRODUCTION = "production"

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

LabelMetric = Literal["accuracy", "macro_f1"]
TextMetric = Literal["exact_match", "token_f1", "rouge_l", "bleu"]
Metric = Literal[LabelMetric, TextMetric]
LABEL_METRICS: tuple[LabelMetric, ...] = ("accuracy", "macro_f1")
TEXT_METRICS: tuple[TextMetric, ...] = ("exact_match", "token_f1", "rouge_l", "bleu")


def title_of(metric: str) -> str:
    """A metric's name for people."""
    return {"macro_f1": "macro F1", "exact_match": "exact match", "token_f1": "token F1", "rouge_l": "ROUGE-L", "bleu": "BLEU"}.get(metric, metric)


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
    """One split of a snapshot; `digest` covers row identities, texts and labels (or targets) in file order.

    `labels` counts the rows of each label; it is empty for a generation task, whose targets are private texts.
    """

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


Method = Literal["prompt", "residual", "p_tuning", "prefix", "multitask", "ensemble"]
Placement = Literal["before_bos", "after_bos"]


class Members(Record):
    """What an ensemble consists of: the digests of its prompts, and how their answers become one."""

    digests: list[str]
    combine: Literal["average", "vote"]


class Generation(Record):
    """How a task that answers in free text is decoded: greedily, up to so many new tokens."""

    max_new_tokens: int = Field(default=64, ge=1, le=1024)


class PromptManifest(Record):
    """Identity of a soft prompt: everything that its digest covers, `tensor_sha256` among it.

    Stored as `prompts/<task>/<digest>/manifest.json`, written after `prompt.safetensors`, so its presence
    means that the artifact is complete. An ensemble has `members` and no tensors of its own.
    """

    schema_version: Literal[1] = 1
    task: str
    method: Method
    num_virtual_tokens: int
    placement: Placement
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
    members: Members | None = None
    generate: Generation | None = None

    def to_json(self) -> dict[str, Any]:
        """Without the fields that came later where they are None: manifests written before keep their digest."""
        return {key: value for key, value in super().to_json().items() if key not in ("members", "generate") or value is not None}

    @property
    def answers(self) -> str:
        """What it answers, in words."""
        if self.generate is not None:
            return f"free text of at most {self.generate.max_new_tokens} tokens"
        return f"labels {', '.join(self.labels)}" if self.labels else "nothing by itself"

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


class Trial(Record):
    """One prompt that trained for a recipe with a search or an ensemble. `best_dev` is None where it failed, for `error`."""

    name: str
    best_dev: float | None
    best_step: int
    error: str | None = None


class TunedPrompt(Record):
    """The outcome of one task's training; its bytes lie in the object store under `digest`.

    `trials` are all prompts of a search or an ensemble, `warnings` what the recipe was told about itself.
    """

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
    trials: list[Trial] = []
    warnings: list[str] = []


# ---------------------------------------------------------------- evaluation and gate


class Scores(Record):
    """Metrics of one set of predictions over one split; confusion[true][predicted] counts rows."""

    accuracy: float
    macro_f1: float
    per_label: dict[str, dict[str, float]]
    confusion: dict[str, dict[str, int]]
    predicted: dict[str, int]

    def figures(self) -> dict[str, float]:
        """Every metric that a gate may name."""
        return {metric: getattr(self, metric) for metric in LABEL_METRICS}


class TextScores(Record):
    """Metrics of generated texts against one split's targets; `bleu` is corpus BLEU / 100, the others are means over rows.

    `most_frequent_share` is the share of rows that got the answer given most often: near 1 where a prompt ignores its text.
    """

    exact_match: float
    token_f1: float
    rouge_l: float
    bleu: float
    most_frequent_share: float

    def figures(self) -> dict[str, float]:
        """Every metric that a gate may name."""
        return {metric: getattr(self, metric) for metric in TEXT_METRICS}


class Report(Record):
    """One prompt measured on the test split, from its stored bytes through the serving path.

    `rows_key` is the object that holds one row per test row: id, label, prediction, log-likelihood per label; of a
    generation task id and metrics, no texts.
    """

    task: str
    digest: str
    evaluation_key: str
    snapshot: str
    test_digest: str
    rows: int
    rows_key: str
    prompt: Scores | TextScores
    zero_shot: Scores | TextScores
    majority: Scores | TextScores
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
    """An immutable registered prompt; the ledger numbers it per task. MLflow's names for it are replaceable.

    `collected` says that the garbage collection deleted its bytes, or is about to: the number stays its own.
    """

    task: str
    number: int
    digest: str
    verdict: str | None
    passed: bool | None
    registered_at: str
    collected: bool = False


class Promotion(Record):
    """One row of the append-only ledger that moves an alias; seq counts from 1 per (task, alias).

    `override` says that a person answered for what the gate refused; `release` names the set that was promoted together.
    """

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
    override: bool = False
    release: str | None = None

    @model_serializer(mode="wrap")
    def _serialized(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what few promotions have, so that older readers of pointers understand the others."""
        found: dict[str, Any] = handler(self)
        return {name: value for name, value in found.items() if name not in ("override", "release") or value}


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


def history_key(task: str, alias: str, seq: int) -> str:
    """Where a row of the alias's history lies in the object store, for the day when the ledger is lost."""
    return f"prompts/{task}/history/{alias}/{seq:06d}.json"


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


class Holding(NamedTuple):
    """A prompt that a server holds."""

    task: str
    digest: str


class ServerReport(Record):
    """What a server holds at one time, at `servers/<server>.json`: it may need these bytes again when it starts anew."""

    schema_version: Literal[1] = 1
    server: str
    at: str
    holds: list[Holding]


class Answer(Record):
    """One prediction: label and probability of every label, or the text of a generation task; and the version that answered."""

    label: str | None
    probabilities: dict[str, float]
    version: str
    digest: str
    text: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what the task's kind does not have."""
        absent = ("label", "probabilities") if self.text is not None else ("text",)
        return {key: value for key, value in super().to_json().items() if key not in absent}
