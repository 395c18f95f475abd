"""The gate: policy x what was measured -> Verdict, check by check. Pure; imports no torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ptpipeline.gate.checks import CHECKS
from ptpipeline.records import (
    Check,
    Look,
    PairedDifference,
    Report,
    Scores,
    SliceDifference,
    TextScores,
    Verdict,
    digest_of,
    title_of,
)
from ptpipeline.task.policy import ChampionPolicy, Gate, Rule
from ptpipeline.task.task import Task

APPROVAL = "a person's approval"


@dataclass(frozen=True)
class Evidence:
    """All that a verdict is decided on.

    `champion` is the digest of what production points to, None where nothing does. `comparison` is challenger minus
    champion, `anchor` challenger minus the last version that won by superiority, each a sentence where it cannot be
    measured; `superior` says that the first shows more than no harm. `look` is None where nothing could be promoted:
    the candidate is the champion. `rows_needed` is how many test rows would show the effect that the policy asks for.
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
    """Digest of evaluation, policy and champion: an equal key means an equal verdict."""
    return digest_of(
        {
            "evaluation": report.evaluation_key,
            "probed": report.probed,
            "policy": task.policy_digest(),
            "champion": champion,
        }
    )


def decide(task: Task, evidence: Evidence) -> Verdict:
    """The verdict over a candidate, check by check; ValueError where there is a champion and no comparison with it."""
    report, champion = evidence.report, evidence.champion
    challenges = champion is not None and champion != report.digest
    if challenges and evidence.comparison is None:
        raise ValueError("a champion exists: the comparison with it is required")
    checks = [
        _minimum(task.gate, report),
        *_gain(task, evidence),
        *(_against(task, evidence) if challenges else ()),
        *_ruled(task, evidence),
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
        won=_won(task, evidence) if passed else None,
        baselines=evidence.baselines,
        anchor=None if isinstance(evidence.anchor, str) else evidence.anchor,
        slices=evidence.slices,
        measures=evidence.measures,
    )


def metric_of(scores: Scores | TextScores, metric: str) -> float:
    """The gate's metric out of all that were measured."""
    value: float = getattr(scores, metric)
    return value


def needs_a_person(verdict: Verdict) -> bool:
    """Whether something could not be compared, which no machine may pass over."""
    return any(check.required == APPROVAL for check in verdict.checks)


def shown(found: PairedDifference) -> str:
    """A difference in one line."""
    tested = f", p {found.p_value:.2g} by {found.test}" if found.p_value is not None else ""
    return (
        f"{title_of(found.metric)} {found.difference:+.4f} ({found.confidence:.0%} bounds {found.lower:+.4f} and "
        f"{found.upper:+.4f}{tested}, {found.rows} rows)"
    )


def _won(task: Task, evidence: Evidence) -> Literal["superior", "not inferior"] | None:
    if isinstance(evidence.comparison, PairedDifference):
        return "superior" if evidence.superior else "not inferior"
    against = [evidence.baselines[name] for name in task.gate.checks.gain.over if name in evidence.baselines]
    alpha = _alpha(task.gate.champion, evidence.look)
    return (
        "superior"
        if evidence.champion is None and against and all(_significant(found, alpha) for found in against)
        else None
    )


# ---------------------------------------------------------------- against others


def _alpha(policy: ChampionPolicy, look: Look | None) -> float:
    return look.alpha if look else policy.budget


def _level(policy: ChampionPolicy, look: Look | None) -> str:
    if look is None:
        return f"p at most {policy.budget:.2g}"
    if look.number > policy.looks:
        return (
            f"p at most {look.alpha:.2g} at look {look.number} of these test rows, which served their "
            f"{policy.looks}: fresh rows, or a reserve held back from now on (data.split.reserve), start anew"
        )
    return (
        f"p at most {look.alpha:.2g} at look {look.number} of these test rows, where {look.spent:.3f} of "
        f"{look.budget:.3f} is spent"
    )


def _significant(found: PairedDifference, alpha: float) -> bool:
    return found.p_value is not None and found.p_value <= alpha


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
    """One check over all baselines, of which the closest is shown."""
    rule, champion = task.gate.checks.gain, task.gate.champion
    if rule.policy == "off":
        return
    lacking = [title_of(name) for name in rule.over if name not in evidence.baselines]
    if lacking:
        observed = (
            f"not measured against {' and '.join(lacking)}: the context leaves no room, or too few test rows are unseen"
        )
        yield _check(
            "gain", rule, (False, observed, "a comparison; leave it out of gate.checks.gain.over, or give more rows")
        )
        return
    name, closest = max(
        ((name, evidence.baselines[name]) for name in rule.over),
        key=lambda item: (item[1].p_value or 0.0, -item[1].difference),
    )
    alpha = _alpha(champion, evidence.look)
    yield Check(
        name="gain",
        passed=_significant(closest, alpha),
        observed=f"over {title_of(name)} {shown(closest)}",
        required=f"better than {' and '.join(map(title_of, rule.over))}: {_level(champion, evidence.look)}",
        policy=rule.policy,
    )


def _against(task: Task, evidence: Evidence) -> Iterator[Check]:
    policy = task.gate.champion
    yield _compared("champion", "the champion", policy, (evidence.comparison, evidence.look))
    if policy.rule == "non_inferiority" and evidence.anchor is not None:
        yield _compared("anchor", "the last version that won by superiority", policy, (evidence.anchor, evidence.look))
    rule = task.gate.checks.slices
    if rule.policy != "off" and evidence.slices:
        worst = min(evidence.slices, key=lambda part: part.p_harm)
        harmed = [part.name for part in evidence.slices if part.p_harm <= rule.alpha]
        yield Check(
            name="slices",
            passed=not harmed,
            observed=f"{len(harmed)} of {len(evidence.slices)} are worse{': ' + ', '.join(harmed) if harmed else ''}; "
            f"lowest p {worst.p_harm:.2g} on {worst.name} ({worst.difference:+.4f}, {worst.rows} rows)",
            required=f"none of at least {rule.min_rows} rows worse than the champion at p {rule.alpha:g}",
            policy=rule.policy,
        )


def _compared(
    name: str, whom: str, policy: ChampionPolicy, measured: tuple[PairedDifference | str | None, Look | None]
) -> Check:
    found, look = measured
    if not isinstance(found, PairedDifference):
        return Check(name=name, passed=True, observed=f"not comparable: {found}", required=APPROVAL)
    aim = (
        f"better than {whom}" if policy.rule == "superiority" else f"worse than {whom} by less than {found.margin:.4f}"
    )
    return Check(
        name=name,
        passed=_significant(found, _alpha(policy, look)),
        observed=shown(found),
        required=f"{aim}: {_level(policy, look)}",
    )


# ---------------------------------------------------------------- by rules of their own


def _ruled(task: Task, evidence: Evidence) -> Iterator[Check]:
    yield from _finite(evidence)
    yield from _test_rows(task, evidence)
    for name, rule in task.gate.checks:
        check: Callable[..., tuple[bool, str, str] | None] | None = CHECKS.get(name)
        if check is None or rule.policy == "off":
            continue
        found = check(
            rule,
            evidence.report,
            evidence.measures | {"bytes.stored": evidence.stored_bytes, "bytes.limit": task.byte_limit()},
        )
        if found is not None:
            yield _check(name, rule, found)


def _check(name: str, rule: Rule, found: tuple[bool, str, str]) -> Check:
    passed, observed, required = found
    return Check(
        name=name,
        passed=passed,
        observed=observed,
        required=required,
        policy="warn" if rule.policy == "warn" else "block",
    )


def _finite(evidence: Evidence) -> Iterator[Check]:
    bad = evidence.measures.get("finite.bad", 0)
    if bad:
        yield Check(
            name="finite",
            passed=False,
            observed=f"{bad:.0f} of {evidence.report.rows} rows have a likelihood that is no number",
            required="none",
        )


def _test_rows(task: Task, evidence: Evidence) -> Iterator[Check]:
    rule, needed, policy = task.gate.checks.test_rows, evidence.rows_needed, task.gate.champion
    if rule.policy == "off" or needed is None:
        return
    compared = (
        evidence.comparison
        if isinstance(evidence.comparison, PairedDifference)
        else next(iter(evidence.baselines.values()), None)
    )
    rows = compared.rows if compared else evidence.report.rows
    aim = (
        f"a gain of {rule.effect:g}"
        if policy.rule == "superiority" or not isinstance(evidence.comparison, PairedDifference)
        else f"equal quality within {evidence.comparison.margin:.4f}"
    )
    yield _check(
        "test_rows",
        rule,
        (rows >= needed, f"{rows} rows", f"at least {needed}, to show {aim} four times in five at this look"),
    )
