"""Decide a verdict, check by check, from the policy and what was measured. Pure; imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from ptpipeline.gate.checks import CHECKS
from ptpipeline.records.base import digest_of
from ptpipeline.records.reports import PairedDifference, Report, Scores, SliceDifference, TextScores, title_of
from ptpipeline.records.verdicts import Check, Look, Verdict
from ptpipeline.task.policy import ChampionPolicy, Gate
from ptpipeline.task.task import Task

APPROVAL = "a person's approval"


@dataclass(frozen=True)
class Evidence:
    """All that a verdict is decided on.

    `champion` is the digest that production points to, None if it points to nothing. `comparison` is challenger minus
    champion and `anchor` challenger minus anchor; either is a sentence if it cannot be measured. `superior` says that
    the comparison shows a gain, not only that it shows no loss. `look` is None if the candidate is the champion,
    because nothing can be promoted then. `rows_needed` is how many test rows would show the effect that the policy asks
    for.
    """

    report: Report
    stored_bytes: int
    champion: str | None = None
    look: Look | None = None
    comparison: PairedDifference | str | None = None
    superior: bool = False
    anchor: PairedDifference | str | None = None
    baselines: dict[str, PairedDifference] = field(default_factory=dict)
    slices: list[SliceDifference] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    rows_needed: int | None = None


def gate_key(task: Task, report: Report, champion: str | None) -> str:
    """Return the digest of evaluation, policy and champion: an equal key means an equal verdict."""
    return digest_of(
        {
            "evaluation": report.evaluation_key,
            "probed": report.probed,
            "policy": task.policy_digest(),
            "champion": champion,
        }
    )


def decide(task: Task, evidence: Evidence) -> Verdict:
    """Return the verdict on a candidate. Raises ValueError if there is a champion and no comparison with it."""
    report, champion = evidence.report, evidence.champion
    challenges = champion is not None and champion != report.digest
    if challenges and evidence.comparison is None:
        raise ValueError("a champion exists: the comparison with it is required")
    checks = [
        _minimum(task.gate, report),
        *_gain(task, evidence),
        *(_against_champion(task, evidence) if challenges else ()),
        *_finite(evidence),
        *_test_rows(task, evidence),
        *_judge_measures(task, evidence),
    ]
    passed = not any(check.blocks for check in checks)
    return Verdict(
        task=task.name,
        digest=report.digest,
        gate_key=gate_key(task, report, champion),
        policy=task.policy_digest(),
        evaluation_key=report.evaluation_key,
        test_digest=report.test_digest,
        champion=champion,
        comparison=None if isinstance(evidence.comparison, str) else evidence.comparison,
        checks=checks,
        passed=passed,
        look=evidence.look,
        won=_judge_win(task, evidence) if passed else None,
        baselines=evidence.baselines,
        anchor=None if isinstance(evidence.anchor, str) else evidence.anchor,
        slices=evidence.slices,
        measures=evidence.measures,
        figures=task.gate.figures,
    )


def metric_of(scores: Scores | TextScores, metric: str) -> float:
    """Return one metric out of all that were measured."""
    value: float = getattr(scores, metric)
    return value


def needs_a_person(verdict: Verdict) -> bool:
    """Tell whether something could not be compared, so that only a person may promote."""
    return any(check.required == APPROVAL for check in verdict.checks)


def describe_difference(pair: PairedDifference) -> str:
    """Return a difference in one line."""
    tested = f", p {pair.p_value:.2g} by {pair.test}" if pair.p_value is not None else ""
    return (
        f"{title_of(pair.metric)} {pair.difference:+.4f} ({pair.confidence:.0%} bounds {pair.lower:+.4f} and "
        f"{pair.upper:+.4f}{tested}, {pair.rows} rows)"
    )


def _judge_win(task: Task, evidence: Evidence) -> Literal["superior", "not inferior"] | None:
    if isinstance(evidence.comparison, PairedDifference):
        return "superior" if evidence.superior else "not inferior"
    if evidence.champion is not None:
        return None
    against = [evidence.baselines[name] for name in task.gate.checks.gain.over if name in evidence.baselines]
    alpha = _alpha(task.gate.champion, evidence.look)
    return "superior" if against and all(_is_significant(pair, alpha) for pair in against) else None


# ---------------------------------------------------------------- against others


def _alpha(policy: ChampionPolicy, look: Look | None) -> float:
    return look.alpha if look else policy.budget


def _describe_level(policy: ChampionPolicy, look: Look | None) -> str:
    if look is None:
        return f"p at most {policy.budget:.2g}"
    if look.alpha == 0:
        return "no p is small enough: the error budget of these test rows is spent; give fresh rows or a reserve"
    level = f"p at most {look.alpha:.2g}, the share of look {look.number} at these test rows"
    if look.number > policy.looks:
        return f"{level}, which are meant for {policy.looks}: give fresh rows or a reserve (data.split.reserve)"
    return f"{level} ({look.spent:.3f} of the error budget {look.budget:.3f} is spent)"


def _is_significant(pair: PairedDifference, alpha: float) -> bool:
    return pair.p_value is not None and alpha > 0 and pair.p_value <= alpha


def _minimum(policy: Gate, report: Report) -> Check:
    observed = metric_of(report.prompt, policy.metric)
    low, high = report.interval[policy.metric]
    return Check(
        name="minimum",
        passed=observed >= policy.minimum,
        observed=f"{policy.metric} {observed:.4f} (95% interval {low:.4f} to {high:.4f}, {report.rows} {report.split} "
        "rows)",
        required=f"at least {policy.minimum:.4f}",
    )


def _gain(task: Task, evidence: Evidence) -> Iterator[Check]:
    """Judge all baselines in one check, which shows the closest of them."""
    rule, champion = task.gate.checks.gain, task.gate.champion
    if rule.policy == "off":
        return
    missing = [title_of(name) for name in rule.over if name not in evidence.baselines]
    if missing:
        yield Check(
            name="gain",
            passed=False,
            observed=f"not measured against {' and '.join(missing)}: the context has no room for it, or too few test "
            "rows are unseen",
            required="a comparison with each baseline of gate.checks.gain.over; take it out there, or give more rows",
            policy=rule.policy,
        )
        return
    name, closest = max(
        ((name, evidence.baselines[name]) for name in rule.over),
        key=lambda item: (item[1].p_value or 0.0, -item[1].difference),
    )
    yield Check(
        name="gain",
        passed=_is_significant(closest, _alpha(champion, evidence.look)),
        observed=f"over {title_of(name)} {describe_difference(closest)}",
        required=f"better than {' and '.join(map(title_of, rule.over))}: {_describe_level(champion, evidence.look)}",
        policy=rule.policy,
    )


def _against_champion(task: Task, evidence: Evidence) -> Iterator[Check]:
    policy = task.gate.champion
    yield Check(name="champion", **_compare("the champion", policy, evidence.comparison, evidence.look))
    if policy.rule == "non_inferiority" and evidence.anchor is not None:
        yield Check(name="anchor", **_compare("the anchor", policy, evidence.anchor, evidence.look))
    rule = task.gate.checks.slices
    if rule.policy != "off" and evidence.slices:
        worst = min(evidence.slices, key=lambda part: part.p_harm)
        harmed = [part.name for part in evidence.slices if part.p_harm <= rule.alpha]
        yield Check(
            name="slices",
            passed=not harmed,
            observed=f"{len(harmed)} of {len(evidence.slices)} parts are worse"
            f"{': ' + ', '.join(harmed) if harmed else ''}; "
            f"lowest p {worst.p_harm:.2g} on {worst.name} ({worst.difference:+.4f}, {worst.rows} rows)",
            required=f"no part of at least {rule.min_rows} rows is worse than the champion at p {rule.alpha:g}",
            policy=rule.policy,
        )


class _Comparison(TypedDict):
    passed: bool
    observed: str
    required: str


def _compare(
    opponent: str, policy: ChampionPolicy, measured: PairedDifference | str | None, look: Look | None
) -> _Comparison:
    if not isinstance(measured, PairedDifference):
        return {"passed": True, "observed": f"not comparable: {measured}", "required": APPROVAL}
    superior = policy.rule == "superiority"
    aim = f"better than {opponent}" if superior else f"at most {measured.margin:.4f} worse than {opponent}"
    return {
        "passed": _is_significant(measured, _alpha(policy, look)),
        "observed": describe_difference(measured),
        "required": f"{aim}: {_describe_level(policy, look)}",
    }


# ---------------------------------------------------------------- by rules of their own


def _finite(evidence: Evidence) -> Iterator[Check]:
    bad = evidence.measures.get("finite.bad", 0)
    if bad:
        yield Check(
            name="finite",
            passed=False,
            observed=f"{bad:.0f} of {evidence.report.rows} rows have a NaN score",
            required="none",
        )


def _test_rows(task: Task, evidence: Evidence) -> Iterator[Check]:
    rule, needed, comparison = task.gate.checks.test_rows, evidence.rows_needed, evidence.comparison
    if rule.policy == "off" or needed is None:
        return
    pair = comparison if isinstance(comparison, PairedDifference) else None
    shown = pair or next(iter(evidence.baselines.values()), None)
    rows = shown.rows if shown else evidence.report.rows
    gain = pair is None or task.gate.champion.rule == "superiority"
    aim = f"a gain of {rule.effect:g}" if pair is None or gain else f"equal quality within {pair.margin:.4f}"
    yield Check(
        name="test_rows",
        passed=rows >= needed,
        observed=f"{rows} rows",
        required=f"at least {needed} rows, to show {aim} four times in five at this look",
        policy=rule.policy,
    )


def _judge_measures(task: Task, evidence: Evidence) -> Iterator[Check]:
    measures = evidence.measures | {"bytes.stored": evidence.stored_bytes, "bytes.limit": task.byte_limit()}
    for name, rule in task.gate.checks:
        if name not in CHECKS or rule.policy == "off":
            continue
        result = CHECKS[name].judge(rule, evidence.report, measures)
        if result is not None:
            required = CHECKS[name].ask(task, rule)
            yield Check(
                name=name, passed=result.passed, observed=result.observed, required=required, policy=rule.policy
            )
