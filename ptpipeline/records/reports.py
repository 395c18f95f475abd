"""What was measured: scores, reports, and paired differences."""

from typing import ClassVar, Literal, NamedTuple

from ptpipeline.records.base import Count, Grown, Key, Record
from ptpipeline.records.data import Split

LabelMetric = Literal["accuracy", "macro_f1", "mcc"]


TextMetric = Literal["exact_match", "token_f1", "rouge_l", "bleu", "chrf"]


Metric = Literal[LabelMetric, TextMetric]


LABEL_METRICS: tuple[LabelMetric, ...] = ("accuracy", "macro_f1", "mcc")


TEXT_METRICS: tuple[TextMetric, ...] = ("exact_match", "token_f1", "rouge_l", "bleu", "chrf")


Baseline = Literal["majority", "zero_shot", "hard_prompt"]


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


class Reliability(NamedTuple):
    """One bin of a reliability diagram: mean probability of the predicted label, share of right answers, rows."""

    confidence: float
    accuracy: float
    rows: Count


class Scores(Grown):
    """Metrics of one set of predictions over one split; confusion[true][predicted] counts rows.

    `calibration_error` is the expected difference between the predicted label's probability and the share of right
    answers, over the bins of `reliability`. Both are absent if the answers have no probabilities.
    """

    LATER: ClassVar = frozenset({"mcc", "calibration_error", "reliability"})

    accuracy: float
    macro_f1: float
    per_label: dict[str, dict[str, float]]
    confusion: dict[str, dict[str, Count]]
    predicted: dict[str, Count]
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
    log-likelihood per label (metrics for a generation task), but no text. `rows_sha256` is the hash of its bytes: no
    other results are read for this report, and none if it states none. `baselines` are the evaluation keys of the
    baselines' own reports, by kind. `measures` are the results of the probes, `probed` the digest of their settings. A
    baseline's report repeats its own scores as `zero_shot` and `majority`.
    """

    LATER: ClassVar = frozenset({"hard_prompt", "baselines", "split", "measures", "probed", "rows_sha256"})

    task: str
    digest: Key
    evaluation_key: Key
    snapshot: Key
    test_digest: Key
    rows: Count
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
    rows_sha256: str = ""


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
    rows: Count
    dropped: Count
    p_value: float | None = None
    margin: float = 0.0
    test: str = ""
    discordant: float | None = None


class SliceDifference(Record):
    """Challenger minus champion on a part of the rows, as the mean of a metric per row.

    `p_harm` is the chance of this difference or a smaller one if the challenger is not worse.
    """

    name: str
    rows: Count
    difference: float
    p_harm: float
