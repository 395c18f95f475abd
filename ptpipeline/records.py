"""Frozen values that travel between the stages; each turns into JSON and names what it was made from.

    Snapshot -> TunedPrompt -> Report -> Verdict -> PromptVersion -> Promotion -> Pointer

Digests are lower-case hex sha256 over canonical JSON (RFC 8785).
"""

import hashlib
import re
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, NamedTuple

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from ptpipeline.errors import NotFound

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
PRODUCTION = "production"

Split = Literal["train", "dev", "test", "reserve"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")  # those that every snapshot has

LabelMetric = Literal["accuracy", "macro_f1", "mcc"]
TextMetric = Literal["exact_match", "token_f1", "rouge_l", "bleu", "chrf"]
Metric = Literal[LabelMetric, TextMetric]
LABEL_METRICS: tuple[LabelMetric, ...] = ("accuracy", "macro_f1", "mcc")
TEXT_METRICS: tuple[TextMetric, ...] = ("exact_match", "token_f1", "rouge_l", "bleu", "chrf")

Baseline = Literal["majority", "zero_shot", "hard_prompt"]
BASELINES: tuple[Baseline, ...] = ("majority", "zero_shot", "hard_prompt")


def title_of(metric: str) -> str:
    """Return the name of a metric, or of a baseline, for people."""
    named = {
        "macro_f1": "macro F1",
        "mcc": "MCC",
        "exact_match": "exact match",
        "token_f1": "token F1",
        "rouge_l": "ROUGE-L",
        "bleu": "BLEU",
        "chrf": "chrF",
    }
    named |= {"zero_shot": "zero-shot", "hard_prompt": "hard prompt"}
    return named.get(metric, metric)


def digest_of(value: Any) -> str:
    """Return the hex sha256 of the canonical JSON (RFC 8785) of a value."""
    return hashlib.sha256(rfc8785.dumps(value)).hexdigest()


def now() -> str:
    """Return the current time as ISO 8601 in UTC, with microseconds."""
    return datetime.now(UTC).isoformat()


def is_name(text: str) -> bool:
    """Tell whether `text` may name a task or an alias, and so become part of a key, a path or a URL."""
    return re.fullmatch(NAME_PATTERN, text) is not None


class Record(BaseModel):
    """A frozen value. Unknown fields are refused, so that an older reader never drops what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, for canonical digests and storage."""
        return self.model_dump(mode="json")


class Grown(Record):
    """A record that gained fields after some were stored.

    The fields in `LATER` are left out at their default, so that an older stored record keeps its digest.
    """

    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _serialized(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in fields.items()
            if name not in self.LATER or getattr(self, name) != type(self).model_fields[name].default
        }


# ---------------------------------------------------------------- data


class DataCheck(Record):
    """One ingest check: how many rows it found, and whether it warned or blocked."""

    name: str
    policy: Literal["block", "warn", "off"]
    count: int
    outcome: Literal["ok", "warned", "blocked", "off"]
    detail: str = ""


class SplitInfo(Grown):
    """One split of a snapshot; `digest` covers row identities, texts and labels (or targets) in file order.

    `labels` counts the rows of each label; it is empty for a generation task, whose targets are private texts. `slices`
    is the digest of the rows' slice values; it is not part of `digest`, so that a new slice column trains nothing.
    """

    LATER: ClassVar = frozenset({"slices"})

    rows: int
    labels: dict[str, int]
    digest: str
    slices: str | None = None


class Snapshot(Grown):
    """One immutable copy of a task's data, at `snapshots/<task>/<digest>/{train,dev,test}.parquet` + manifest.json.

    `source_key` identifies the source cheaply (package pin, or path with size and content hash, together with the
    task's data settings): an unchanged key means that no new snapshot is needed. `reserve` describes
    `reserve.parquet`, if the task holds rows back; `slices` names the slice columns.
    """

    LATER: ClassVar = frozenset({"reserve", "slices"})

    schema_version: Literal[1] = 1
    task: str
    digest: str
    source: str
    source_key: str
    train: SplitInfo
    dev: SplitInfo
    test: SplitInfo
    checks: list[DataCheck]
    reserve: SplitInfo | None = None
    slices: list[str] = []

    def split(self, name: Split) -> SplitInfo:
        """Return the split with that name. Raises NotFound if the snapshot has no reserve."""
        split: SplitInfo | None = getattr(self, name)
        if split is None:
            raise NotFound(
                f"snapshot {self.digest[:12]} of task {self.task} has no {name} split; set data.split.{name} "
                "to a share of the rows and ingest again"
            )
        return split

    def splits(self) -> dict[Split, SplitInfo]:
        """Return all its splits by name."""
        splits = {name: self.split(name) for name in SPLITS}
        return splits | ({"reserve": self.reserve} if self.reserve else {})


# ---------------------------------------------------------------- prompts


class BaseModelRef(Record):
    """A frozen base model: its name in base_models.yaml, its fingerprints and its width H."""

    name: str
    fingerprint: str
    tokenizer_fingerprint: str
    hidden_size: int


class TensorInfo(Record):
    """Shape and type of one tensor of an artifact."""

    shape: list[int]
    dtype: Literal["float16", "bfloat16", "float32"]


Method = Literal["prompt", "residual", "p_tuning", "prefix", "multitask", "ensemble"]
Placement = Literal["before_bos", "after_bos"]


class Members(Record):
    """The prompts of an ensemble, by digest, and how their answers are combined."""

    digests: list[str]
    combine: Literal["average", "vote"]


class Generation(Record):
    """How free text is decoded: greedily, up to `max_new_tokens`."""

    max_new_tokens: int = Field(default=64, ge=1, le=1024)


class Scoring(Record):
    """How labels are ranked: by log-likelihood, with two options.

    `length_normalised` divides a label's log-likelihood by its number of tokens; `calibrated` divides its probability
    by its mean probability after texts without content (Zhao et al. 2021, section 4).
    """

    length_normalised: bool = False
    calibrated: bool = False


class PromptManifest(Record):
    """Identity of a soft prompt: everything that its digest covers, `tensor_sha256` included.

    Stored as `prompts/<task>/<digest>/manifest.json`. It is written after `prompt.safetensors`, so its presence means
    that the artifact is complete. An ensemble has `members` and no tensors of its own.
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
    scoring: Scoring = Scoring()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values without later fields at their default: manifests written before keep their digest."""
        absent = {key for key in ("members", "generate") if getattr(self, key) is None} | (
            {"scoring"} if self.scoring == Scoring() else set()
        )
        return {key: value for key, value in super().to_json().items() if key not in absent}

    @property
    def answers(self) -> str:
        """The kind of answers, in words."""
        if self.generate is not None:
            return f"free text of at most {self.generate.max_new_tokens} tokens"
        return f"labels {', '.join(self.labels)}" if self.labels else "nothing by itself"

    def digest(self) -> str:
        """Return the prompt's identity."""
        return digest_of(self.to_json())


class CurvePoint(Record):
    """One line of the learning curve. Losses are means over the steps since the previous point.

    `dev` is the task's gate metric on the dev split, None if the step was not evaluated. Norms and gradient norms are
    per virtual token, [P].
    """

    step: int
    loss: float
    learning_rate: float
    dev: float | None = None
    token_norms: list[float] = []
    token_gradients: list[float] = []


class Trial(Record):
    """One prompt that trained for a search or an ensemble. `best_dev` is None if it failed; `error` says why."""

    name: str
    best_dev: float | None
    best_step: int
    error: str | None = None


class TunedPrompt(Record):
    """The outcome of one task's training; its bytes lie in the object store under `digest`.

    `trials` are all prompts of a search or an ensemble; `warnings` is the advice on the recipe.
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


class Reliability(NamedTuple):
    """One bin of a reliability diagram: mean probability of the predicted label, share of right answers, rows."""

    confidence: float
    accuracy: float
    rows: int


class Scores(Grown):
    """Metrics of one set of predictions over one split; confusion[true][predicted] counts rows.

    `calibration_error` is the expected difference between the predicted label's probability and the share of right
    answers, over the bins of `reliability`. Both are absent if the answers have no probabilities.
    """

    LATER: ClassVar = frozenset({"mcc", "calibration_error", "reliability"})

    accuracy: float
    macro_f1: float
    per_label: dict[str, dict[str, float]]
    confusion: dict[str, dict[str, int]]
    predicted: dict[str, int]
    mcc: float | None = None
    calibration_error: float | None = None
    reliability: list[Reliability] = []

    def figures(self) -> dict[str, float]:
        """Every metric that a gate may name; one that came after these were measured is left out."""
        return {metric: value for metric in LABEL_METRICS if (value := getattr(self, metric)) is not None}


class TextScores(Grown):
    """Metrics of generated texts against one split's targets.

    `bleu` and `chrf` are corpus figures divided by 100; the others are means over rows. `most_frequent_share` is the
    share of rows with the most frequent answer: it is near 1 if a prompt ignores its text.
    """

    LATER: ClassVar = frozenset({"chrf"})

    exact_match: float
    token_f1: float
    rouge_l: float
    bleu: float
    most_frequent_share: float
    chrf: float | None = None

    def figures(self) -> dict[str, float]:
        """Every metric that a gate may name; one that came after these were measured is left out."""
        return {metric: value for metric in TEXT_METRICS if (value := getattr(self, metric)) is not None}


class Report(Grown):
    """One prompt measured on the rows of a split, from its stored bytes through the serving path, beside its baselines.

    `rows_key` is the object with one line per measured row: id, tokens of the text, slices, and label, prediction and
    log-likelihood per label (metrics for a generation task), but no text. `baselines` are the evaluation keys of the
    baselines' own reports, by kind. `measures` are the results of the probes, `probed` the digest of their settings. A
    baseline's report repeats its own scores as `zero_shot` and `majority`.
    """

    LATER: ClassVar = frozenset({"hard_prompt", "baselines", "split", "measures", "probed"})

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
    hard_prompt: Scores | TextScores | None = None
    baselines: dict[str, str] = {}
    split: Split = "test"
    measures: dict[str, float] = {}
    probed: str = ""


class PairedDifference(Grown):
    """Challenger minus champion, baseline or anchor, on the rows that can judge both; `dropped` counts the others.

    `lower` and `upper` are one-sided bounds at `confidence` each. `p_value` is the chance of this difference or a
    greater one if the true difference is `-margin`, by the named `test`.
    """

    LATER: ClassVar = frozenset({"p_value", "margin", "test", "discordant"})

    metric: str
    difference: float
    lower: float
    upper: float
    confidence: float
    rows: int
    dropped: int
    p_value: float | None = None
    margin: float = 0.0
    test: str = ""
    discordant: float | None = None


class SliceDifference(Record):
    """Challenger minus champion on a part of the rows, as the mean of a metric per row.

    `p_harm` is the chance of this difference or a smaller one if the challenger is not worse.
    """

    name: str
    rows: int
    difference: float
    p_harm: float


class Look(Record):
    """One decision about a candidate by a set of test rows; `number` counts the looks at rows of that set.

    `alpha` is this look's share of the error budget `budget`; `spent` is the sum of this and all earlier shares.
    """

    test_set: int
    number: int
    alpha: float
    spent: float
    budget: float


class Check(Grown):
    """One line of a verdict: what was observed, what was required, and whether a failure blocks or only warns."""

    LATER: ClassVar = frozenset({"policy"})

    name: str
    passed: bool
    observed: str
    required: str
    policy: Literal["block", "warn"] = "block"

    @property
    def blocks(self) -> bool:
        """True if the verdict fails because of it."""
        return not self.passed and self.policy == "block"


class Verdict(Grown):
    """The gate's decision. It binds version, policy, test rows and champion by digest.

    `won` says what a passed candidate showed: that it is `superior` to the champion (to all baselines, if there was no
    champion), or that it is `not inferior`. `baselines` and `anchor` are the comparisons beside the champion,
    `measures` the numbers that the other checks judged.
    """

    LATER: ClassVar = frozenset({"look", "won", "baselines", "anchor", "slices", "measures"})

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
    look: Look | None = None
    won: Literal["superior", "not inferior"] | None = None
    baselines: dict[str, PairedDifference] = {}
    anchor: PairedDifference | None = None
    slices: list[SliceDifference] = []
    measures: dict[str, float] = {}

    def verdict_digest(self) -> str:
        """Return the identity of the decision, as promotions cite it."""
        return digest_of(self.to_json())

    def comparisons(self) -> dict[str, PairedDifference]:
        """Return all comparisons by name: the champion, the anchor, and the baselines."""
        versions = {"champion": self.comparison, "anchor": self.anchor}
        return {name: pair for name, pair in versions.items() if pair is not None} | {
            title_of(name): pair for name, pair in self.baselines.items()
        }

    def failures(self) -> list[Check]:
        """Return the checks that made the verdict fail."""
        return [check for check in self.checks if check.blocks]

    def warnings(self) -> list[Check]:
        """Return the checks that failed without blocking."""
        return [check for check in self.checks if not check.passed and not check.blocks]


# ---------------------------------------------------------------- registry


class PromptVersion(Record):
    """An immutable registered prompt, numbered per task by the ledger. MLflow's names for it are replaceable.

    `collected` says that the garbage collection deleted its bytes, or is about to; the number is not reused.
    """

    task: str
    number: int
    digest: str
    verdict: str | None
    passed: bool | None
    registered_at: str
    collected: bool = False


class Promotion(Grown):
    """One row of the append-only ledger that moves an alias; seq counts from 1 per (task, alias).

    `override` says that a person promoted it although the gate refused it; `release` names the set of versions that was
    promoted together.
    """

    LATER: ClassVar = frozenset({"override", "release"})

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


class Pointer(Record):
    """The object that serving reads, `prompts/<task>/aliases/<alias>.json`: a whole promotion row.

    The nonce makes equal promotions differ in bytes, because an ETag is a hash of the content.
    """

    schema_version: Literal[1] = 1
    promotion: Promotion
    nonce: str = Field(min_length=16)


class VersionName(Record):
    """The digest of a version's number, at `prompts/<task>/versions/<number>.json`, for readers without the ledger."""

    schema_version: Literal[1] = 1
    task: str
    number: int
    digest: str


# ---------------------------------------------------------------- serving


class Holding(NamedTuple):
    """A prompt that a server has loaded."""

    task: str
    digest: str


class ServerReport(Record):
    """The prompts that a server has loaded, at `servers/<server>.json`; after a restart it may need their bytes
    again.
    """

    schema_version: Literal[1] = 1
    server: str
    at: str
    holds: list[Holding]


class Answer(Record):
    """One prediction and the version that made it: a label with all probabilities, or the text of a generation task."""

    label: str | None
    probabilities: dict[str, float]
    version: str
    digest: str
    text: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values without the fields of the other kind of task."""
        absent = ("label", "probabilities") if self.text is not None else ("text",)
        return {key: value for key, value in super().to_json().items() if key not in absent}
