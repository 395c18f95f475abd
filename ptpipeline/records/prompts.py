"""A soft prompt: its manifest, and how it was trained."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from ptpipeline.records.base import Count, Grown, Key, Record, digest_of

MAX_NEW_TOKENS = 1024  # of a generated text


class BaseModelRef(Record):
    """A frozen base model: its name in base_models.yaml, its fingerprints and its width H."""

    name: str
    fingerprint: str
    tokenizer_fingerprint: str
    hidden_size: Count


class TensorInfo(Record):
    """Shape and type of one tensor of an artifact."""

    shape: list[Count]
    dtype: Literal["float16", "bfloat16", "float32"]


Method = Literal["prompt", "residual", "p_tuning", "prefix", "multitask", "ensemble"]


Placement = Literal["before_bos", "after_bos"]

TooLong = Literal["block", "drop", "truncate_end", "truncate_start", "truncate_middle"]


class Members(Record):
    """The prompts of an ensemble, by digest, and how their answers are combined."""

    digests: list[str]
    combine: Literal["average", "vote"]


class Generation(Record):
    """How free text is decoded: greedily, up to `max_new_tokens`."""

    max_new_tokens: int = Field(default=64, ge=1, le=MAX_NEW_TOKENS)


class Scoring(Record):
    """How labels are ranked: by log-likelihood, with two options.

    `length_normalised` divides a label's log-likelihood by its number of tokens; `calibrated` divides its probability
    by its mean probability after texts without content (Zhao et al. 2021, section 4).
    """

    length_normalised: bool = False
    calibrated: bool = False


class ChatForm(Record):
    """What a base's chat template wrote around a task's messages: its text and the template of a message in turn,
    beginning and ending with its text. Names of control tokens in its text are control tokens.

    `template` is the digest of the chat template.
    """

    template: Key
    parts: list[str]


class PromptManifest(Grown):
    """Identity of a soft prompt: everything that its digest covers, `tensor_sha256` included.

    Stored as `prompts/<task>/<digest>/manifest.json`. It is written after `prompt.safetensors`, so its presence means
    that the artifact is complete. An ensemble has `members` and no tensors of its own. `too_long` says how a text of
    more than `max_input_tokens` is cut; `block` refuses it. If `chat` is there, the text is
    rendered from it, and `template` is the same in one text, to be read.
    """

    LATER: ClassVar = frozenset({"too_long", "chat"})

    schema_version: Literal[1] = 1
    task: str
    method: Method
    num_virtual_tokens: Count
    placement: Placement
    base_model: BaseModelRef
    template: str
    labels: dict[str, str]
    max_input_tokens: Count
    snapshot: Key
    recipe: str
    training_key: Key
    seed: Count
    engine_version: Count
    parents: list[str] = []
    tensors: dict[str, TensorInfo]
    tensor_sha256: str
    members: Members | None = None
    generate: Generation | None = None
    scoring: Scoring = Scoring()
    too_long: TooLong = "block"
    chat: ChatForm | None = None

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

    step: Count
    loss: float
    learning_rate: float
    dev: float | None = None
    token_norms: list[float] = []
    token_gradients: list[float] = []


class Dropped(Record):
    """Why a search ended a trial early: after `step`, its best `dev` was below `least`, the lowest that went on."""

    step: Count
    dev: float
    least: float

    @property
    def reason(self) -> str:
        """The same in words."""
        return f"dropped at step {self.step}: dev {self.dev:.4f} is below {self.least:.4f}"


class Cost(Record):
    """What training a prompt took: text tokens, and its share of the wall and processor seconds of its gang.

    A step is shared by the tokens that each member computed in it, a dev evaluation likewise.
    """

    tokens: Count
    seconds: float
    processor_seconds: float


class Trial(Grown):
    """One prompt that trained for a search or an ensemble. `best_dev` is None if it failed; `error` says why.

    `dropped` says where a search ended it early; trials that were stored before have no `cost`.
    """

    LATER: ClassVar = frozenset({"dropped", "cost"})

    name: str
    best_dev: float | None
    best_step: Count
    error: str | None = None
    dropped: Dropped | None = None
    cost: Cost | None = None

    @property
    def ended(self) -> str | None:
        """Why it did not train to its end, if it failed or was dropped."""
        return self.error or (self.dropped.reason if self.dropped else None)


class TunedPrompt(Grown):
    """The outcome of one task's training; its bytes lie in the object store under `digest`.

    `trials` are all prompts of a search or an ensemble; `warnings` is the advice on the recipe; `rule` says by what a
    search ended trials early; `cost` is that of all its trials.
    """

    LATER: ClassVar = frozenset({"rule", "cost"})

    task: str
    digest: Key
    training_key: Key
    snapshot: Key
    bytes: Count
    steps: Count
    best_step: Count
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
    rule: str | None = None
    cost: Cost | None = None
