"""The checks that compare measures of a candidate with the policy's numbers: what each asks, and how it is judged."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ptpipeline.records.reports import Report, TextScores
from ptpipeline.task import policy
from ptpipeline.task.task import Task

Measures = Mapping[str, float]


class Result(NamedTuple):
    """Whether a check is met, and the sentence that says what was observed."""

    passed: bool
    observed: str


class MeasuredCheck(NamedTuple):
    """One check: `ask` words its requirement, `judge` holds the measures against it.

    `judge` returns None if the measures were not taken: the check does not apply to the task or to the prompt.
    """

    ask: Callable[[Task, Any], str]
    judge: Callable[[Any, Report, Measures], Result | None]


# ---------------------------------------------------------------- collapse, never, worst label


def _ask_collapse(task: Task, rule: policy.Collapse) -> str:
    if task.generate:
        return f"no text is more than {rule.max_share:.0%} of the answers"
    return (
        f"no label is more than {rule.max_share:.0%} of the answers unless it is that frequent among the true labels, "
        f"and the answers' entropy is at least {rule.min_entropy:.0%} of the true labels'"
    )


def _judge_collapse(rule: policy.Collapse, report: Report, measures: Measures) -> Result:
    if isinstance(report.prompt, TextScores):
        share = report.prompt.most_frequent_share
        return Result(share <= rule.max_share, f"{share:.1%} of the answers are the same text")
    label, count = max(report.prompt.predicted.items(), key=lambda item: item[1])
    share = count / report.rows
    true_counts = {name: sum(row.values()) for name, row in report.prompt.confusion.items()}
    entropy, true_entropy = _entropy(report.prompt.predicted), _entropy(true_counts)
    max_share = max(rule.max_share, true_counts.get(label, 0) / report.rows)
    return Result(
        share <= max_share and entropy >= rule.min_entropy * true_entropy,
        f"{share:.1%} of the answers are {label!r}; their entropy is {entropy:.2f} bits, the true labels' "
        f"{true_entropy:.2f}",
    )


def _entropy(counts: Mapping[str, int]) -> float:
    """Return the entropy of the shares of these counts, in bits."""
    from scipy.stats import entropy  # takes half a second to import

    return float(entropy(list(counts.values()), base=2))


def _ask_never(task: Task, rule: policy.Never) -> str:
    return f"every label that has at least {rule.min_rows} test rows is answered at least once"


def _judge_never(rule: policy.Never, report: Report, measures: Measures) -> Result | None:
    if isinstance(report.prompt, TextScores):
        return None
    answers, confusion = report.prompt.predicted, report.prompt.confusion
    unanswered = {name: sum(row.values()) for name, row in confusion.items() if not answers.get(name, 0)}
    words = ", ".join(f"{name!r} ({rows} rows)" for name, rows in unanswered.items())
    return Result(all(rows < rule.min_rows for rows in unanswered.values()), f"never answered: {words or 'none'}")


def _ask_worst_label(task: Task, rule: policy.WorstLabel) -> str:
    rows = "row" if rule.min_rows == 1 else "rows"
    return f"every label that has at least {rule.min_rows} test {rows} has an F1 of at least {rule.min_f1:g}"


def _judge_worst_label(rule: policy.WorstLabel, report: Report, measures: Measures) -> Result | None:
    if isinstance(report.prompt, TextScores):
        return None
    rows = {name: sum(row.values()) for name, row in report.prompt.confusion.items()}
    scores = {name: one["f1"] for name, one in report.prompt.per_label.items() if rows.get(name, 0) >= rule.min_rows}
    if not scores:
        return Result(True, f"no label has {rule.min_rows} test rows")
    worst = min(scores, key=lambda name: scores[name])
    below = sum(score < rule.min_f1 for score in scores.values())
    return Result(
        not below,
        f"the lowest F1 is {scores[worst]:.4f}, of {worst!r} ({rows[worst]} rows); {below} of {len(scores)} labels are "
        f"below {rule.min_f1:g}",
    )


# ---------------------------------------------------------------- leakage, drift


def _ask_leakage(task: Task, rule: policy.Leakage) -> str:
    alone = f", also in {' or '.join(rule.fields)} alone," if rule.fields else ""
    return (
        f"at most {rule.max_share:.2%} of the test rows are in the training rows, and at most "
        f"{rule.max_near_share:.2%} if near duplicates{alone} count"
    )


def _judge_leakage(rule: policy.Leakage, report: Report, measures: Measures) -> Result | None:
    if "leakage.unknown" in measures:
        return Result(True, "not known, because the prompt was trained elsewhere; its importer must know that")
    if "leakage.exact" not in measures:
        return None
    exact, near = measures["leakage.exact"], measures["leakage.near"]
    observed = f"{exact:.2%} of the test rows are in the training rows, {near:.2%} with near duplicates"
    shares = [f"{measures[f'leakage.field.{name}']:.2%} by {name}" for name in rule.fields]
    observed += f" ({', '.join(shares)})" if shares else ""
    inherited = measures.get("leakage.inherited", 0)
    observed += f"; its ancestors saw {inherited:.2%}, which every comparison leaves out" if inherited else ""
    return Result(exact <= rule.max_share and near <= rule.max_near_share, observed)


def _ask_drift(task: Task, rule: policy.Drift) -> str:
    return (
        f"the training rows differ from the champion's by at most {rule.max_labels:g} in label shares, "
        f"{rule.max_length:g} in text lengths and {rule.max_vocabulary:g} in vocabulary"
    )


def _judge_drift(rule: policy.Drift, report: Report, measures: Measures) -> Result | None:
    limits = {"labels": rule.max_labels, "length": rule.max_length, "vocabulary": rule.max_vocabulary}
    drifts = {name: measures[f"drift.{name}"] for name in limits if f"drift.{name}" in measures}
    if not drifts:
        return None
    observed = ", ".join(f"{name} {value:.3f}" for name, value in drifts.items())
    return Result(all(value <= limits[name] for name, value in drifts.items()), observed)


# ---------------------------------------------------------------- size and speed


def _ask_bytes(task: Task, rule: policy.Bytes) -> str:
    return f"at most {task.byte_limit():,} bytes of tensors"


def _judge_bytes(rule: policy.Bytes, report: Report, measures: Measures) -> Result:
    stored = measures["bytes.stored"]
    return Result(stored <= measures["bytes.limit"], f"{stored:,.0f} bytes")


def _ask_latency(task: Task, rule: policy.Latency) -> str:
    limit = f" and at most {rule.max_ms:g} ms" if rule.max_ms is not None else ""
    return f"the median time of one request is at most {rule.max_ratio:g} times the time without a prompt{limit}"


def _judge_latency(rule: policy.Latency, report: Report, measures: Measures) -> Result | None:
    if "latency.p50_ms" not in measures:
        return None
    median, ratio = measures["latency.p50_ms"], measures["latency.ratio"]
    passed = ratio <= rule.max_ratio and (rule.max_ms is None or median <= rule.max_ms)
    return Result(passed, f"{median:.1f} ms, {ratio:.2f} times the time without a prompt")


# ---------------------------------------------------------------- probes


def _ask_norms(task: Task, rule: policy.Norms) -> str:
    return f"no virtual token's norm is above {rule.max_ratio:g} times the vocabulary's median norm"


def _judge_norms(rule: policy.Norms, report: Report, measures: Measures) -> Result | None:
    if "norms.max_ratio" not in measures:
        return None
    ratio = measures["norms.max_ratio"]
    return Result(ratio <= rule.max_ratio, f"up to {ratio:.1f} times the vocabulary's median norm")


def _ask_robustness(task: Task, rule: policy.Robustness) -> str:
    return (
        f"at most {rule.max_white_space:.0%} of the answers change if the white space of the text changes, and at most "
        f"{rule.max_case:.0%} if its case does"
    )


def _judge_robustness(rule: policy.Robustness, report: Report, measures: Measures) -> Result | None:
    if "robustness.case" not in measures:
        return None
    white_space, case = measures["robustness.white_space"], measures["robustness.case"]
    return Result(
        white_space <= rule.max_white_space and case <= rule.max_case,
        f"{white_space:.1%} of the answers change with the white space, {case:.1%} with the case",
    )


def _ask_bias(task: Task, rule: policy.Bias) -> str:
    asked = f"at most {rule.max_flips:.0%} of the answers change if the terms of a pair are swapped"
    if not rule.swaps:
        return f"{asked}; the task names no pairs (gate.checks.bias.swaps)"
    return f"{asked}; judged if at least {rule.min_rows} rows have a term of the {len(rule.swaps)} pairs"


def _judge_bias(rule: policy.Bias, report: Report, measures: Measures) -> Result | None:
    if not rule.swaps:
        return None
    rows = measures.get("bias.rows", 0)
    if rows < rule.min_rows:
        return Result(True, f"{rows:.0f} rows have a term of `swaps`, too few to judge")
    flips = measures["bias.flips"]
    return Result(flips <= rule.max_flips, f"{flips:.1%} of {rows:.0f} answers change if terms are swapped")


def _ask_privacy(task: Task, rule: policy.Privacy) -> str:
    return (
        f"membership inference tells training rows from others with an AUC of at most {rule.max_auc:g} (.5 is chance); "
        "only a lower bound above it blocks"
    )


def _judge_privacy(rule: policy.Privacy, report: Report, measures: Measures) -> Result | None:
    if "privacy.auc" not in measures:
        return None
    auc, low, high = (measures[f"privacy.{name}"] for name in ("auc", "low", "high"))
    return Result(low <= rule.max_auc, f"membership inference AUC {auc:.3f} (95% interval {low:.3f} to {high:.3f})")


CHECKS: dict[str, MeasuredCheck] = {
    "collapse": MeasuredCheck(_ask_collapse, _judge_collapse),
    "never": MeasuredCheck(_ask_never, _judge_never),
    "worst_label": MeasuredCheck(_ask_worst_label, _judge_worst_label),
    "leakage": MeasuredCheck(_ask_leakage, _judge_leakage),
    "drift": MeasuredCheck(_ask_drift, _judge_drift),
    "bytes": MeasuredCheck(_ask_bytes, _judge_bytes),
    "latency": MeasuredCheck(_ask_latency, _judge_latency),
    "norms": MeasuredCheck(_ask_norms, _judge_norms),
    "robustness": MeasuredCheck(_ask_robustness, _judge_robustness),
    "bias": MeasuredCheck(_ask_bias, _judge_bias),
    "privacy": MeasuredCheck(_ask_privacy, _judge_privacy),
}
