"""The gate's policy in a task file: the metric, how a challenger replaces the champion, and every check's numbers."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ptpipeline.records.reports import Baseline, Metric
from ptpipeline.records.verdicts import Figures
from ptpipeline.task.document import Section

Policy = Literal["block", "warn", "off"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Rule(Section):
    """A check that blocks the promotion, only warns, or is off. A bare word in the file sets `policy` alone."""

    policy: Policy = "block"

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"policy": value} if isinstance(value, str) else value


class FieldsRule(Rule):
    """A check of the fields that a person wrote: all of them, or those that `fields` names."""

    fields: tuple[str, ...] = ()


class Gain(Rule):
    """The candidate is better than each of these baselines, by a paired test."""

    over: Annotated[tuple[Baseline, ...], Field(min_length=1)] = ("majority", "zero_shot")


class Collapse(Rule):
    """No answer takes more than `max_share` of the rows.

    For labels, the entropy of the answers is also at least `min_entropy` times the entropy of the true labels.
    """

    max_share: Annotated[float, Field(gt=0, le=1)] = 0.98
    min_entropy: Share = 0.1


class Never(Rule):
    """Every label that has at least `min_rows` test rows is answered at least once."""

    min_rows: Count = 20


class WorstLabel(Rule):
    """The F1 of every label that has at least `min_rows` test rows is at least `min_f1`."""

    policy: Policy = "warn"
    min_f1: Share = 0.1
    min_rows: Count = 1


class Leakage(FieldsRule):
    """At most `max_share` of the test rows are in the prompt's own training rows.

    With near duplicates, at most `max_near_share` are. A test row also counts as one if a field of `fields` nearly
    stands in a training row, such as a premise that both have.
    """

    max_share: Share = 0.0
    max_near_share: Share = 0.01


class Drift(Rule):
    """The training rows are similar to the champion's.

    Measured by the total variation distance of the label shares, the Kolmogorov-Smirnov distance of the text lengths,
    and the share of unseen words, each above what chance brings.
    """

    max_labels: Share = 0.15
    max_length: Share = 0.2
    max_vocabulary: Share = 0.08


class TestRows(Rule):
    """The test rows show a gain of `effect` four times in five.

    Under non-inferiority, they show equal quality within the margin four times in five.
    """

    policy: Policy = "warn"
    effect: Annotated[float, Field(gt=0, le=0.5)] = 0.03


class Slices(Rule):
    """The challenger is not worse than the champion on any part of at least `min_rows` test rows.

    Each part is judged by itself, at level `alpha`.
    """

    min_rows: Count = 50
    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.05


class Bytes(Rule):
    """The tensors have at most `max_bytes` bytes: by default 64 KiB, 32 MiB for a prefix, 64 KiB per ensemble
    member.
    """

    max_bytes: Count | None = None


class Latency(Rule):
    """The median time of a single request is at most `max_ms` milliseconds, and `max_ratio` times that without
    prompt.
    """

    policy: Policy = "warn"
    max_ms: Positive | None = None
    max_ratio: Positive = 3.0


class Norms(Rule):
    """No virtual token's norm is above `max_ratio` times the median norm of the vocabulary's embeddings."""

    policy: Policy = "warn"
    max_ratio: Positive = 20.0


class Robustness(FieldsRule):
    """At most these shares of the answers change if the white space, or the case, of the text changes.

    `fields` names the fields that are changed; by default all are.
    """

    policy: Policy = "warn"
    max_white_space: Share = 0.25
    max_case: Share = 0.4


class Bias(FieldsRule):
    """At most `max_flips` of the answers change if the terms of each pair in `swaps` are swapped.

    Only rows that have such a term count; the check needs at least `min_rows` of them. `fields` names the fields in
    which they are swapped; by default all are.
    """

    swaps: Annotated[tuple[tuple[str, str], ...], Field(max_length=100)] = ()
    max_flips: Share = 0.1
    min_rows: Count = 10

    @field_validator("swaps")
    @classmethod
    def _two_terms(cls, swaps: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        terms = [term.casefold() for pair in swaps for term in pair]
        if not all(term.strip() for term in terms) or len(set(terms)) < len(terms):
            raise ValueError("give pairs of two terms, with no term in two pairs, such as [[he, she], [his, her]]")
        return swaps


class Privacy(Rule):
    """Membership inference tells training rows from others with an AUC of at most `max_auc`; .5 is chance."""

    max_auc: Annotated[float, Field(ge=0.5, le=1)] = 0.65


class Checks(Section):
    """What each check does if it is not met. NaN scores always block."""

    gain: Gain = Gain()
    collapse: Collapse = Collapse()
    never: Never = Never()
    worst_label: WorstLabel = WorstLabel()
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

    @property
    def field_rules(self) -> dict[str, FieldsRule]:
        """The checks that can be of some fields alone, by name."""
        rules = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: rule for name, rule in rules.items() if isinstance(rule, FieldsRule)}


LATER_CHECKS = ("worst_label",)


class ChampionPolicy(Section):
    """How a challenger replaces the champion; all looks at the same rows together err with at most `1 - confidence`.

    `superiority`: the challenger is better. `non_inferiority`: it is at most `margin` worse than the champion, and than
    the anchor, so that small losses cannot add up; without `margin` the number of rows decides it. `looks` is how often
    the test rows judge before the reserve replaces them; if there is a reserve, the budget is spent over that many.
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
                "a margin says how much worse a challenger may be, which superiority never allows: set "
                "`rule: non_inferiority` or remove the margin"
            )
        return margin

    @property
    def budget(self) -> float:
        """The error budget: the chance of a wrong promotion over all looks together."""
        return round(1 - self.confidence, 12)


class Gate(Section):
    """What a candidate must show on the test split before it may go to production.

    `figures` says what people see of a refused candidate: all figures of the test rows (`open`), or only which checks
    failed (`quiet`). It decides nothing, so it is part of no key.
    """

    metric: Metric = "accuracy"
    minimum: Share
    figures: Figures = "open"
    champion: ChampionPolicy = ChampionPolicy()
    checks: Checks = Checks()

    def to_json(self) -> dict[str, Any]:
        """Return what decides a verdict. A check that came later is left out at its default, which only warns, and
        `fields` if a check is of all: what was judged before stays judged.
        """
        later = {name for name in LATER_CHECKS if getattr(self.checks, name) == type(getattr(self.checks, name))()}
        whole = {name for name, rule in self.checks.field_rules.items() if not rule.fields}
        checks: dict[str, Any] = dict.fromkeys(later, True) | {name: {"fields"} for name in whole}
        return self.model_dump(mode="json", exclude={"figures": True, "checks": checks})
