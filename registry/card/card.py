"""All that is known of a prompt in one record, with its parameters, tags and metrics in MLflow."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ptpipeline.evaluation.mistakes import Mistakes
from ptpipeline.gate.disclosure import is_withheld
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.interpretation import Neighbours, Wayward
from ptpipeline.records.data import Snapshot
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.reports import Report, Scores, TextScores, title_of
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import Beside, Promotion, PromptVersion

WITHHELD = (
    "the figures of the test rows are withheld, because the candidate was refused and `gate.figures` is quiet; "
    "`ptp show TASK@N --reveal` spends a look to show them"
)
ALIAS_TAG = "ptp.alias."  # of a model version, before an alias that names it
VERDICT_TAG, VERDICT_DIGEST_TAG = "ptp.verdict", "ptp.verdict_digest"
MAX_TAG = 5000  # characters: every database of MLflow keeps as many
SUMMED = ("bleu", "chrf")  # compared by sentences, shown of the corpus: the two do not subtract


@dataclass(frozen=True)
class Provenance:
    """How a prompt was made, measured and judged, and what its page shows besides.

    `plots` are PNG bytes by name, `neighbours` the words near its virtual tokens, `mistakes` the rows that it gets
    wrong: None unless the task lets their texts out.
    """

    tuned: TunedPrompt
    report: Report | None = None
    verdict: Verdict | None = None
    plots: dict[str, bytes] = field(default_factory=dict)
    commit: str | None = None
    neighbours: Neighbours | None = None
    mistakes: Mistakes | None = None


class Naming(NamedTuple):
    """A time in which an alias named the version: the promotion that began it, and the one that ended it, if any.

    beside: the version stood beside the alias's own then, as a canary or a shadow.
    """

    promotion: Promotion
    ended: Promotion | None = None
    beside: Beside | None = None


@dataclass(frozen=True)
class Card:
    """All that people may see of a stored prompt: what its MLflow version and its page show.

    `store` is the object store's address, `champion` the number of the version that the verdict compares it with,
    `wayward` are experiments on what the words near its virtual tokens are worth, `namings` the times in which an alias
    named it, oldest first.
    """

    artifact: Artifact
    provenance: Provenance
    snapshot: Snapshot | None
    store: str
    champion: int | None = None
    wayward: Sequence[Wayward] = ()
    namings: Sequence[Naming] = ()

    @property
    def task(self) -> str:
        """The task that the prompt is for."""
        return self.artifact.manifest.task

    @property
    def digest(self) -> str:
        """The prompt's identity."""
        return self.artifact.digest

    @property
    def withheld(self) -> bool:
        """True if report and verdict are shown without the figures of the test rows."""
        return is_withheld(self.provenance.verdict)

    def params(self) -> dict[str, str]:
        """Return what the prompt was made with, as MLflow's parameters."""
        manifest = self.artifact.manifest
        return {
            "method": manifest.method,
            "num_virtual_tokens": str(manifest.num_virtual_tokens),
            "base_model": manifest.base_model.name,
            "base_fingerprint": manifest.base_model.fingerprint,
            "max_input_tokens": str(manifest.max_input_tokens),
            "snapshot": manifest.snapshot,
            "recipe": manifest.recipe,
            "seed": str(manifest.seed),
            "engine_version": str(manifest.engine_version),
            "compute_dtype": self.provenance.tuned.compute_dtype,
        }

    def tags(self, version: PromptVersion | None = None) -> dict[str, str]:
        """Return the tags by which a version is found and judged in MLflow."""
        manifest, verdict, commit = self.artifact.manifest, self.provenance.verdict, self.provenance.commit
        tags = {
            "ptp.digest": self.digest,
            "ptp.base_model": manifest.base_model.name,
            "ptp.snapshot": manifest.snapshot,
            VERDICT_TAG: describe_outcome(None if verdict is None else verdict.passed),
        }
        if verdict and not self.withheld:  # a redacted verdict is no verdict of the ledger
            tags[VERDICT_DIGEST_TAG] = verdict.verdict_digest()
        if version:
            tags["ptp.version"] = str(version.number)
            tags |= alias_tags(self.namings)
        if commit:
            tags["ptp.commit"] = commit
        return tags

    def metrics(self) -> dict[str, float]:
        """Return the finite metrics of the prompt and its baselines on the report's split, and of probes and checks."""
        report, verdict = self.provenance.report, self.provenance.verdict
        if report is None:
            return {}
        metrics = {
            f"{'' if name == 'prompt' else f'{name}_'}{metric}": value
            for name, scores in columns(report).items()
            for metric, value in scores.figures().items()
        }
        if isinstance(report.prompt, Scores) and report.prompt.calibration_error is not None:
            metrics["calibration_error"] = report.prompt.calibration_error
        metrics |= report.measures | (verdict.measures if verdict else {})
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


def alias_tags(namings: Sequence[Naming]) -> dict[str, str]:
    """Return the tags that tell since when, by whom and why aliases name a version now; what is too long is cut."""
    return {f"{ALIAS_TAG}{one.promotion.alias}": describe_naming(one)[:MAX_TAG] for one in namings if one.ended is None}


def describe_outcome(passed: bool | None) -> str:
    """Return what the verdict's tag says: whether the newest verdict passed, `none` if there is none."""
    return "none" if passed is None else "passed" if passed else "failed"


def describe_naming(naming: Naming) -> str:
    """Return when, by whom and why an alias named a version, and what ended it; the words are those of the history."""
    promotion, ended, beside = naming
    time = f"since {minute(promotion.at)}" if ended is None else f"{minute(promotion.at)} to {minute(ended.at)}"
    if beside:
        role = "shadow" if beside.is_shadow else f"canary at {beside.percent}%"
        time = f"{role} beside version {promotion.version} {time}"
    against = " against the gate" if (beside or promotion).override else ""
    told = f"{time}, by {promotion.actor}{against}, because: {promotion.reason}"
    if ended is None:
        return told
    then = "ended" if beside else f"then version {ended.version},"
    return f"{told}; {then} by {ended.actor}: {ended.reason}"


def minute(time: str) -> str:
    """Return a record's time to the minute, as people read it: `2026-11-26 17:10 UTC`."""
    return f"{time[:16].replace('T', ' ')} UTC"


def columns(report: Report) -> dict[str, Scores | TextScores]:
    """Return the scores of the prompt and of its baselines, by name, the strongest kind of baseline first."""
    scored = {
        "prompt": report.prompt,
        "hard_prompt": report.hard_prompt,
        "zero_shot": report.zero_shot,
        "majority": report.majority,
    }
    return {name: scores for name, scores in scored.items() if scores is not None}


def selection_bias(card: Card) -> str | None:
    """Return a note that the champion's figure is too high on average, because it was chosen as the best of several
    looks at these rows; None if it was not.
    """
    report, verdict = card.provenance.report, card.provenance.verdict
    if report is None or verdict is None or verdict.comparison is None or verdict.look is None:
        return None
    if verdict.look.number == 1:
        return None
    pair, times = verdict.comparison, "once" if verdict.look.number == 2 else f"{verdict.look.number - 1} times"
    champion = report.prompt.figures()[pair.metric] - pair.difference if pair.metric not in SUMMED else None
    about = "" if champion is None else f" of about {champion:.3f}"
    return (
        f"the champion's {title_of(pair.metric)}{about} was measured on rows that were looked at {times} before: "
        "what wins on rows does a little worse on fresh ones"
    )


def seed_spread(tuned: TunedPrompt) -> list[str]:
    """Return how much each recipe that was tried varies with its seed alone; intervals over test rows do not say so.

    A recipe of which a trial was dropped is left out: those that went on were chosen, and the others are unfinished.
    """
    by_recipe: dict[str, list[float]] = defaultdict(list)
    cut = {trial.name.rpartition(", seed ")[0] for trial in tuned.trials if trial.dropped}
    for trial in tuned.trials:
        recipe, seed, _ = trial.name.rpartition(", seed ")
        if seed and recipe not in cut and trial.best_dev is not None:
            by_recipe[recipe.split("/", 1)[-1]].append(trial.best_dev)
    spread = [
        f"{len(dev)} seeds of {recipe}: dev {statistics.mean(dev):.4f}, standard deviation "
        f"{statistics.stdev(dev):.4f}, lowest {min(dev):.4f}, highest {max(dev):.4f}"
        for recipe, dev in by_recipe.items()
        if len(dev) > 1
    ]
    if cut and not spread:
        return ["halving ended seeds early: how much a recipe varies with its seed is not known"]
    return spread or [
        "one seed was trained: how much the recipe varies with it is not known (`tune.search.seed` tells)"
    ]
