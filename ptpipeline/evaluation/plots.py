"""Plots of a training and its evaluation, as PNG bytes."""

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ptpipeline.records import Report, Scores, TunedPrompt


def learning_curve(tuned: TunedPrompt, metric: str) -> bytes:
    """Training loss and the dev metric over steps, with the checkpoint that was kept."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([p.step for p in tuned.curve], [p.loss for p in tuned.curve], color="tab:blue", label="training loss")
    axes.set(xlabel="step", ylabel="loss (nats per target token)", title=f"{tuned.task} {tuned.digest[:12]}: learning curve")
    axes.set_ylim(bottom=0)
    dev = [(p.step, p.dev) for p in tuned.curve if p.dev is not None]
    right = axes.twinx()
    right.plot([step for step, _ in dev], [value for _, value in dev], color="tab:orange", marker="o", label=f"dev {metric}")
    right.plot([tuned.best_step], [tuned.best_dev], color="tab:red", marker="*", markersize=14, linestyle="none", label="kept checkpoint")
    right.set_ylabel(f"dev {metric}")
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper center", ncols=3, fontsize=8)
    return _png(figure)


def confusion(scores: Scores, report: Report) -> bytes:
    """Rows of the report's test split by true and predicted label."""
    labels = list(scores.confusion)
    counts = np.array([[scores.confusion[true][name] for name in labels] for true in labels])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(1.6 * len(labels) + 2.4, 1.4 * len(labels) + 1.8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{report.task}: {report.rows} test rows")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            axes.text(j, i, f"{count}\n{shares[i, j]:.0%}", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    return _png(figure)


def token_heat(tuned: TunedPrompt) -> bytes:
    """Norm and gradient norm of each virtual token over time; gradients in powers of ten, since they fall by some."""
    points = [point for point in tuned.curve if point.token_norms]
    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(f"{tuned.task} {tuned.digest[:12]}")
    left, right = figure.subplots(1, 2)
    gradients = np.maximum(np.array([p.token_gradients for p in points]), 1e-8)  # the smallest that a point keeps
    for axes, title, rows in ((left, "norm", np.array([p.token_norms for p in points])), (right, "gradient norm (log 10)", np.log10(gradients))):
        image = axes.imshow(rows.T, aspect="auto", origin="lower", extent=(0, points[-1].step, 0.5, rows.shape[1] + 0.5))
        axes.set(xlabel="step", ylabel="virtual token", title=title)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=axes)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
