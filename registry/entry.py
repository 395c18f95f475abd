"""What MLflow shows of a prompt: the records behind it, and its description in Markdown (bullets: tables do not render)."""

import string
from dataclasses import dataclass

from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records import (
    Check,
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


@dataclass(frozen=True)
class Entry:
    """A stored prompt with all that is known about it; `plots` are PNG bytes by name, `store` the object store's address."""

    artifact: Artifact
    tuned: TunedPrompt
    snapshot: Snapshot | None
    report: Report | None
    verdict: Verdict | None
    plots: dict[str, bytes]
    commit: str | None
    store: str

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
        """The test metrics of the prompt and of what it is compared with."""
        if self.report is None:
            return {}
        named = {"": self.report.prompt, "zero_shot_": self.report.zero_shot, "majority_": self.report.majority}
        return {f"{prefix}{metric}": value for prefix, scores in named.items() for metric, value in scores.figures().items()}

    def description(self, version: PromptVersion | None = None) -> str:
        """The version's page: how to use it, how good it is, why it passed or not, what it was made from."""
        sections = (_purpose(self), _use(self, version), _quality(self.report, self.verdict), _decision(self.verdict), _origin(self))
        return "\n\n".join("\n".join(section) for section in sections)[:MAX_DESCRIPTION]


def mlflow_template(template: str) -> str:
    """Our template, which has one `{text}`, in the notation of MLflow's prompts: `{{text}}`."""
    return "".join(literal + ("{{" + name + "}}" if name else "") for literal, name, _, _ in string.Formatter().parse(template))


def _purpose(entry: Entry) -> list[str]:
    manifest = entry.artifact.manifest
    return [f"Soft prompt for **{entry.task}**: {manifest.num_virtual_tokens} virtual tokens ({entry.tuned.bytes:,} bytes) before the frozen `{manifest.base_model.name}`."]


def _use(entry: Entry, version: PromptVersion | None) -> list[str]:
    if not entry.artifact.manifest.labels and entry.artifact.manifest.generate is None:
        return ["### Use", f"- a shared prompt: tasks start from it by `tune: {{method: multitask, shared: {entry.task}}}`; it answers nothing by itself"]
    name = f"{entry.task}@{version.number}" if version else entry.task
    return ["### Use", f'- `ptp predict {name} "..."`', f'- `ptpipeline.load("{name}").predict(["..."])`']


def _quality(report: Report | None, verdict: Verdict | None) -> list[str]:
    if report is None:
        return ["### Quality", "- not evaluated yet"]
    lines = [f"### Quality on {report.rows} test rows", *(_compared(report, metric) for metric in report.prompt.figures())]
    if verdict and verdict.comparison:
        pair = verdict.comparison
        interval = f"{pair.lower:+.3f} to {pair.upper:+.3f} at {pair.confidence:.0%}"
        lines.append(f"- against the champion `{(verdict.champion or '')[:12]}`: {pair.metric} **{pair.difference:+.3f}** ({interval}, {pair.rows} rows)")
    return lines


def _compared(report: Report, metric: str) -> str:
    def value(scores: Scores | TextScores) -> str:
        return f"{scores.figures()[metric]:.3f}"

    between = report.interval.get(metric)
    interval = f" ({between[0]:.3f} to {between[1]:.3f})" if between else ""
    return f"- {title_of(metric)}: **{value(report.prompt)}**{interval}; without a prompt {value(report.zero_shot)}, majority {value(report.majority)}"


def _decision(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return ["### Verdict: none", "- the gate has not judged this version; it cannot go to production"]
    return [f"### Verdict: {'passed' if verdict.passed else 'failed'}", *map(_check, verdict.checks)]


def _check(check: Check) -> str:
    return f"- {'✓' if check.passed else '✗'} {check.name}: {check.observed}, required {check.required}"


def _origin(entry: Entry) -> list[str]:
    manifest, tuned = entry.artifact.manifest, entry.tuned
    lines = ["### Made from", f"- base model `{manifest.base_model.name}`, fingerprint `{manifest.base_model.fingerprint[:12]}`"]
    if entry.snapshot:
        rows = ", ".join(f"{entry.snapshot.split(name).rows} {name}" for name in ("train", "dev", "test"))
        lines.append(f"- data {entry.snapshot.source}, snapshot `{manifest.snapshot[:12]}` ({rows} rows)")
    else:
        lines.append(f"- data snapshot `{manifest.snapshot[:12]}`")
    if tuned.steps:
        lines.append(f"- {tuned.steps} steps in {tuned.seconds:.0f} s, best dev score {tuned.best_dev:.3f} at step {tuned.best_step}, seed {manifest.seed}")
    else:
        lines.append(f"- imported, not trained here: dev score {tuned.best_dev:.3f}; its training rows are not known")
    lines.append(f"- template [{entry.task}.template](#/prompts/{entry.task}.template), answers {manifest.answers}")
    lines.append(f"- bytes at `{entry.store}/prompts/{entry.task}/{entry.digest}`")
    return lines
