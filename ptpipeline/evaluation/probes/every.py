"""Runs all probes of one prompt that the task's policy asks for."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ptpipeline.data.rows import Row
from ptpipeline.evaluation.probes.latency import measure_latency
from ptpipeline.evaluation.probes.membership import measure_membership
from ptpipeline.evaluation.probes.norms import measure_norms
from ptpipeline.evaluation.probes.queries import NOTHING, Known
from ptpipeline.evaluation.probes.robustness import measure_robustness
from ptpipeline.evaluation.probes.swaps import measure_swaps
from ptpipeline.progress import phase
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.base import digest_of
from ptpipeline.serving.engine import Engine
from ptpipeline.task.policy import Checks

PROBES_VERSION = 1  # raise by one if the same prompt and rows would be probed differently
PROBES = ("robustness", "bias", "privacy", "norms", "latency")


class Subject(NamedTuple):
    """A prompt, its members if it is an ensemble, the rows that it was trained on, test rows, and the scores that are
    known of the test rows.
    """

    artifact: Artifact
    members: Sequence[Artifact]
    train: Sequence[Row]
    test: Sequence[Row]
    known: Known = NOTHING


def run_probes(engine: Engine, subject: Subject, checks: Checks) -> dict[str, float]:
    """Return the finite measures of all probes whose checks are not off; raises what Engine.load raises.

    A measure that is NaN or infinite is left out: the check `finite` reports a prompt whose scores are not numbers.
    """
    artifact, test, known = subject.artifact, subject.test, subject.known
    engine.load(artifact, subject.members)
    probes: dict[str, Callable[[], dict[str, float]]] = {
        "robustness": lambda: measure_robustness(engine, artifact, test, known, checks.robustness.fields),
        "bias": lambda: (
            measure_swaps(engine, artifact, test, checks.bias.swaps, known, checks.bias.fields)
            if checks.bias.swaps
            else {}
        ),
        "privacy": lambda: measure_membership(engine, artifact, subject.train, test, known),
        "norms": lambda: measure_norms(engine, artifact, subject.members),
        "latency": lambda: measure_latency(engine, artifact, test),
    }
    measures: dict[str, float] = {}
    for name, probe in probes.items():
        if getattr(checks, name).policy != "off":
            with phase(name, whole=name == "latency"):  # its requests are single ones
                measures |= {measure: value for measure, value in probe().items() if math.isfinite(value)}
    return measures


def probes_digest(checks: Checks) -> str:
    """Return the digest of the probes' settings: if it is unchanged, a report need not be probed again."""
    rules = {name: getattr(checks, name).policy != "off" for name in PROBES}
    named = {name: list(rule.fields) for name, rule in checks.field_rules.items() if name in PROBES and rule.fields}
    swaps = [list(pair) for pair in checks.bias.swaps]
    parts = {"version": PROBES_VERSION, "rules": rules, "swaps": swaps}
    return digest_of(parts | ({"fields": named} if named else {}))
