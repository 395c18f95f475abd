"""Checks that compare one measure, or two, with the policy's numbers: whether it suffices, what was observed, what is
required.

Each answers None where its measures were not taken: it does not apply to the task, or to the prompt.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ptpipeline.records import Report, TextScores
from ptpipeline.task import policy

Measures = Mapping[str, float]
Found = tuple[bool, str, str]


def _collapse(rule: policy.Collapse, report: Report, measures: Measures) -> Found:
    if isinstance(report.prompt, TextScores):
        share = report.prompt.most_frequent_share
        return (
            share <= rule.max_share,
            f"{share:.1%} of the answers are the same text",
            f"no text above {rule.max_share:.0%}",
        )
    label, count = max(report.prompt.predicted.items(), key=lambda item: item[1])
    share = count / report.rows
    truth = {name: sum(row.values()) for name, row in report.prompt.confusion.items()}
    found, true = _entropy(report.prompt.predicted), _entropy(truth)
    enough, limit = (
        found >= rule.min_entropy * true,
        max(rule.max_share, truth.get(label, 0) / report.rows),
    )  # a label may really be as frequent
    observed = f"{share:.1%} of the answers are {label!r}, entropy {found:.2f} bits of the true labels' {true:.2f}"
    return (
        share <= limit and enough,
        observed,
        f"no label above {limit:.0%}, entropy at least {rule.min_entropy:.0%} of the true labels'",
    )


def _entropy(counts: Mapping[str, int]) -> float:
    """Of the shares of these counts, in bits."""
    from scipy.stats import entropy  # takes half a second to import

    return float(entropy(list(counts.values()), base=2))


def _never(rule: policy.Never, report: Report, measures: Measures) -> Found | None:
    if isinstance(report.prompt, TextScores):
        return None
    answers, confusion = report.prompt.predicted, report.prompt.confusion
    unseen = {name: sum(row.values()) for name, row in confusion.items() if not answers.get(name, 0)}
    bad = {name: rows for name, rows in unseen.items() if rows >= rule.min_rows}
    words = ", ".join(f"{name!r} ({rows} rows)" for name, rows in unseen.items())
    return not bad, f"never answered: {words or 'none'}", f"every label that has {rule.min_rows} test rows is answered"


def _leakage(rule: policy.Leakage, report: Report, measures: Measures) -> Found | None:
    if "leakage.unknown" in measures:
        return (
            True,
            "not known: the prompt was trained elsewhere",
            "that whoever imports it knows that it has not seen these test rows",
        )
    if "leakage.exact" not in measures:
        return None
    exact, near = measures["leakage.exact"], measures["leakage.near"]
    observed = f"{exact:.2%} of the test rows were trained on, {near:.2%} with near duplicates"
    inherited = measures.get("leakage.inherited", 0)
    observed += f"; its ancestors have seen {inherited:.2%}, which every comparison leaves out" if inherited else ""
    return (
        exact <= rule.max_share and near <= rule.max_near_share,
        observed,
        f"at most {rule.max_share:.2%}, and {rule.max_near_share:.2%} with near duplicates",
    )


def _drift(rule: policy.Drift, report: Report, measures: Measures) -> Found | None:
    limits = {"labels": rule.max_labels, "length": rule.max_length, "vocabulary": rule.max_vocabulary}
    found = {name: measures[f"drift.{name}"] for name in limits if f"drift.{name}" in measures}
    if not found:
        return None
    observed = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    return (
        all(value <= limits[name] for name, value in found.items()),
        observed,
        "of the champion's rows at most " + ", ".join(f"{name} {limits[name]:g}" for name in found),
    )


def _bytes(rule: policy.Bytes, report: Report, measures: Measures) -> Found:
    stored, limit = measures["bytes.stored"], measures["bytes.limit"]
    return stored <= limit, f"{stored:.0f} bytes", f"at most {limit:.0f}"


def _latency(rule: policy.Latency, report: Report, measures: Measures) -> Found | None:
    if "latency.p50_ms" not in measures:
        return None
    median, ratio = measures["latency.p50_ms"], measures["latency.ratio"]
    passed = ratio <= rule.max_ratio and (rule.max_ms is None or median <= rule.max_ms)
    allowed = f"at most {rule.max_ratio:g} times" + (f", and {rule.max_ms:g} ms" if rule.max_ms is not None else "")
    return passed, f"{median:.1f} ms, {ratio:.2f} times what a request takes without a prompt", allowed


def _norms(rule: policy.Norms, report: Report, measures: Measures) -> Found | None:
    if "norms.max_ratio" not in measures:
        return None
    return (
        measures["norms.max_ratio"] <= rule.max_ratio,
        f"up to {measures['norms.max_ratio']:.1f} times the vocabulary's median norm",
        f"at most {rule.max_ratio:g}",
    )


def _robustness(rule: policy.Robustness, report: Report, measures: Measures) -> Found | None:
    if "robustness.case" not in measures:
        return None
    space, case = measures["robustness.white_space"], measures["robustness.case"]
    observed = f"{space:.1%} of the answers change with the white space, {case:.1%} with the case"
    return (
        space <= rule.max_white_space and case <= rule.max_case,
        observed,
        f"at most {rule.max_white_space:.0%} and {rule.max_case:.0%}",
    )


def _bias(rule: policy.Bias, report: Report, measures: Measures) -> Found | None:
    if not rule.swaps:
        return None
    rows = measures.get("bias.rows", 0)
    if rows < rule.min_rows:
        return True, f"{rows:.0f} rows have a term of `swaps`", f"{rule.min_rows} rows to judge by"
    flips = measures["bias.flips"]
    return (
        flips <= rule.max_flips,
        f"{flips:.1%} of {rows:.0f} answers change when terms are swapped",
        f"at most {rule.max_flips:.0%}",
    )


def _privacy(rule: policy.Privacy, report: Report, measures: Measures) -> Found | None:
    if "privacy.auc" not in measures:
        return None
    observed = (
        f"membership inference AUC {measures['privacy.auc']:.3f} (95% interval {measures['privacy.low']:.3f} "
        f"to {measures['privacy.high']:.3f})"
    )
    return measures["privacy.low"] <= rule.max_auc, observed, f"not above {rule.max_auc:g} for certain"


CHECKS: dict[str, Callable[[Any, Report, Measures], Found | None]] = {
    "collapse": _collapse,
    "never": _never,
    "leakage": _leakage,
    "drift": _drift,
    "bytes": _bytes,
    "latency": _latency,
    "norms": _norms,
    "robustness": _robustness,
    "bias": _bias,
    "privacy": _privacy,
}
