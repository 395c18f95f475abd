"""Challenger against champion from what their reports stored, of labels and of texts."""

import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ptpipeline.evaluation.compare import Pair, compare_pair, compare_slices
from ptpipeline.evaluation.paired import Hypothesis
from ptpipeline.evaluation.results import Results
from ptpipeline.records.reports import Report, TextScores
from ptpipeline.storage import FolderStore, ObjectStore
from tests.data.declared import declared, generating

NOTHING = TextScores(exact_match=0, token_f1=0, rouge_l=0, bleu=0, most_frequent_share=0)


def stored(store: ObjectStore, name: str, **columns: list[Any]) -> Report:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    store.create(name, buffer.getvalue())
    return Report(
        task="reviews",
        digest=name,
        evaluation_key=name,
        snapshot="s",
        test_digest="t",
        rows=len(columns["id"]),
        rows_key=name,
        prompt=NOTHING,
        zero_shot=NOTHING,
        majority=NOTHING,
        interval={},
        compute_dtype="float32",
        seconds=0,
        rows_sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
    )


def pair(store: ObjectStore, ours: Report, theirs: Report, rows: list[str]) -> Pair:
    return Pair(Results.of(store, ours), Results.of(store, theirs), rows)


def test_texts_differ_by_the_mean_over_the_rows_named(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    ours = stored(store, "ours", id=["a", "b", "c"], bleu=[0.5, 0.9, 0.0])
    theirs = stored(store, "theirs", id=["c", "b", "a"], bleu=[1.0, 0.4, 0.2])
    assert Results.of(store, ours).ids == ["a", "b", "c"]
    found = compare_pair(generating(), pair(store, ours, theirs, ["a", "b"]), Hypothesis("bleu"))
    assert (found.metric, found.difference, found.rows) == ("bleu", pytest.approx((0.3 + 0.5) / 2), 2)


def test_labels_differ_by_the_metric_over_the_rows_named(tmp_path: Path) -> None:
    store, truth = FolderStore(tmp_path), ["bad", "good", "good", "bad"]
    ours = stored(store, "ours", id=list("abcd"), label=truth, predicted=["bad", "good", "good", "good"])
    theirs = stored(store, "theirs", id=list("abcd"), label=truth, predicted=["good", "good", "bad", "bad"])
    assert compare_pair(
        declared(), pair(store, ours, theirs, ["a", "b", "c"]), Hypothesis("accuracy")
    ).difference == pytest.approx(2 / 3)
    assert compare_pair(
        declared(), pair(store, ours, theirs, ["a", "b", "c", "d"]), Hypothesis("accuracy")
    ).difference == pytest.approx(1 / 4)


def test_parts_are_labels_lengths_and_columns_of_enough_rows(tmp_path: Path) -> None:
    store, ids = FolderStore(tmp_path), [str(row) for row in range(40)]
    columns = {
        "id": ids,
        "label": ["bad"] * 10 + ["good"] * 30,
        "tokens": list(range(40)),
        "slice.topic": ["sea"] * 38 + ["sky"] * 2,
    }
    ours = stored(store, "ours", **columns, predicted=["good"] * 40)
    theirs = stored(store, "theirs", **columns, predicted=["bad"] * 10 + ["good"] * 30)
    found = {part.name: part for part in compare_slices(declared(), pair(store, ours, theirs, ids), 5)}
    assert set(found) == {
        "label bad",
        "label good",
        "up to 10 tokens",
        "11 to 20 tokens",
        "21 to 29 tokens",
        "over 29 tokens",
        "topic sea",
    }
    assert (found["label bad"].difference, found["label bad"].p_harm) == (-1, 2**-10)
    assert (found["label good"].difference, found["label good"].p_harm) == (0, 1)


def test_a_part_of_exactly_the_fewest_rows_is_judged(tmp_path: Path) -> None:
    store, ids = FolderStore(tmp_path), [str(row) for row in range(40)]
    truth = ["bad"] * 10 + ["good"] * 30
    ours, theirs = (stored(store, name, id=ids, label=truth, predicted=truth) for name in ("ours", "theirs"))

    def parts(min_rows: int) -> list[str]:
        return [part.name for part in compare_slices(declared(), pair(store, ours, theirs, ids), min_rows)]

    assert (parts(10), parts(11)) == (["label bad", "label good"], ["label good"])


def test_a_part_of_one_row_is_judged_by_no_policy(tmp_path: Path) -> None:
    store, ids, truth = FolderStore(tmp_path), ["a", "b", "c"], ["bad", "good", "good"]
    ours, theirs = (stored(store, name, id=ids, label=truth, predicted=truth) for name in ("ours", "theirs"))
    found = compare_slices(declared(), pair(store, ours, theirs, ids), 1)
    assert [part.name for part in found] == ["label good"]


def test_parts_of_texts_are_compared_by_the_gates_metric_and_have_no_label(tmp_path: Path) -> None:
    store, ids = FolderStore(tmp_path), [str(row) for row in range(8)]
    columns = {"id": ids, "tokens": [5] * 8, "slice.topic": ["sea", "sky"] * 4, "exact_match": [0.0] * 8}
    ours = stored(store, "ours", **columns, bleu=[0.5, 0.1] * 4)
    theirs = stored(store, "theirs", **columns, bleu=[0.2, 0.3] * 4)
    found = {part.name: part for part in compare_slices(generating(), pair(store, ours, theirs, ids), 2)}
    assert {name: round(part.difference, 9) for name, part in found.items()} == {
        "up to 5 tokens": 0.05,
        "topic sea": 0.3,
        "topic sky": -0.2,
    }
    assert found["topic sky"].p_harm < found["up to 5 tokens"].p_harm < found["topic sea"].p_harm
