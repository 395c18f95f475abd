"""Stored results of rows: only those that a report states are read, and a run that is repeated replaces them."""

from pathlib import Path

import pytest

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.evaluation.results import Results, find_flaw, read_results, store_results
from ptpipeline.records.reports import Report
from ptpipeline.storage import FolderStore
from tests.data.declared import declared, generating
from tests.evaluation.test_compare import stored

COLUMNS = {
    "id": ["b", "a"],
    "label": ["bad", "good"],
    "predicted": ["bad", "bad"],
    "log_likelihood.good": [-2.0, -3.0],
    "log_likelihood.bad": [-1.0, -1.5],
}


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture
def report(store: FolderStore) -> Report:
    return stored(store, "rows", **COLUMNS)


def test_results_are_found_by_row(store: FolderStore, report: Report) -> None:
    results = Results.of(store, report)
    assert (results.ids, results.column("label", ["a", "b"])) == (["b", "a"], ["good", "bad"])
    assert results.label_scores(["bad", "good"]) == {"b": [-1.0, -2.0], "a": [-1.5, -3.0]}
    assert results.log_likelihoods == [{"b": -2.0, "a": -3.0}, {"b": -1.0, "a": -1.5}]
    assert results.row_scores(declared(), ["a", "b"]).tolist() == [0.0, 1.0]


def test_a_text_s_own_score_is_that_of_the_gates_metric(store: FolderStore) -> None:
    texts = stored(store, "texts", id=["a", "b"], exact_match=[0.0, 1.0], bleu=[0.25, 0.5])
    assert Results.of(store, texts).row_scores(generating(), ["b", "a"]).tolist() == [0.5, 0.25]


def test_results_that_the_report_does_not_state_are_not_read(store: FolderStore, report: Report) -> None:
    older = report.model_copy(update={"rows_sha256": ""})
    other = report.model_copy(update={"rows_sha256": "b" * 64})
    gone = report.model_copy(update={"rows_key": "gone"})
    for changed, kind, sentence in (
        (older, ArtifactError, "an older ptpipeline measured this"),
        (other, ArtifactError, "the results were altered"),
        (gone, NotFound, "no object"),
    ):
        with pytest.raises(kind, match=sentence):
            read_results(store, changed)
        assert sentence in (find_flaw(store, changed) or "")
    assert find_flaw(store, report) is None


def test_what_lies_there_already_is_replaced(store: FolderStore, report: Report) -> None:
    sha256 = store_results(store, "rows", COLUMNS | {"predicted": ["good", "good"]})
    assert find_flaw(store, report) is not None
    changed = Results.of(store, report.model_copy(update={"rows_sha256": sha256}))
    assert changed.column("predicted", ["a", "b"]) == ["good", "good"]
    assert store_results(store, "rows", COLUMNS | {"predicted": ["good", "good"]}) == sha256
