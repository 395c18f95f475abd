"""The figures of scores: a metric that is 0 is one, a metric that came later is none."""

from ptpipeline.records.reports import Report, Scores, TextScores


def test_a_metric_of_0_is_a_figure_and_one_that_was_not_measured_is_none() -> None:
    labels = Scores(accuracy=0, macro_f1=0, per_label={}, confusion={}, predicted={})
    assert labels.figures() == {"accuracy": 0, "macro_f1": 0}
    assert labels.model_copy(update={"mcc": 0.0}).figures() == {"accuracy": 0, "macro_f1": 0, "mcc": 0}
    texts = TextScores(exact_match=0, token_f1=0, rouge_l=0, bleu=0, most_frequent_share=1)
    assert texts.figures() == {"exact_match": 0, "token_f1": 0, "rouge_l": 0, "bleu": 0}


def test_scores_and_reports_that_were_stored_before_keep_their_form() -> None:
    """Fields that came later are left out at their defaults, or a stored record would get another digest."""
    texts = {"exact_match": 0.0, "token_f1": 0.0, "rouge_l": 0.0, "bleu": 0.0, "most_frequent_share": 1.0}
    labels = {"accuracy": 0.5, "macro_f1": 0.5, "per_label": {}, "confusion": {}, "predicted": {}}
    stored = {
        "task": "mood", "digest": "d", "evaluation_key": "e", "snapshot": "s", "test_digest": "t", "rows": 1,
        "rows_key": "k", "prompt": texts, "zero_shot": labels, "majority": labels, "interval": {},
        "compute_dtype": "float32", "seconds": 1.0,
    }  # fmt: skip
    assert Report.model_validate(stored).to_json() == stored
