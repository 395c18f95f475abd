"""Challenger against champion from what their reports stored, of labels and of texts."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ptpipeline.evaluation.compare import compared, row_ids
from ptpipeline.records import Report, TextScores
from ptpipeline.storage import FolderStore, ObjectStore
from tests.data.declared import declared, generating

NOTHING = TextScores(exact_match=0, token_f1=0, rouge_l=0, bleu=0, most_frequent_share=0)


def stored(store: ObjectStore, name: str, **columns: list[Any]) -> Report:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    store.create(name, buffer.getvalue())
    return Report(
        task="reviews", digest=name, evaluation_key=name, snapshot="s", test_digest="t", rows=len(columns["id"]), rows_key=name,
        prompt=NOTHING, zero_shot=NOTHING, majority=NOTHING, interval={}, compute_dtype="float32", seconds=0,
    )  # fmt: skip


def test_texts_differ_by_the_mean_over_the_rows_named(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    ours = stored(store, "ours", id=["a", "b", "c"], bleu=[0.5, 0.9, 0.0])
    theirs = stored(store, "theirs", id=["c", "b", "a"], bleu=[1.0, 0.4, 0.2])
    assert row_ids(store, ours) == ["a", "b", "c"]
    found = compared(store, generating(), (ours, theirs), ["a", "b"])
    assert (found.metric, found.difference, found.rows) == ("bleu", pytest.approx((0.3 + 0.5) / 2), 2)


def test_labels_differ_by_the_metric_over_the_rows_named(tmp_path: Path) -> None:
    store, truth = FolderStore(tmp_path), ["bad", "good", "good", "bad"]
    ours = stored(store, "ours", id=list("abcd"), label=truth, predicted=["bad", "good", "good", "good"])
    theirs = stored(store, "theirs", id=list("abcd"), label=truth, predicted=["good", "good", "bad", "bad"])
    assert compared(store, declared(), (ours, theirs), ["a", "b", "c"]).difference == pytest.approx(2 / 3)
    assert compared(store, declared(), (ours, theirs), ["a", "b", "c", "d"]).difference == pytest.approx(1 / 4)
