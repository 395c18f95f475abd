"""A card as MLflow's page of a version: Markdown with bullets, because MLflow does not render tables."""

from collections.abc import Sequence

from ptpipeline.records.reports import PairedDifference, Report, Scores, title_of
from ptpipeline.records.verdicts import Check, Verdict
from ptpipeline.records.versions import PRODUCTION, PromptVersion
from ptpipeline.storage.keys import prompt_prefix
from registry.card.card import WITHHELD, Card, Naming, columns, describe_naming, seed_spread, selection_bias
from registry.card.markdown import escape, quote

MAX_DESCRIPTION = 5000  # characters that MLflow's databases keep
MAX_LINE = 400
MAX_NAMINGS = 5


def render_description(card: Card, version: PromptVersion | None = None) -> str:
    """Return the version's page: how to use it, how good it is, why it passed or not, what it was made from."""
    sections = (
        _purpose(card),
        _aliases(card),
        _use(card, version),
        _quality(card),
        _decision(card.provenance.verdict),
        _origin(card),
    )
    return _fit([line for section in sections if section for line in (*section, "")])


def _purpose(card: Card) -> list[str]:
    manifest = card.artifact.manifest
    return [
        f"Soft prompt for **{card.task}**: {manifest.num_virtual_tokens} virtual tokens "
        f"({card.provenance.tuned.bytes:,} bytes) before the frozen {quote(manifest.base_model.name)}."
    ]


def _aliases(card: Card) -> list[str]:
    """Return what names the version now, and the last times in which something did."""
    newest = list(reversed(card.namings))[:MAX_NAMINGS]
    if not newest:
        return []
    ordered = sorted(newest, key=lambda naming: naming.ended is not None)
    heading = "### In production" if any(_is_in_production(naming) for naming in newest) else "### Aliases"
    return [heading, *(f"- **{one.promotion.alias}** {escape(describe_naming(one))}" for one in ordered)]


def _is_in_production(naming: Naming) -> bool:
    return naming.ended is None and naming.beside is None and naming.promotion.alias == PRODUCTION


def _use(card: Card, version: PromptVersion | None) -> list[str]:
    if not card.artifact.manifest.labels and card.artifact.manifest.generate is None:
        return [
            "### Use",
            f"- a shared prompt: tasks start from it by `tune: {{method: multitask, shared: {card.task}}}`; "
            "it answers nothing by itself",
        ]
    name = f"{card.task}@{version.number}" if version else card.task
    return ["### Use", f'- `ptp predict {name} "..."`', f'- `ptpipeline.load("{name}").predict(["..."])`']


def _quality(card: Card) -> list[str]:
    report, verdict = card.provenance.report, card.provenance.verdict
    if report is None:
        return ["### Quality", f"- {WITHHELD}" if card.withheld else "- not evaluated yet"]
    lines = [
        f"### Quality on {report.rows} {report.split} rows",
        *(_compare_baselines(report, metric) for metric in report.prompt.figures()),
    ]
    if isinstance(report.prompt, Scores) and report.prompt.calibration_error is not None:
        lines.append(f"- calibration error: **{report.prompt.calibration_error:.3f}**")
    if verdict and verdict.comparison:
        named = f"version {card.champion}" if card.champion else f"`{(verdict.champion or '')[:12]}`"
        lines.append(f"- against the champion {named}: {_difference(verdict.comparison)}")
        lines += [f"- {escape(sentence)}" for sentence in (selection_bias(card),) if sentence]
    tuned = card.provenance.tuned
    spread = [sentence.replace("`", "") for sentence in seed_spread(tuned)] if tuned.steps else []
    return [*lines, *(f"- {escape(sentence)}" for sentence in spread)]


def _compare_baselines(report: Report, metric: str) -> str:
    between = report.interval.get(metric)
    interval = f" ({between[0]:.3f} to {between[1]:.3f})" if between else ""
    figures = {name: scores.figures().get(metric) for name, scores in columns(report).items()}
    named = {"hard_prompt": "hard prompt", "zero_shot": "zero-shot", "majority": "majority"}
    others = ", ".join(f"{words} {figures[name]:.3f}" for name, words in named.items() if figures.get(name) is not None)
    return f"- {title_of(metric)}: **{figures['prompt']:.3f}**{interval}; {others}"


def _difference(pair: PairedDifference) -> str:
    tested = f", p {pair.p_value:.2g} by {escape(pair.test)}" if pair.p_value is not None else ""
    return (
        f"{escape(title_of(pair.metric))} **{pair.difference:+.3f}** ({pair.lower:+.3f} to {pair.upper:+.3f} at "
        f"{pair.confidence:.0%}{tested}, {pair.rows} rows)"
    )


def _decision(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return ["### Verdict: none", "- the gate has not judged this version; it cannot go to production"]
    won = f", {verdict.won}" if verdict.won else ""
    warnings = len(verdict.warnings())
    warned = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
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
    mark = "✓" if check.passed else "✗" if check.blocks else "⚠"
    return f"- {mark} {escape(check.name)}: {escape(check.observed)}, required {escape(check.required)}"


def _origin(card: Card) -> list[str]:
    manifest, tuned = card.artifact.manifest, card.provenance.tuned
    lines = [
        "### Made from",
        f"- base model {quote(manifest.base_model.name)}, fingerprint {quote(manifest.base_model.fingerprint[:12])}",
    ]
    if card.snapshot:
        rows = ", ".join(f"{card.snapshot.split(name).rows} {name}" for name in ("train", "dev", "test"))
        lines.append(f"- data {escape(card.snapshot.source)}, snapshot {quote(manifest.snapshot[:12])} ({rows} rows)")
    else:
        lines.append(f"- data snapshot {quote(manifest.snapshot[:12])}")
    if tuned.steps:
        lines.append(
            f"- {tuned.steps} steps in {tuned.seconds:.0f} s, best dev score {tuned.best_dev:.3f} at step "
            f"{tuned.best_step}, seed {manifest.seed}"
        )
    else:
        lines.append(f"- imported, not trained here: dev score {tuned.best_dev:.3f}; its training rows are not known")
    lines.append(
        f"- template [{card.task}.template](#/prompts/{card.task}.template), answers {escape(manifest.answers)}"
    )
    place = f"{card.store}/{prompt_prefix(card.task, card.digest)}"
    lines.append(f"- bytes at {quote(place)}; all of this, slices and plots in `report.html` of the logged model")
    return lines


def _fit(lines: Sequence[str]) -> str:
    """Return the lines that fit into what MLflow keeps; a long line is cut."""
    kept, room = [], MAX_DESCRIPTION
    for line in lines:
        shown = line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"
        room -= len(shown) + 1
        if room < 0:
            break
        kept.append(shown)
    return "\n".join(kept).strip()
