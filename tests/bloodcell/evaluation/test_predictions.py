"""The table of predictions: exactly once, the same bytes, nothing foreign accepted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.evaluation.predictions import METADATA, Predictions, assemble, read_predictions, write_predictions
from shards.errors import BadInput, Fault

CLASSES = ["basophil", "eosinophil", "Lymphozyt ä"]


def gathered(expected: np.ndarray, ids: np.ndarray, logits: np.ndarray) -> Predictions:
    """Assemble with labels, keys and groups that are functions of the id."""
    return assemble(
        ids,
        logits,
        expected,
        keys=[f"cell_{i}" for i in expected],
        labels=expected % 3,
        groups=["" if i % 2 else f"p{i // 4}" for i in expected],
        classes=CLASSES,
        run="demo-1",
        data="set",
        split="test",
        fingerprint="f00",
    )


def logits_of(ids: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(ids), np.cos(ids), ids * 0.01], axis=1).astype(np.float32)


@pytest.fixture
def predictions() -> Predictions:
    ids = np.arange(10, 30)
    return gathered(ids, ids, logits_of(ids))


@settings(deadline=None, max_examples=50)
@given(st.sets(st.integers(0, 10**12), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same_table(found: set[int], random: Any) -> None:
    expected, arrived = list(found), list(found)
    random.shuffle(expected)
    random.shuffle(arrived)
    table = gathered(np.array(expected), np.array(arrived), logits_of(np.array(arrived)))
    ids = np.array(sorted(found))
    np.testing.assert_array_equal(table.ids, ids)
    np.testing.assert_array_equal(table.logits, logits_of(ids))
    np.testing.assert_array_equal(table.labels, ids % 3)
    assert table.keys == [f"cell_{i}" for i in ids]
    assert table.groups == ["" if i % 2 else f"p{i // 4}" for i in ids]


def test_missing_doubled_and_foreign_samples_are_counted_and_named() -> None:
    expected = np.arange(20)
    ids = np.array([*range(12), 3, 3, 5, 77])
    with pytest.raises(Fault) as caught:
        gathered(expected, ids, logits_of(ids))
    text = str(caught.value)
    assert "8 missing: cell_12, cell_13, cell_14, cell_15, cell_16 and 3 more" in text
    assert "2 there more than once: cell_3, cell_5" in text
    assert "1 not of this split: ids 77" in text


def test_a_doubled_sample_in_the_place_of_a_missing_one_is_found() -> None:
    ids = np.array([0, 1, 1, 3])
    with pytest.raises(Fault, match=r"1 missing: cell_2; 1 there more than once: cell_1"):
        gathered(np.arange(4), ids, logits_of(ids))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_logits_that_are_not_finite_are_named(bad: float) -> None:
    ids = np.arange(9)
    logits = logits_of(ids).astype(np.float64)
    logits[[4, 7], 1] = bad
    with pytest.raises(Fault, match=r"the logits of 2 of 9 samples are NaN or infinite \(cell_4, cell_7\)"):
        gathered(ids, ids, logits)


def test_columns_that_do_not_fit_are_refused(predictions: Predictions) -> None:
    changes: list[dict[str, Any]] = [
        {"keys": predictions.keys[:-1]},
        {"classes": CLASSES[:2]},
        {"classes": ["a", "b", "a"]},
        {"labels": predictions.labels + np.int32(1)},
        {"labels": predictions.labels.astype(np.int64)},
        {"ids": predictions.ids[::-1]},
        {"ids": np.zeros_like(predictions.ids)},
    ]
    for change in changes:
        with pytest.raises(Fault):
            dataclasses.replace(predictions, **change)
    with pytest.raises(Fault):
        gathered(np.array([1, 1, 2]), np.array([1, 2]), logits_of(np.array([1, 2])))


def test_probabilities_losses_and_ties(predictions: Predictions) -> None:
    logits = np.array([[0, 0, 0], [1000, 0, -1000], [2, 5, 5]], dtype=np.float32)
    ids, labels = np.arange(3), np.array([1, 2, 0], dtype=np.int32)
    table = dataclasses.replace(predictions, ids=ids, keys=list("abc"), groups=[""] * 3, labels=labels, logits=logits)
    probabilities = table.probabilities()
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(probabilities[0], 1 / 3)
    assert table.predicted().tolist() == [0, 0, 1]
    np.testing.assert_allclose(table.losses(), [np.log(3), 2000, 3 + np.log(2 + np.exp(-3))])


def test_written_and_read_back(predictions: Predictions, tmp_path: Path) -> None:
    path = tmp_path / "predictions" / "test.parquet"
    write_predictions(path, predictions)
    again = read_predictions(path)
    for field in dataclasses.fields(Predictions):
        left, right = getattr(predictions, field.name), getattr(again, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right
    plain = pq.read_table(path)
    assert plain.column_names == ["id", "key", "label", "prediction", "group", "logits"]
    assert json.loads(plain.schema.metadata[METADATA])["classes"] == CLASSES
    assert plain["logits"][3].as_py() == pytest.approx(predictions.logits[3].tolist())


def test_equal_tables_have_equal_bytes_and_nothing_else_stays(predictions: Predictions, tmp_path: Path) -> None:
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    write_predictions(one, predictions)
    order = np.random.default_rng(0).permutation(predictions.ids)
    write_predictions(two, gathered(order, order[::-1], logits_of(order[::-1])))
    assert one.read_bytes() == two.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.parquet", "two.parquet"]


def test_an_empty_table_can_be_written_and_read(predictions: Predictions, tmp_path: Path) -> None:
    none = np.array([], dtype=np.int64)
    write_predictions(tmp_path / "empty.parquet", gathered(none, none, np.empty((0, 3))))
    assert len(read_predictions(tmp_path / "empty.parquet").ids) == 0


def test_files_that_are_not_such_tables_are_refused(predictions: Predictions, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    with pytest.raises(BadInput, match="there is no table"):
        read_predictions(path)
    path.write_text("id,key\n1,a\n")
    with pytest.raises(BadInput, match="cannot be read"):
        read_predictions(path)
    pq.write_table(pa.table({"id": [1]}), path)
    with pytest.raises(BadInput, match="not a table of predictions"):
        read_predictions(path)
    write_predictions(path, predictions)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadInput, match="cannot be read"):
        read_predictions(path)


def rewritten(path: Path, predictions: Predictions, column: str, values: pa.Array) -> Path:
    """Write the table with one column replaced."""
    write_predictions(path, predictions)
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), path)
    return path


def test_changed_content_is_refused(predictions: Predictions, tmp_path: Path) -> None:
    path, rows = tmp_path / "p.parquet", len(predictions.ids)
    cases = {
        "not those of the largest": ("prediction", pa.array((predictions.predicted() + 1) % 3)),
        "outside the 3 classes": ("label", pa.array(predictions.labels + np.int32(3))),
        "not strictly ascending": ("id", pa.array(np.zeros(rows, dtype=np.int64))),
        "has not 3 logits": ("logits", pa.array([[0.0, 1.0]] * rows, pa.list_(pa.float32()))),
        "empty cells": ("key", pa.array([None] * rows, pa.string())),
        "must be int64": ("label", pa.array(predictions.labels.astype(np.float64))),
    }
    for message, (column, values) in cases.items():
        with pytest.raises(BadInput, match=message):
            read_predictions(rewritten(path, predictions, column, values))


def test_a_newer_version_is_refused(predictions: Predictions, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_predictions(path, predictions)
    table = pq.read_table(path)
    about = {**json.loads(table.schema.metadata[METADATA]), "schema": "bloodcell/predictions/2"}
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(about)}), path)
    with pytest.raises(BadInput, match="format bloodcell/predictions/2"):
        read_predictions(path)


def test_lists_of_variable_length_are_read_too(predictions: Predictions, tmp_path: Path) -> None:
    lists = pa.array(predictions.logits.tolist(), pa.list_(pa.float32()))
    again = read_predictions(rewritten(tmp_path / "p.parquet", predictions, "logits", lists))
    np.testing.assert_array_equal(again.logits, predictions.logits)
