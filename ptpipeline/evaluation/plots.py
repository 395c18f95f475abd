"""Plots of a training, its evaluation and its verdict, in colours that colour-blind readers can tell apart.

Source of the colours: Okabe and Ito 2008.
"""

import io
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ptpipeline.evaluation.lettering import write
from ptpipeline.evaluation.metrics import BINS
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.reports import PairedDifference, Report, Scores, title_of
from ptpipeline.records.verdicts import Verdict
from ptpipeline.task.task import Task

BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D55E00", "#6b6b6b"
MAX_LABELS = 40  # of a confusion matrix
MAX_WRITTEN = 12  # up to this number of labels its counts are written out
MAX_SLICES = 40


def draw_plots(task: Task, tuned: TunedPrompt, report: Report | None, verdict: Verdict) -> dict[str, bytes]:
    """Return all plots for which there are data, as PNG bytes by name."""
    scores = report.prompt if report and isinstance(report.prompt, Scores) else None
    plots: dict[str, Callable[[], Figure] | None] = {
        "differences": (lambda: draw_differences(verdict)) if verdict.comparisons() else None,
        "slices": (lambda: draw_slices(verdict, task.gate.checks.slices.alpha)) if verdict.slices else None,
        "confusion": (lambda: draw_confusion(scores, report)) if report and scores and scores.confusion else None,
        "reliability": (lambda: draw_reliability(scores, report)) if report and scores and scores.reliability else None,
        # an imported prompt has no curve
        "learning_curve": (lambda: draw_learning_curve(tuned, task.gate.metric)) if tuned.curve else None,
        "token_norms": (lambda: draw_token_heat(tuned)) if any(point.token_norms for point in tuned.curve) else None,
    }
    with matplotlib.rc_context({"text.parse_math": False}):  # a label may hold a dollar sign
        return {name: render_png(draw()) for name, draw in plots.items() if draw is not None}


def render_png(figure: Figure) -> bytes:
    """Return the figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


# ---------------------------------------------------------------- the training


def draw_learning_curve(tuned: TunedPrompt, metric: str) -> Figure:
    """Draw training loss and the dev metric over steps, with the checkpoint that was kept."""
    figure, axes = _one_axes(f"{tuned.task} {tuned.digest[:12]}: learning curve", (8, 4.5))
    axes.plot([p.step for p in tuned.curve], [p.loss for p in tuned.curve], color=BLUE, label="training loss")
    axes.set(xlabel="step", ylabel="loss (nats per target token)")
    axes.set_ylim(bottom=0)
    dev = [(p.step, p.dev) for p in tuned.curve if p.dev is not None]
    right = axes.twinx()
    right.plot(
        [step for step, _ in dev],
        [value for _, value in dev],
        color=ORANGE,
        marker="o",
        label=f"dev {title_of(metric)}",
    )
    right.plot(
        [tuned.best_step],
        [tuned.best_dev],
        color="black",
        marker="*",
        markersize=14,
        linestyle="none",
        label="kept checkpoint",
    )
    right.set_ylabel(f"dev {title_of(metric)}")
    lines = [*axes.get_lines(), *right.get_lines()]
    figure.legend(
        lines, [str(line.get_label()) for line in lines], loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return figure


def draw_token_heat(tuned: TunedPrompt) -> Figure:
    """Draw the norm and the gradient norm of each virtual token over steps; gradients on a log scale, because they fall
    by powers of ten.
    """
    points = [point for point in tuned.curve if point.token_norms]
    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(f"{tuned.task} {tuned.digest[:12]}")
    left, right = figure.subplots(1, 2)
    gradients = np.maximum(np.array([p.token_gradients for p in points]), 1e-8)  # the smallest that a point keeps
    for axes, title, rows in (
        (left, "norm", np.array([p.token_norms for p in points])),
        (right, "gradient norm (log 10)", np.log10(gradients)),
    ):
        image = axes.imshow(
            rows.T, aspect="auto", origin="lower", extent=(0, points[-1].step, 0.5, rows.shape[1] + 0.5), cmap="cividis"
        )
        axes.set(xlabel="step", ylabel="virtual token", title=title)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=axes)
    return figure


# ---------------------------------------------------------------- the evaluation


def draw_confusion(scores: Scores, report: Report) -> Figure:
    """Draw the rows of the report's split by true and predicted label; of many labels the most confused."""
    labels = _most_confused(scores)
    counts = np.array([[scores.confusion[true][name] for name in labels] for true in labels])  # [true, predicted]
    supports = np.array([sum(scores.confusion[true].values()) for true in labels])
    shares = counts / np.maximum(supports, 1)[:, None]
    cell = 1.2 if len(labels) <= MAX_WRITTEN else 0.25  # inches
    shown = f"{report.rows} {report.split} rows"
    if len(scores.confusion) > MAX_LABELS:
        shown = f"the {MAX_LABELS} of {len(scores.confusion)} labels with the most wrong rows"
    every = list(scores.confusion)
    lettering = write(every)
    names = [lettering.names[every.index(label)] for label in labels]
    size = 10 if cell > 1 else 7
    room = cell * len(labels) + max(1.0, lettering.width * size / 72)  # inches, beside the cells for the names
    figure, axes = _one_axes(f"{report.task}: {shown}", (room + 2, room + 1))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    note = "\nnumbers: the labels in the order of the task file" if lettering.numbered else ""
    axes.set(xlabel=f"predicted{note}", ylabel="true")
    upright = cell < 1 or max(map(len, names)) > 12
    fonts, rotation = lettering.fonts, 90 if upright else 0
    axes.set_xticks(range(len(labels)), names, rotation=rotation, fontsize=size, fontfamily=fonts)
    axes.set_yticks(range(len(labels)), names, fontsize=size, fontfamily=fonts)
    if cell < 1:
        figure.colorbar(image, ax=axes, label="share of the true label's rows", shrink=0.6)
        return figure
    for (i, j), count in np.ndenumerate(counts):
        axes.text(
            j,
            i,
            f"{count}\n{shares[i, j]:.0%}",
            ha="center",
            va="center",
            color="white" if shares[i, j] > 0.5 else "black",
        )
    return figure


def draw_reliability(scores: Scores, report: Report) -> Figure:
    """Draw how often answers are right by the prompt's confidence, and below it the rows by confidence."""
    figure = Figure(figsize=(5.5, 6), layout="constrained")
    figure.suptitle(
        f"{report.task}: {report.rows} {report.split} rows, calibration error {scores.calibration_error or 0:.3f}",
        fontsize=11,
    )
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    sure, right, rows = (np.array(column) for column in zip(*scores.reliability, strict=True))
    low = max(0.0, np.floor(10 * min(sure.min(), right.min()) - 0.5) / 10)
    above.plot([low, 1], [low, 1], color=GREY, linestyle="--", label="right as often as it is sure")
    above.vlines(sure, np.minimum(sure, right), np.maximum(sure, right), color=ORANGE, linewidth=3, label="gap")
    above.plot(sure, right, color=BLUE, marker="o", label="measured")
    above.set(ylabel="share of right answers", xlim=(low, 1), ylim=(low, 1.02))
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    below.bar(sure, rows, width=0.8 / BINS, color=BLUE)
    below.set(xlabel="probability of the predicted label", ylabel="rows")
    return figure


# ---------------------------------------------------------------- the verdict


def draw_differences(verdict: Verdict) -> Figure:
    """Draw the candidate minus champion, anchor and baselines, each with its one-sided bounds and its margin."""
    comparisons = verdict.comparisons()
    pairs = list(comparisons.values())
    figure, axes = _one_axes(
        f"{verdict.task}: {verdict.digest[:12]} minus each of these", (8, 0.55 * len(comparisons) + 1.9)
    )
    for place, pair in enumerate(pairs):
        inside = pair.lower <= -pair.margin
        axes.plot(
            [pair.lower, pair.upper],
            [place, place],
            color=RED if inside else BLUE,
            linewidth=3,
            linestyle=(0, (2, 1)) if inside else "-",
            solid_capstyle="butt",
        )
        axes.plot(
            [pair.difference], [place], color=RED if inside else BLUE, marker="D" if inside else "o", markersize=8
        )
        if pair.margin:
            axes.plot([-pair.margin] * 2, [place - 0.35, place + 0.35], color="black", linestyle=":", linewidth=2)
    _label_lines(axes, list(comparisons), [_describe_test(pair) for pair in pairs])
    note = (
        f"{pairs[0].confidence:.0%} one-sided bounds; red and dashed: does not exclude "
        f"{'zero' if not any(pair.margin for pair in pairs) else 'the margin (dotted), or zero'}"
    )
    axes.set_xlabel(f"difference in {title_of(pairs[0].metric)}\n{note}")
    return figure


def draw_slices(verdict: Verdict, alpha: float) -> Figure:
    """Draw the candidate minus the champion on each slice, the smallest p first; a slice with p at most `alpha` is
    harmed.
    """
    ordered = sorted(verdict.slices, key=lambda part: part.p_harm)
    parts = ordered[:MAX_SLICES]
    shown = (
        f"the {MAX_SLICES} of {len(ordered)} slices with the lowest p"
        if len(ordered) > MAX_SLICES
        else f"{len(parts)} slices"
    )
    figure, axes = _one_axes(
        f"{verdict.task}: {verdict.digest[:12]} minus the champion, {shown}", (8, 0.32 * len(parts) + 1.9)
    )
    for place, part in enumerate(parts):
        harmed = part.p_harm <= alpha
        axes.barh(
            place,
            part.difference,
            color=RED if harmed else BLUE,
            hatch="///" if harmed else None,
            edgecolor="white" if harmed else BLUE,
            height=0.7,
        )
    lettering = write([part.name for part in verdict.slices])
    written = dict(zip((part.name for part in verdict.slices), lettering.names, strict=True))
    _label_lines(
        axes,
        [f"{written[part.name]} ({part.rows})" for part in parts],
        [f"{part.difference:+.3f}, p {part.p_harm:.2g}{' HARMED' if part.p_harm <= alpha else ''}" for part in parts],
        lettering.fonts,
    )
    note = "; numbers: the parts in the order of the verdict" if lettering.numbered else ""
    axes.set_xlabel(f"mean difference of a row, challenger minus champion\nred and hatched: worse at p {alpha:g}{note}")
    return figure


# ---------------------------------------------------------------- parts


def _one_axes(title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots()


def _most_confused(scores: Scores) -> list[str]:
    """The labels to show, in the task's order."""
    wrong = {true: sum(count for name, count in row.items() if name != true) for true, row in scores.confusion.items()}
    shown = set(sorted(wrong, key=lambda label: -wrong[label])[:MAX_LABELS])
    return [label for label in wrong if label in shown]


def _label_lines(axes: Axes, names: list[str], figures: list[str], fonts: list[str] | None = None) -> None:
    """Label one line per name from the top, with a line at zero; the figures stand at the right."""
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names, fontfamily=fonts)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(names)), figures)
    right.tick_params(length=0)


def _describe_test(pair: PairedDifference) -> str:
    return f"{pair.difference:+.3f}" + (f", p {pair.p_value:.2g}" if pair.p_value is not None else "")
