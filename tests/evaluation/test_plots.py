"""Plots: what is drawn is what was measured, even if labels are many or hostile."""

import warnings

import numpy as np
import pytest
from matplotlib.axes import Axes

from benchmarks.fixtures.prompts import a_request, a_task
from ptpipeline.evaluation import lettering, plots
from ptpipeline.evaluation.metrics import score_labels
from ptpipeline.records.prompts import CurvePoint, TunedPrompt
from ptpipeline.records.reports import PairedDifference, Report, SliceDifference, TextScores
from ptpipeline.records.verdicts import Verdict

LABELS = ["bad", "good", "mixed"]


def measured(labels: list[str], wrong: int = 1) -> Report:
    """Each label twice, the first `wrong` of them answered by the next label once."""
    truth = [label for label in labels for _ in range(2)]
    answers = list(truth)
    for place in range(wrong):
        answers[2 * place] = labels[place + 1]
    found = score_labels(truth, answers, labels, np.linspace(0.4, 0.99, len(truth)).tolist())
    report = a_request(a_task()).report
    assert report is not None
    return report.model_copy(update={"prompt": found, "rows": len(truth)})


def pair(difference: float, margin: float = 0.0, p_value: float = 0.01) -> PairedDifference:
    return PairedDifference(
        metric="accuracy",
        difference=difference,
        lower=difference - 0.02,
        upper=difference + 0.02,
        confidence=0.95,
        rows=99,
        dropped=1,
        margin=margin,
        p_value=p_value,
    )


def judged(**changes: object) -> Verdict:
    verdict = a_request(a_task(), champion="c" * 64).verdict
    assert verdict is not None
    return verdict.model_copy(update=changes)


def tuned(**changes: object) -> TunedPrompt:
    return a_request(a_task()).tuned.model_copy(
        update={
            "curve": [
                CurvePoint(
                    step=s, loss=1.0, learning_rate=0.1, dev=0.5, token_norms=[1.0, 2.0], token_gradients=[0.1, 0.2]
                )
                for s in (5, 10)
            ]
        }
        | changes
    )


def intervals(axes: Axes) -> list[tuple[float, float]]:
    """The horizontal lines, from left to right."""
    lines = [np.asarray(line.get_xydata()) for line in axes.get_lines()]
    return [(points[0, 0], points[1, 0]) for points in lines if len(points) == 2 and points[0, 1] == points[1, 1]]


def test_every_plot_is_a_png() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = plots.draw_plots(
            a_task(),
            tuned(),
            measured(LABELS),
            judged(slices=[SliceDifference(name="label bad", rows=9, difference=0.1, p_harm=0.9)]),
        )
    assert list(made) == ["differences", "slices", "confusion", "reliability", "learning_curve", "token_norms"]
    assert all(body.startswith(b"\x89PNG\r\n") and len(body) > 5000 for body in made.values())


def test_what_was_not_measured_is_not_drawn() -> None:
    texts = TextScores(exact_match=0.1, token_f1=0.2, rouge_l=0.3, bleu=0.1, most_frequent_share=0.1)
    report = measured(LABELS).model_copy(update={"prompt": texts})
    assert plots.draw_plots(a_task(), tuned(curve=[]), report, judged(comparison=None, baselines={})) == {}


def test_answers_without_probabilities_have_no_reliability() -> None:
    report = measured(LABELS)
    voted = report.prompt.model_copy(update={"reliability": [], "calibration_error": None})
    none = judged(comparison=None, baselines={})
    made = plots.draw_plots(a_task(), tuned(curve=[]), report.model_copy(update={"prompt": voted}), none)
    assert list(made) == ["confusion"]


def test_a_dollar_sign_in_a_label_is_drawn() -> None:
    assert "confusion" in plots.draw_plots(a_task(), tuned(), measured(["$x^", "{$\\frac$}", "<b>"]), judged())


SCRIPTS = {
    "korean": ["부정", "긍정", "중립"],
    "chinese": ["悪い", "良い", "普通"],
    "japanese": ["わるい", "よい", "ふつう"],
    "arabic": ["سلبي", "إيجابي", "محايد"],
    "hebrew": ["שלילי", "חיובי", "ניטרלי"],
    "emoji": ["😡", "😍", "😐"],
    "mixed": ["bad", "좋다", "ok 👍🏽"],
    "control": ["a\nb", "a\tb", "\x07"],
    "long": ["x" * 300, "y" * 300, "z " * 100],
    "cyrillic": ["плохо", "хорошо", "средне"],
    "devanagari": ["नकारात्मक", "सकारात्मक", "तटस्थ"],
    "thai": ["เชิงลบ", "เชิงบวก", "กลาง ๆ"],
    "marks": ["b" + "\u0301" * 60, "e\u0301\u0302\u0303", "a\u20dd"],
    "direction": ["\u202eevil", "evil", "abc שלילי (12)"],
    "wide": ["W" * 39, "W" * 300, "iiii " * 8],
    "unassigned": ["\ue000", "\U000e0061", "\ud83d"],
    "mathtext": ["$_$", "<$50", "$\\frac{1}"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_labels_of_every_script_are_readable_or_numbered(script: str) -> None:
    labels = SCRIPTS[script]
    parts = [SliceDifference(name=f"label {name}", rows=9, difference=0.1, p_harm=0.9) for name in labels]
    verdict = judged(slices=parts, comparison=None, baselines={})  # the plots that are left out name no label
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of each letter that it draws as a box
        made = plots.draw_plots(a_task(), tuned(curve=[]), measured(labels), verdict)
    assert list(made) == ["slices", "confusion", "reliability"]


def test_a_name_without_a_font_is_its_place_and_the_plot_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_other_families", tuple)  # a machine without other fonts
    report = measured(["bad", "좋다", "よい"])
    assert not isinstance(report.prompt, TextScores)
    axes = plots.draw_confusion(report.prompt, report).axes[0]
    assert [name.get_text() for name in axes.get_yticklabels()] == ["bad", "2.", "3."]
    assert axes.get_xlabel() == "predicted\nnumbers: the labels in the order of the task file"


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["x" * 50, "x" * 51, "y"], ["1.", "2.", "y"]),
        (["good", "go\u200bod", "bad"], ["1.", "2.", "bad"]),
        (["good", "good ", "Good"], ["1.", "2.", "Good"]),
        (["\u00e9", "e\u0301", "e"], ["1.", "2.", "e"]),
        (["\u263a\ufe0f", "\u263a\ufe0e", "b"], ["1.", "2.", "b"]),
        ([" ", "\u200b", "b"], ["1.", "2.", "b"]),
        (["", "b"], ["1.", "b"]),
    ],
)
def test_names_that_nobody_tells_apart_are_numbered(names: list[str], written: list[str]) -> None:
    assert lettering.write(names).names == written


def test_a_number_never_reads_like_a_name() -> None:
    assert lettering.write(["2.", "\ue000", "x"]).names == ["1.", "2.", "3."]
    assert lettering.write(["1.", "\ue000", "x"]).names == ["1.", "2.", "x"]


@pytest.mark.parametrize("letter", ["W", "i", "\u0301", "م"])
def test_a_name_is_cut_to_its_width(letter: str) -> None:
    (name,) = lettering.write([letter * 300]).names
    assert len(name) <= lettering.MAX_LETTERS
    assert lettering.measure_width(name) <= lettering.MAX_WIDTH


@pytest.mark.parametrize(("letters", "shown"), [(40, "x" * 40), (41, "x" * 39 + "…")])
def test_a_name_has_at_most_forty_letters(letters: int, shown: str) -> None:
    assert lettering.write(["x" * letters, "y"]).names == [shown, "y"]


def test_a_name_in_a_known_script_is_written() -> None:
    assert lettering.write(["good", "хорошо"]) == lettering.Lettering(["good", "хорошо"], ["DejaVu Sans"], False)


def test_each_comparison_has_one_interval_and_only_its_own_margin() -> None:
    verdict = judged(
        comparison=pair(0.05),
        anchor=pair(-0.01, margin=0.04),
        baselines={"zero_shot": pair(0.3), "majority": pair(0.2)},
    )
    axes = plots.draw_differences(verdict).axes[0]
    np.testing.assert_allclose(intervals(axes), [(0.03, 0.07), (-0.03, 0.01), (0.28, 0.32), (0.18, 0.22)])
    assert [name.get_text() for name in axes.get_yticklabels()] == ["champion", "anchor", "zero-shot", "majority"]
    upright = [
        line.get_xdata()[0]
        for line in axes.get_lines()
        if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]
    ]
    assert sorted(upright) == [-0.04, 0]


@pytest.mark.parametrize(
    ("difference", "margin", "doubtful"),
    [(0.05, 0.0, False), (0.01, 0.0, True), (0.02, 0.0, True), (-0.01, 0.04, False), (-0.03, 0.04, True)],
)
def test_an_interval_that_does_not_exclude_harm_is_marked(difference: float, margin: float, doubtful: bool) -> None:
    axes = plots.draw_differences(judged(comparison=pair(difference, margin), baselines={})).axes[0]
    assert axes.get_lines()[0].get_color() == (plots.RED if doubtful else plots.BLUE)


def test_harmed_slices_are_hatched_and_stand_first() -> None:
    parts = [
        SliceDifference(name=name, rows=9, difference=d, p_harm=p)
        for name, d, p in (("fine", 0.1, 0.9), ("harmed", -0.2, 0.01), ("border", -0.1, 0.05))
    ]
    axes = plots.draw_slices(judged(slices=parts), 0.05).axes[0]
    assert [(bar.get_width(), bar.get_hatch()) for bar in axes.patches] == [(-0.2, "///"), (-0.1, "///"), (0.1, None)]
    assert [name.get_text() for name in axes.get_yticklabels()] == ["harmed (9)", "border (9)", "fine (9)"]
    assert axes.yaxis_inverted()


def test_of_very_many_slices_the_likeliest_harm_is_shown() -> None:
    parts = [SliceDifference(name=str(i), rows=9, difference=0.0, p_harm=1 - i / 200) for i in range(100)]
    axes = plots.draw_slices(judged(slices=parts), 0.05).axes[0]
    assert [name.get_text() for name in axes.get_yticklabels()] == [f"{i} (9)" for i in range(99, 59, -1)]


def test_reliability_has_a_bar_of_rows_per_bin() -> None:
    report = measured(LABELS)
    assert not isinstance(report.prompt, TextScores)
    figure = plots.draw_reliability(report.prompt, report)
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in figure.axes[1].patches]
    np.testing.assert_allclose(bars, [(one.confidence, one.rows) for one in report.prompt.reliability])
    assert f"calibration error {report.prompt.calibration_error:.3f}" in figure.get_suptitle()


def test_few_labels_show_their_counts() -> None:
    report = measured(LABELS)
    assert not isinstance(report.prompt, TextScores)
    assert [text.get_text() for text in plots.draw_confusion(report.prompt, report).axes[0].texts][:3] == [
        "1\n50%",
        "1\n50%",
        "0\n0%",
    ]


def test_of_very_many_labels_the_most_confused_are_shown() -> None:
    labels = [f"label {i:03}" for i in range(200)]
    report = measured(labels[::-1], wrong=30)
    assert not isinstance(report.prompt, TextScores)
    figure = plots.draw_confusion(report.prompt, report)
    names = [name.get_text() for name in figure.axes[0].get_yticklabels()]
    assert len(names) == plots.MAX_LABELS
    assert names[:30] == [f"label {199 - i:03}" for i in range(30)]
    assert max(figure.get_size_inches()) < 20


def test_labels_with_the_most_wrong_rows_are_shown_in_the_tasks_order_wherever_they_stand() -> None:
    labels = [f"label {i:03}" for i in range(60)]
    truth = [label for label in labels for _ in range(3)]
    answers = [*truth[:60], *("label 000" for _ in truth[60:])]
    scores = score_labels(truth, answers, labels)
    figure = plots.draw_confusion(scores, measured(LABELS))
    assert [name.get_text() for name in figure.axes[0].get_yticklabels()] == labels[20:]


def test_a_label_without_rows_has_a_share_of_zero_everywhere() -> None:
    scores = score_labels(["bad", "bad"], ["bad", "good"], LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = plots.draw_confusion(scores, measured(LABELS)).axes[0]
    np.testing.assert_allclose(axes.get_images()[0].get_array(), [[0.5, 0.5, 0], [0, 0, 0], [0, 0, 0]])


# ---------------------------------------------------------------- the training


def points(*dev: float | None, norms: bool = True) -> TunedPrompt:
    """A training of a point each 5 steps, whose losses fall from 3, and whose second token is ten times the first."""
    curve = [
        CurvePoint(
            step=5 * place,
            loss=4.0 - place,
            learning_rate=0.1,
            dev=value,
            token_norms=[place, 10 * place] if norms else [],
            token_gradients=[0.1, 0.0] if norms else [],
        )
        for place, value in enumerate(dev, 1)
    ]
    return tuned(curve=curve, best_step=15, best_dev=0.7)


def test_a_learning_curve_has_each_loss_each_evaluation_and_the_kept_checkpoint() -> None:
    left, right = plots.draw_learning_curve(points(0.0, None, 0.7), "macro_f1").axes
    drawn = [np.asarray(line.get_xydata()).tolist() for axes in (left, right) for line in axes.get_lines()]
    assert drawn == [[[5, 3], [10, 2], [15, 1]], [[5, 0], [15, 0.7]], [[15, 0.7]]]
    assert right.get_ylabel() == "dev macro F1"


def test_each_token_has_a_line_of_norms_and_one_of_gradients_on_a_log_scale() -> None:
    figure = plots.draw_token_heat(points(None, 0.5))
    norms, gradients = (axes.get_images()[0] for axes in figure.axes[:2])
    np.testing.assert_allclose(norms.get_array(), [[1, 2], [10, 20]])
    np.testing.assert_allclose(gradients.get_array(), [[-1, -1], [-8, -8]])
    assert norms.get_extent() == gradients.get_extent() == [0, 10, 0.5, 2.5]


def test_a_curve_of_an_older_ptpipeline_without_norms_is_drawn_without_them() -> None:
    made = plots.draw_plots(a_task(), points(0.5, norms=False), None, judged(comparison=None, baselines={}))
    assert list(made) == ["learning_curve"]
