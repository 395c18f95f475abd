"""The figures of scores: a metric that is 0 is one, a metric that came later is none."""

from ptpipeline.records.reports import Scores, TextScores


def test_a_metric_of_0_is_a_figure_and_one_that_was_not_measured_is_none() -> None:
    labels = Scores(accuracy=0, macro_f1=0, per_label={}, confusion={}, predicted={})
    assert labels.figures() == {"accuracy": 0, "macro_f1": 0}
    assert labels.model_copy(update={"mcc": 0.0}).figures() == {"accuracy": 0, "macro_f1": 0, "mcc": 0}
    texts = TextScores(exact_match=0, token_f1=0, rouge_l=0, bleu=0, most_frequent_share=1)
    assert texts.figures() == {"exact_match": 0, "token_f1": 0, "rouge_l": 0, "bleu": 0}
