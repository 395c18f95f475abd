"""The gate: policy x reports -> Verdict. Pure; imports no torch."""

from ptpipeline.records import Check, PairedDifference, Report, Scores, TextScores, Verdict, digest_of
from ptpipeline.task import Gate, Task


def gate_key(task: Task, report: Report, champion: str | None) -> str:
    """Digest of evaluation, policy and champion: an equal key means an equal verdict."""
    return digest_of({"evaluation": report.evaluation_key, "policy": task.policy_digest(), "champion": champion})


def decide(task: Task, report: Report, stored_bytes: int, champion: str | None, comparison: PairedDifference | str | None) -> Verdict:
    """The verdict over a candidate's report, check by check.

    `champion` is the digest of what production points to, None where nothing does; `comparison` is challenger minus
    champion, or why that cannot be measured; required where a champion other than the candidate exists (ValueError without).
    """
    policy = task.gate
    checks = [
        _minimum(policy, report),
        *([_zero_shot(policy, report)] if policy.beat_zero_shot else []),
        _collapse(policy, report),
        _bytes(task.byte_limit(), stored_bytes),
    ]
    if champion is not None and champion != report.digest:
        if comparison is None:
            raise ValueError("a champion exists: the comparison with it is required")
        checks.append(_champion(policy, comparison))
    return Verdict(
        task=task.name,
        digest=report.digest,
        gate_key=gate_key(task, report, champion),
        policy=task.policy_digest(),
        evaluation_key=report.evaluation_key,
        test_digest=report.test_digest,
        champion=champion,
        comparison=None if isinstance(comparison, str) else comparison,
        checks=checks,
        passed=all(check.passed for check in checks),
    )


def metric_of(scores: Scores | TextScores, metric: str) -> float:
    """The gate's metric out of all that were measured."""
    value: float = getattr(scores, metric)
    return value


def _minimum(policy: Gate, report: Report) -> Check:
    observed = metric_of(report.prompt, policy.metric)
    low, high = report.interval[policy.metric]
    return Check(
        name="minimum",
        passed=observed >= policy.minimum,
        observed=f"{policy.metric} {observed:.4f} (95% interval {low:.4f} to {high:.4f}, {report.rows} test rows)",
        required=f"at least {policy.minimum:.4f}",
    )


def _zero_shot(policy: Gate, report: Report) -> Check:
    observed, baseline = metric_of(report.prompt, policy.metric), metric_of(report.zero_shot, policy.metric)
    return Check(name="beat_zero_shot", passed=observed > baseline, observed=f"{observed:.4f}", required=f"more than zero-shot's {baseline:.4f}")


def _collapse(policy: Gate, report: Report) -> Check:
    if isinstance(report.prompt, TextScores):
        share, answer, kind = report.prompt.most_frequent_share, "the same text", "text"
    else:
        label, count = max(report.prompt.predicted.items(), key=lambda item: item[1])
        share, answer, kind = count / report.rows, repr(label), "label"
    return Check(
        name="collapse",
        passed=share <= policy.max_label_share,
        observed=f"{share:.1%} of the answers are {answer}",
        required=f"no {kind} above {policy.max_label_share:.0%}",
    )


def _bytes(limit: int, stored: int) -> Check:
    return Check(name="bytes", passed=stored <= limit, observed=f"{stored} bytes", required=f"at most {limit}")


def _champion(policy: Gate, comparison: PairedDifference | str) -> Check:
    if isinstance(comparison, str):
        return Check(name="champion", passed=True, observed=f"not comparable: {comparison}", required="a person's approval")
    margin, confidence = policy.champion.margin, policy.champion.confidence
    return Check(
        name="champion",
        passed=comparison.lower > -margin,
        observed=f"{comparison.metric} differs by {comparison.difference:+.4f}, above {comparison.lower:+.4f} at {confidence:.0%} ({comparison.rows} rows)",
        required=f"worse than the champion by less than {margin:.4f}",
    )
