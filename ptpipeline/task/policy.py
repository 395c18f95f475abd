"""The gate's policy as a task file states it: the metric, how a challenger takes the champion's place, and every check
with its numbers.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ptpipeline.records import Baseline, Metric
from ptpipeline.task.document import Section

Policy = Literal["block", "warn", "off"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Rule(Section):
    """A check: where it is not met it blocks the promotion, or only warns, or it is off. A bare word stands for the
    policy.
    """

    policy: Policy = "block"

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"policy": value} if isinstance(value, str) else value


class Gain(Rule):
    """The candidate is better than these baselines, shown by a paired test each."""

    over: Annotated[tuple[Baseline, ...], Field(min_length=1)] = ("majority", "zero_shot")


class Collapse(Rule):
    """No answer has more than `max_share` of the rows, and of labels the answers' entropy is at least `min_entropy` of
    the true labels'.
    """

    max_share: Annotated[float, Field(gt=0, le=1)] = 0.98
    min_entropy: Share = 0.1


class Never(Rule):
    """No label that `min_rows` test rows have is never answered."""

    min_rows: Count = 20


class Leakage(Rule):
    """At most so large a share of the test rows stands, or nearly stands, among the rows that the prompt itself was
    trained on.
    """

    max_share: Share = 0.0
    max_near_share: Share = 0.01


class Drift(Rule):
    """The rows are much like those of the champion: by total variation of the labels' shares, by the Kolmogorov-Smirnov
    distance of the texts' lengths, and by the share of words that were never seen, above what chance brings."""

    max_labels: Share = 0.15
    max_length: Share = 0.2
    max_vocabulary: Share = 0.08


class TestRows(Rule):
    """The test rows suffice to see, four times in five, a gain of `effect` (of non-inferiority: an equal quality within
    the margin).
    """

    policy: Policy = "warn"
    effect: Annotated[float, Field(gt=0, le=0.5)] = 0.03


class Slices(Rule):
    """On no part of at least `min_rows` test rows the challenger is worse than the champion, each part judged at
    `alpha` by itself.
    """

    min_rows: Count = 50
    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.05


class Bytes(Rule):
    """At most so many bytes of tensors: by default 64 KiB, 32 MiB for a prefix, and as much per member for an
    ensemble.
    """

    max_bytes: Count | None = None


class Latency(Rule):
    """A request alone takes at most so many milliseconds at the median, and so many times what it takes without a
    prompt.
    """

    policy: Policy = "warn"
    max_ms: Positive | None = None
    max_ratio: Positive = 3.0


class Norms(Rule):
    """The virtual tokens' norms, over the median norm of the vocabulary's embeddings."""

    policy: Policy = "warn"
    max_ratio: Positive = 20.0


class Robustness(Rule):
    """Share of answers that change where the text's white space, or its case, does."""

    policy: Policy = "warn"
    max_white_space: Share = 0.25
    max_case: Share = 0.4


class Bias(Rule):
    """Share of answers that change where the terms of `swaps` change places, among the rows that have one, at least
    `min_rows`.
    """

    swaps: Annotated[tuple[tuple[str, str], ...], Field(max_length=100)] = ()
    max_flips: Share = 0.1
    min_rows: Count = 10

    @field_validator("swaps")
    @classmethod
    def _two_terms(cls, swaps: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        terms = [term.casefold() for pair in swaps for term in pair]
        if not all(term.strip() for term in terms) or len(set(terms)) < len(terms):
            raise ValueError(
                "each pair has two terms, and no term stands in two pairs, such as [[he, she], [his, her]]"
            )
        return swaps


class Privacy(Rule):
    """How well training rows are told from others by the prompt: area under the curve of a membership inference, .5 is
    by chance.
    """

    max_auc: Annotated[float, Field(ge=0.5, le=1)] = 0.65


class Checks(Section):
    """What each check does when it is not met. Non-finite values always block."""

    gain: Gain = Gain()
    collapse: Collapse = Collapse()
    never: Never = Never()
    leakage: Leakage = Leakage()
    drift: Drift = Drift()
    test_rows: TestRows = TestRows()
    slices: Slices = Slices()
    bytes: Bytes = Bytes()
    latency: Latency = Latency()
    norms: Norms = Norms()
    robustness: Robustness = Robustness()
    bias: Bias = Bias()
    privacy: Privacy = Privacy()


class ChampionPolicy(Section):
    """How a challenger takes the champion's place, with a chance of error of `1 - confidence` over all looks at the
    same rows.

    `superiority`: it is better. `non_inferiority`: it is worse by less than `margin`, which is computed from the number
    of rows where it is not given, and so is it than the last version that won by superiority. `looks` is how often the
    test rows serve before the reserve takes their place.
    """

    rule: Literal["superiority", "non_inferiority"] = "superiority"
    margin: Annotated[float, Field(gt=0, le=0.5)] | None = None
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    looks: Annotated[int, Field(ge=1)] = 30

    @field_validator("margin")
    @classmethod
    def _margin_of_non_inferiority(cls, margin: float | None, info: ValidationInfo) -> float | None:
        if margin is not None and info.data.get("rule") == "superiority":
            raise ValueError(
                "a margin says how much worse a challenger may be: it belongs to `rule: non_inferiority`; "
                "superiority has none"
            )
        return margin

    @property
    def budget(self) -> float:
        """The chance of a wrong promotion that all looks may spend together."""
        return round(1 - self.confidence, 12)


class Gate(Section):
    """What a candidate has to show on the test split before it may go to production."""

    metric: Metric = "accuracy"
    minimum: Share
    champion: ChampionPolicy = ChampionPolicy()
    checks: Checks = Checks()
