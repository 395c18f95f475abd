"""All probes of one prompt, as the task's policy asks for them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ptpipeline.data.rows import Row
from ptpipeline.evaluation.probes.latency import latency
from ptpipeline.evaluation.probes.membership import membership
from ptpipeline.evaluation.probes.norms import norms
from ptpipeline.evaluation.probes.robustness import robustness
from ptpipeline.evaluation.probes.swaps import swaps
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records import digest_of
from ptpipeline.serving.engine import Engine
from ptpipeline.task.policy import Checks

PROBES_VERSION = 1  # raise by one whenever the same prompt and rows would be probed otherwise


class Subject(NamedTuple):
    """A prompt with its members, if it is an ensemble, and rows that it was trained on and rows that it was not."""

    artifact: Artifact
    members: Sequence[Artifact]
    train: Sequence[Row]
    test: Sequence[Row]


def probed(engine: Engine, subject: Subject, checks: Checks) -> dict[str, float]:
    """The measures of all probes whose checks are not off; raises what Engine.load raises."""
    artifact, test = subject.artifact, subject.test
    engine.load(artifact, subject.members)
    probes: dict[str, Callable[[], dict[str, float]]] = {
        "robustness": lambda: robustness(engine, artifact, test),
        "bias": lambda: swaps(engine, artifact, test, checks.bias.swaps) if checks.bias.swaps else {},
        "privacy": lambda: membership(engine, artifact, subject.train, test),
        "norms": lambda: norms(engine, artifact, subject.members),
        "latency": lambda: latency(engine, artifact, test),
    }
    found: dict[str, float] = {}
    for name, probe in probes.items():
        if getattr(checks, name).policy != "off":
            found |= {
                measure: value for measure, value in probe().items() if math.isfinite(value)
            }  # a prompt without numbers fails as `finite`
    return found


def asked(checks: Checks) -> str:
    """Digest of what the probes are asked: equal, and a report need not be probed again."""
    rules = {
        name: getattr(checks, name).policy != "off" for name in ("robustness", "bias", "privacy", "norms", "latency")
    }
    return digest_of({"version": PROBES_VERSION, "rules": rules, "swaps": [list(pair) for pair in checks.bias.swaps]})
