"""What MLflow shows of a prompt: the records behind it, and its description in Markdown (bullets: tables do not
render).
"""

import math
import statistics
import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ptpipeline.evaluation.mistakes import Mistakes
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.interpretation import Neighbours, Wayward
from ptpipeline.records import (
    Check,
    PairedDifference,
    PromptVersion,
    Report,
    Scores,
    Snapshot,
    TextScores,
    TunedPrompt,
    Verdict,
    title_of,
)

MAX_DESCRIPTION = 5000  # characters that MLflow's databases keep
MAX_LINE = 400
SUMMED = ("bleu", "chrf")  # compared by sentences, shown of the corpus: the two do not subtract


@dataclass(frozen=True)
class Entry:
    """A stored prompt with all that is known about it; `plots` are PNG bytes by name, `store` the object store's
    address.

    `champion` is the number of the version that the verdict compares it with, `neighbours` are the words near its
    virtual tokens, `wayward` experiments on what those words are worth, `mistakes` rows that it gets wrong, where their
    texts may be shown.
    """

    artifact: Artifact
    tuned: TunedPrompt
    snapshot: Snapshot | None
    report: Report | None
    verdict: Verdict | None
    plots: dict[str, bytes]
    commit: str | None
    store: str
    champion: int | None = None
    neighbours: Neighbours | None = None
    mistakes: Mistakes | None = None
    wayward: Sequence[Wayward] = ()

    @property
    def task(self) -> str:
        """The task that the prompt is for."""
        return self.artifact.manifest.task

    @property
    def digest(self) -> str:
        """The prompt's identity."""
        return self.artifact.digest

    def params(self) -> dict[str, str]:
        """What the prompt was made with, as MLflow's parameters."""
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
            "compute_dtype": self.tuned.compute_dtype,
        }

    def tags(self, version: PromptVersion | None = None) -> dict[str, str]:
        """What a version is found and judged by in MLflow."""
        manifest = self.artifact.manifest
        tags = {
            "ptp.digest": self.digest,
            "ptp.base_model": manifest.base_model.name,
            "ptp.snapshot": manifest.snapshot,
            "ptp.verdict": "none" if self.verdict is None else "passed" if self.verdict.passed else "failed",
        }
        if self.verdict:
            tags["ptp.verdict_digest"] = self.verdict.verdict_digest()
        if version:
            tags["ptp.version"] = str(version.number)
        if self.commit:
            tags["ptp.commit"] = self.commit
        return tags

    def metrics(self) -> dict[str, float]:
        """The metrics of the prompt and its baselines on the report's split, and what probes and checks measured;
        without what is not finite.
        """
        if self.report is None:
            return {}
        prefixes = {name: "" if name == "prompt" else f"{name}_" for name in columns(self.report)}
        found = {
            f"{prefixes[name]}{metric}": value
            for name, scores in columns(self.report).items()
            for metric, value in scores.figures().items()
        }
        if isinstance(self.report.prompt, Scores) and self.report.prompt.calibration_error is not None:
            found["calibration_error"] = self.report.prompt.calibration_error
        found |= self.report.measures | (self.verdict.measures if self.verdict else {})
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def description(self, version: PromptVersion | None = None) -> str:
        """The version's page: how to use it, how good it is, why it passed or not, what it was made from."""
        sections = (_purpose(self), _use(self, version), _quality(self), _decision(self.verdict), _origin(self))
        return _fitting([line for section in sections for line in (*section, "")])


def columns(report: Report) -> dict[str, Scores | TextScores]:
    """The scores of the prompt and of its baselines, by name, the strongest kind of baseline first."""
    found = {
        "prompt": report.prompt,
        "hard_prompt": report.hard_prompt,
        "zero_shot": report.zero_shot,
        "majority": report.majority,
    }
    return {name: scores for name, scores in found.items() if scores is not None}


def curse(entry: Entry) -> str | None:
    """What to think of the champion's figure: it was picked for being the best on these rows, so it is a lucky one (the
    winner's curse).
    """
    verdict = entry.verdict
    if (
        entry.report is None
        or verdict is None
        or verdict.comparison is None
        or verdict.look is None
        or verdict.look.number == 1
    ):
        return None
    pair, times = verdict.comparison, "once" if verdict.look.number == 2 else f"{verdict.look.number - 1} times"
    about = (
        "" if pair.metric in SUMMED else f" of about {entry.report.prompt.figures()[pair.metric] - pair.difference:.3f}"
    )
    return (
        f"the champion's {title_of(pair.metric)}{about} was measured on rows that were looked at {times} before: "
        "what wins on rows does a little worse on fresh ones"
    )


def seeds(tuned: TunedPrompt) -> list[str]:
    """How much each recipe that was tried varies with its seed alone; intervals over test rows do not tell it."""
    found: dict[str, list[float]] = defaultdict(list)
    for trial in tuned.trials:
        recipe, told, _ = trial.name.rpartition(", seed ")
        if told and trial.best_dev is not None:
            found[recipe.split("/", 1)[-1]].append(trial.best_dev)
    spread = [
        f"{len(dev)} seeds of {recipe}: dev {statistics.mean(dev):.4f}, standard deviation "
        f"{statistics.stdev(dev):.4f}, lowest {min(dev):.4f}, highest {max(dev):.4f}"
        for recipe, dev in found.items()
        if len(dev) > 1
    ]
    return spread or [
        "one seed was trained: how much the recipe varies with it is not known (`tune.search.seed` tells)"
    ]


def mlflow_template(template: str) -> str:
    """Our template, which has one `{text}`, in the notation of MLflow's prompts: `{{text}}`."""
    return "".join(
        literal + ("{{" + name + "}}" if name else "") for literal, name, _, _ in string.Formatter().parse(template)
    )


def _purpose(entry: Entry) -> list[str]:
    manifest = entry.artifact.manifest
    return [
        f"Soft prompt for **{entry.task}**: {manifest.num_virtual_tokens} virtual tokens "
        f"({entry.tuned.bytes:,} bytes) before the frozen `{manifest.base_model.name}`."
    ]


def _use(entry: Entry, version: PromptVersion | None) -> list[str]:
    if not entry.artifact.manifest.labels and entry.artifact.manifest.generate is None:
        return [
            "### Use",
            f"- a shared prompt: tasks start from it by `tune: {{method: multitask, shared: {entry.task}}}`; "
            "it answers nothing by itself",
        ]
    name = f"{entry.task}@{version.number}" if version else entry.task
    return ["### Use", f'- `ptp predict {name} "..."`', f'- `ptpipeline.load("{name}").predict(["..."])`']


def _quality(entry: Entry) -> list[str]:
    report, verdict = entry.report, entry.verdict
    if report is None:
        return ["### Quality", "- not evaluated yet"]
    lines = [
        f"### Quality on {report.rows} {report.split} rows",
        *(_compared(report, metric) for metric in report.prompt.figures()),
    ]
    if isinstance(report.prompt, Scores) and report.prompt.calibration_error is not None:
        lines.append(f"- calibration error: **{report.prompt.calibration_error:.3f}**")
    if verdict and verdict.comparison:
        named = f"version {entry.champion}" if entry.champion else f"`{(verdict.champion or '')[:12]}`"
        lines.append(f"- against the champion {named}: {_difference(verdict.comparison)}")
        lines += [f"- {sentence}" for sentence in (curse(entry),) if sentence]
    return lines + ([f"- {sentence}" for sentence in seeds(entry.tuned)] if entry.tuned.steps else [])


def _compared(report: Report, metric: str) -> str:
    between = report.interval.get(metric)
    interval = f" ({between[0]:.3f} to {between[1]:.3f})" if between else ""
    found = {name: scores.figures().get(metric) for name, scores in columns(report).items()}
    named = {"hard_prompt": "prompt in words", "zero_shot": "without a prompt", "majority": "majority"}
    others = ", ".join(f"{words} {found[name]:.3f}" for name, words in named.items() if found.get(name) is not None)
    return f"- {title_of(metric)}: **{found['prompt']:.3f}**{interval}; {others}"


def _difference(pair: PairedDifference) -> str:
    tested = f", p {pair.p_value:.2g} by {pair.test}" if pair.p_value is not None else ""
    return (
        f"{title_of(pair.metric)} **{pair.difference:+.3f}** ({pair.lower:+.3f} to {pair.upper:+.3f} at "
        f"{pair.confidence:.0%}{tested}, {pair.rows} rows)"
    )


def _decision(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return ["### Verdict: none", "- the gate has not judged this version; it cannot go to production"]
    won = f", {verdict.won}" if verdict.won else ""
    warned = (
        f", {len(verdict.warnings())} warnings"
        if len(verdict.warnings()) > 1
        else ", 1 warning"
        if verdict.warnings()
        else ""
    )
    return [
        f"### Verdict: {'passed' if verdict.passed else 'failed'}{won}{warned}",
        *map(_check, verdict.checks),
        *_budget(verdict),
    ]


def _budget(verdict: Verdict) -> list[str]:
    look = verdict.look
    if look is None:
        return []
    return [
        f"- look {look.number} at these test rows: it may err with a chance of {look.alpha:.2g}, "
        f"{look.spent:.3f} of {look.budget:.3f} is spent"
    ]


def _check(check: Check) -> str:
    return (
        f"- {'✓' if check.passed else '✗' if check.blocks else '⚠'} {check.name}: {check.observed}, required "
        f"{check.required}"
    )


def _origin(entry: Entry) -> list[str]:
    manifest, tuned = entry.artifact.manifest, entry.tuned
    lines = [
        "### Made from",
        f"- base model `{manifest.base_model.name}`, fingerprint `{manifest.base_model.fingerprint[:12]}`",
    ]
    if entry.snapshot:
        rows = ", ".join(f"{entry.snapshot.split(name).rows} {name}" for name in ("train", "dev", "test"))
        lines.append(f"- data {entry.snapshot.source}, snapshot `{manifest.snapshot[:12]}` ({rows} rows)")
    else:
        lines.append(f"- data snapshot `{manifest.snapshot[:12]}`")
    if tuned.steps:
        lines.append(
            f"- {tuned.steps} steps in {tuned.seconds:.0f} s, best dev score {tuned.best_dev:.3f} at step "
            f"{tuned.best_step}, seed {manifest.seed}"
        )
    else:
        lines.append(f"- imported, not trained here: dev score {tuned.best_dev:.3f}; its training rows are not known")
    lines.append(f"- template [{entry.task}.template](#/prompts/{entry.task}.template), answers {manifest.answers}")
    lines.append(
        f"- bytes at `{entry.store}/prompts/{entry.task}/{entry.digest}`; all of this, slices and plots in "
        "`report.html` of the logged model"
    )
    return lines


def _fitting(lines: Sequence[str]) -> str:
    """Lines as far as MLflow keeps them, whole ones; a long one is cut."""
    kept, room = [], MAX_DESCRIPTION
    for line in lines:
        shown = line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"
        room -= len(shown) + 1
        if room < 0:
            break
        kept.append(shown)
    return "\n".join(kept).strip()
