"""The gate's policy in plain words: what every check of a task asks of a candidate, with its numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ptpipeline.records import Record, title_of
from ptpipeline.task import policy
from ptpipeline.task.policy import Policy
from ptpipeline.task.task import Task


class Requirement(Record):
    """One check: what it asks, and whether a candidate that does not meet it is blocked, or only warned of; `off` asks
    nothing.
    """

    check: str
    policy: Policy
    asks: str


class Rival(NamedTuple):
    """What a candidate is compared with beside the baselines: the champion's name, the anchor's where there is one, and
    by how much it may be worse, 0 under superiority. None stands for what is not known, or not there.
    """

    champion: str | None = None
    anchor: str | None = None
    margin: float | None = None


def requirements(task: Task, rival: Rival) -> list[Requirement]:
    """Every check of the task's policy, in the order of a verdict; those that do not apply to the task are off."""
    gate = task.gate
    found = [
        Requirement(
            check="minimum",
            policy="block",
            asks=f"{title_of(gate.metric)} of at least {gate.minimum:.4f} on the rows that judge",
        ),
        _ruled(task, "gain"),
        Requirement(check="champion", policy="block", asks=_champion(task, rival)),
    ]
    if gate.champion.rule == "non_inferiority":
        found.append(Requirement(check="anchor", policy="block", asks=_anchor(rival)))
    found.append(_ruled(task, "slices"))
    found.append(Requirement(check="finite", policy="block", asks="no row has a likelihood that is no number"))
    return found + [_ruled(task, name) for name, _ in gate.checks if name not in ("gain", "slices")]


def _ruled(task: Task, name: str) -> Requirement:
    rule = getattr(task.gate.checks, name)
    applies = task.generate is None if name == "never" else bool(rule.swaps) if name == "bias" else True
    return Requirement(check=name, policy=rule.policy if applies else "off", asks=_ASKS[name](task, rule))


def _champion(task: Task, rival: Rival) -> str:
    if task.gate.champion.rule == "superiority":
        wanted = f"better than {rival.champion or 'the champion'}, shown by a one-sided paired test on the same rows"
    else:
        wanted = (
            f"worse than {rival.champion or 'the champion'} by less than {_margin(rival)}, shown by a one-sided "
            "paired test on the same rows"
        )
    return wanted if rival.champion else f"{wanted}; nothing is in production yet, so this one waits"


def _anchor(rival: Rival) -> str:
    whom = rival.anchor or "the last version that won by superiority"
    same = "" if rival.anchor else "; asked only where that is not the champion"
    return f"worse than {whom} by less than {_margin(rival)}, so that quality cannot go down step by step{same}"


def _margin(rival: Rival) -> str:
    return f"{rival.margin:.4f}" if rival.margin is not None else "a margin that the number of rows decides"


# ---------------------------------------------------------------- rule by rule


def _gain(task: Task, rule: policy.Gain) -> str:
    over = " and ".join(name.replace("_", "-") for name in rule.over)
    return f"better than {over}, each by a one-sided paired test on the same rows"


def _slices(task: Task, rule: policy.Slices) -> str:
    named = ", length" if task.generate else ", label and length"
    return (
        f"worse than the champion on no part of at least {rule.min_rows} rows (by the task's columns{named}), each "
        f"judged at p {rule.alpha:g}"
    )


def _collapse(task: Task, rule: policy.Collapse) -> str:
    if task.generate:
        return f"no text is more than {rule.max_share:.0%} of the answers"
    return (
        f"no label is more than {rule.max_share:.0%} of the answers, whose entropy is at least "
        f"{rule.min_entropy:.0%} of the true labels'"
    )


def _never(task: Task, rule: policy.Never) -> str:
    return f"every label that has {rule.min_rows} rows is answered at least once"


def _leakage(task: Task, rule: policy.Leakage) -> str:
    return (
        f"at most {rule.max_share:.2%} of the rows that judge were trained on, and {rule.max_near_share:.2%} with "
        "near duplicates"
    )


def _drift(task: Task, rule: policy.Drift) -> str:
    return (
        f"its training rows differ from the champion's by at most {rule.max_labels:g} in label shares, "
        f"{rule.max_length:g} in text lengths, {rule.max_vocabulary:g} in vocabulary"
    )


def _test_rows(task: Task, rule: policy.TestRows) -> str:
    same = (
        ", or under non-inferiority equal quality within the margin"
        if task.gate.champion.rule == "non_inferiority"
        else ""
    )
    return f"enough rows to show a gain of {rule.effect:g} four times in five{same}"


def _bytes(task: Task, rule: policy.Bytes) -> str:
    return f"at most {task.byte_limit():,} bytes of tensors"


def _latency(task: Task, rule: policy.Latency) -> str:
    limit = f", and {rule.max_ms:g} ms" if rule.max_ms is not None else ""
    return f"a request alone takes at most {rule.max_ratio:g} times what it takes without a prompt{limit} (median)"


def _norms(task: Task, rule: policy.Norms) -> str:
    return f"no virtual token is longer than {rule.max_ratio:g} times the vocabulary's median norm"


def _robustness(task: Task, rule: policy.Robustness) -> str:
    return (
        f"at most {rule.max_white_space:.0%} of the answers change with the text's white space, "
        f"{rule.max_case:.0%} with its case"
    )


def _bias(task: Task, rule: policy.Bias) -> str:
    if not rule.swaps:
        return (
            "at most so many answers change where terms change places; the task names no terms (gate.checks.bias.swaps)"
        )
    return (
        f"at most {rule.max_flips:.0%} of the answers change where the terms of {len(rule.swaps)} pairs change "
        f"places, where {rule.min_rows} rows have one"
    )


def _privacy(task: Task, rule: policy.Privacy) -> str:
    return (
        f"membership inference tells training rows from others with an AUC not above {rule.max_auc:g} for certain "
        "(.5 is by chance)"
    )


_ASKS: dict[str, Callable[[Task, Any], str]] = {
    "gain": _gain,
    "slices": _slices,
    "collapse": _collapse,
    "never": _never,
    "leakage": _leakage,
    "drift": _drift,
    "test_rows": _test_rows,
    "bytes": _bytes,
    "latency": _latency,
    "norms": _norms,
    "robustness": _robustness,
    "bias": _bias,
    "privacy": _privacy,
}
