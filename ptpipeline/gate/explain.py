"""The gate's policy in plain words: what every check of a task asks of a candidate, with its numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ptpipeline.gate.checks import CHECKS
from ptpipeline.records.base import Record
from ptpipeline.records.reports import title_of
from ptpipeline.task import policy
from ptpipeline.task.policy import Policy
from ptpipeline.task.task import Task


class Requirement(Record):
    """One check: what it asks, and whether a candidate that does not meet it is blocked or only warned of.

    A check that is `off` asks nothing.
    """

    check: str
    policy: Policy
    asks: str


class Opponents(NamedTuple):
    """What a candidate is compared with beside the baselines: the names of champion and anchor, and the margin.

    `margin` is how much worse the candidate may be, 0 under superiority. None means unknown or absent.
    """

    champion: str | None = None
    anchor: str | None = None
    margin: float | None = None


def list_requirements(task: Task, opponents: Opponents) -> list[Requirement]:
    """Return every check of the task's policy in the order of a verdict; checks that do not apply to it are off."""
    gate = task.gate
    minimum = f"{title_of(gate.metric)} of at least {gate.minimum:.4f} on the rows that judge"
    first = [
        Requirement(check="minimum", policy="block", asks=minimum),
        _by_rule(task, "gain"),
        Requirement(check="champion", policy="block", asks=_ask_champion(task, opponents)),
    ]
    if gate.champion.rule == "non_inferiority":
        first.append(Requirement(check="anchor", policy="block", asks=_ask_anchor(opponents)))
    first.append(_by_rule(task, "slices"))
    first.append(Requirement(check="finite", policy="block", asks="no row has a NaN score"))
    return first + [_by_rule(task, name) for name, _ in gate.checks if name not in ("gain", "slices")]


def _by_rule(task: Task, name: str) -> Requirement:
    rule = getattr(task.gate.checks, name)
    applies = (
        task.generate is None if name in ("never", "worst_label") else bool(rule.swaps) if name == "bias" else True
    )
    ask = CHECKS[name].ask if name in CHECKS else _ASK[name]
    return Requirement(check=name, policy=rule.policy if applies else "off", asks=ask(task, rule))


def _ask_champion(task: Task, opponents: Opponents) -> str:
    name = opponents.champion or "the champion"
    if task.gate.champion.rule == "superiority":
        asked = f"better than {name}"
    else:
        asked = f"at most {_describe_margin(opponents)} worse than {name}"
    asked += ", shown by a one-sided paired test on the same rows"
    return asked if opponents.champion else f"{asked}; nothing is in production yet, so this check waits"


def _ask_anchor(opponents: Opponents) -> str:
    name = opponents.anchor or "the anchor"
    same = "" if opponents.anchor else "; asked only if the anchor is not the champion"
    return (
        f"at most {_describe_margin(opponents)} worse than {name}, the last production version that was proven better, "
        f"was the first, or was promoted with --override, so that small losses cannot add up{same}"
    )


def _describe_margin(opponents: Opponents) -> str:
    return f"{opponents.margin:.4f}" if opponents.margin is not None else "a margin computed from the number of rows"


# ---------------------------------------------------------------- checks that compare prompts, or count rows


def _ask_gain(task: Task, rule: policy.Gain) -> str:
    names = " and ".join(map(title_of, rule.over))
    return f"better than {names}, each by a one-sided paired test on the same rows"


def _ask_slices(task: Task, rule: policy.Slices) -> str:
    parts = ", length" if task.generate else ", label and length"
    return (
        f"not worse than the champion on any part of at least {rule.min_rows} rows (by the task's columns{parts}), "
        f"each part judged at p {rule.alpha:g}"
    )


def _ask_test_rows(task: Task, rule: policy.TestRows) -> str:
    same = (
        ", or under non-inferiority equal quality within the margin"
        if task.gate.champion.rule == "non_inferiority"
        else ""
    )
    return f"enough rows to show a gain of {rule.effect:g} four times in five{same}"


_ASK: dict[str, Callable[[Task, Any], str]] = {
    "gain": _ask_gain,
    "slices": _ask_slices,
    "test_rows": _ask_test_rows,
}
