"""Several tables as one: ensembles, pooled folds, comparisons; what does not fit is refused with the counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bloodcell.evaluation import pooling
from bloodcell.evaluation.align import align
from bloodcell.evaluation.combined import Combined, read_combined, read_table, short_names, write_combined
from bloodcell.evaluation.compare import compare, disagreements, lines, read_alike
from bloodcell.evaluation.ensemble import average, gain, gain_lines, mean_logits
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.source import SAID, Source, read_sourced, write_sourced
from shards.errors import BadInput, Fault
from tests.bloodcell.evaluation.tables import CLASSES, drawn


def shuffled(table: Predictions, seed: int = 1) -> Predictions:
    """Return the same samples as another packing has them: other order, other ids, another fingerprint."""
    order = np.random.default_rng(seed).permutation(len(table.ids))
    return replace(
        table,
        keys=[table.keys[i] for i in order],
        labels=table.labels[order],
        groups=[table.groups[i] for i in order],
        logits=table.logits[order],
        fingerprint="other",
    )


def test_an_ensemble_is_the_mean_of_the_probabilities() -> None:
    members = [drawn(seed=seed) for seed in range(3)]
    whole = average(members, ["a", "b", "c"], "all")
    mean = np.mean([member.probabilities() for member in members], axis=0)
    np.testing.assert_allclose(whole.probabilities(), mean, atol=1e-7)
    assert (whole.run, whole.keys) == ("all", members[0].keys)


def test_an_ensemble_of_sure_networks_stays_finite() -> None:
    sure = np.array([[3e38, -3e38], [0, 1e4]], dtype=np.float32)
    found = mean_logits([sure, sure[:, ::-1]])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found[0]), [0.5, 0.5], atol=1e-6)
    assert np.isfinite(mean_logits([sure, sure])).all()


def test_the_gain_is_told_over_the_best_and_over_the_mean() -> None:
    members = [drawn(300, seed=seed, skill=1.2) for seed in range(4)]
    names = list("abcd")
    found = gain(average(members, names, "all"), members, names)
    accuracies = [float((m.predicted() == m.labels).mean()) for m in members]
    entry = found["gain"]["accuracy"]
    assert entry["best"] == names[int(np.argmax(accuracies))]
    assert entry["over_mean"]["value"] - entry["over_best"]["value"] == pytest.approx(
        max(accuracies) - np.mean(accuracies), abs=1e-9
    )
    assert entry["over_mean"]["low"] > 0, "independent errors average out"
    assert found["gain"]["nll"]["over_best"]["value"] < 0
    assert found["members"]["a"]["accuracy"] == pytest.approx(accuracies[0])
    assert len(gain_lines(found)) == len(found["gain"])


def test_tables_are_aligned_by_key() -> None:
    first = drawn()
    other = shuffled(drawn(seed=1))
    moved = align([first, other], ["a", "b"])[1]
    np.testing.assert_array_equal(moved.logits, drawn(seed=1).logits)
    assert moved.keys == first.keys


def test_other_samples_labels_and_classes_are_refused_with_the_counts() -> None:
    with pytest.raises(BadInput, match="20 of 120 are only in the first, 30 of 130 only in the second"):
        align([drawn(120), drawn(130, first=20)], ["a", "b"])
    wrong = drawn()
    labels = wrong.labels.copy()
    labels[:7] = (labels[:7] + 1) % 3
    with pytest.raises(BadInput, match="7 of 120 samples have other labels"):
        align([drawn(), replace(wrong, labels=labels)], ["a", "b"])
    with pytest.raises(BadInput, match="classes differ"):
        align([drawn(), replace(drawn(), classes=["x", "y", "z"])], ["a", "b"])


def parts() -> list[Predictions]:
    return [drawn(40, seed=7, first=first) for first in (0, 40, 80)]


def test_folds_are_pooled_and_proven_by_key() -> None:
    keys = [f"k{i:05d}" for i in range(120)]
    pooled = pooling.pool(parts()[::-1], keys, "pooled", "test")
    assert pooled.predictions.keys == keys
    assert pooled.fold.tolist() == [2] * 40 + [1] * 40 + [0] * 40
    for broken, said in (
        (parts()[:2], "40 samples missing, 0 there more than once, 0 foreign"),
        ([*parts(), drawn(1, first=200)], "0 samples missing, 0 there more than once, 1 foreign"),
    ):
        with pytest.raises(Fault, match=said):
            pooling.pool(broken, keys, "pooled", "test")
    with pytest.raises(Fault, match="40 there more than once"):
        pooling.pool([*parts(), parts()[0]], keys, "pooled", "test")
    with pytest.raises(BadInput, match="different sets"):
        pooling.pool([parts()[0], replace(parts()[1], fingerprint="x")], keys, "pooled", "test")


def test_each_fold_is_calibrated_on_its_own_validation() -> None:
    """Fold 1 speaks three times too loudly; its temperature says so, and the pooled loss is repaired."""
    factors = [1.0, 3.0, 1.0]
    tests = [replace(p, logits=p.logits * np.float32(f)) for p, f in zip(parts(), factors, strict=True)]
    vals = [drawn(400, seed=20 + k, first=1000 * (k + 1)) for k in range(3)]
    vals = [replace(p, logits=p.logits * np.float32(f)) for p, f in zip(vals, factors, strict=True)]
    found, notes = pooling.temperatures(vals)
    assert found[1] / np.sqrt(found[0] * found[2]) == pytest.approx(3, rel=0.25)
    assert notes == []
    pooled = pooling.pool(tests, [key for part in tests for key in part.keys], "pooled", "test")
    scaled = pooled.scaled(found)
    assert scaled.losses().mean() < pooled.predictions.losses().mean()
    np.testing.assert_array_equal(scaled.predicted(), pooled.predictions.predicted())
    np.testing.assert_allclose(scaled.logits[:40] * found[0], tests[0].logits, rtol=1e-5)


def test_a_fold_without_a_best_temperature_says_so() -> None:
    surely = drawn(30, skill=50)
    found, notes = pooling.temperatures([surely])
    assert found == [1.0]
    assert "fold 0 keeps its confidences" in notes[0]


@pytest.mark.parametrize(
    ("folds", "count", "said"),
    [
        ([0, 1], 3, "fold 2 of 3 has no run"),
        ([1], 3, "folds 0, 2 of 3 have no run"),
        ([0, 1, 2, 2], 3, "equally many"),
        ([0, 1, 5], 3, "the run is of fold 5"),
    ],
)
def test_folds_that_are_not_whole_are_refused(folds: list[int], count: int, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        pooling.check_folds(folds, count, [f"r{i}" for i in range(len(folds))])


def test_folds_times_seeds_are_sorted() -> None:
    assert pooling.check_folds([1, 0, 0, 1], 2, list("abcd")) == {0: [1, 2], 1: [0, 3]}


def test_a_comparison_tells_metrics_differences_and_tests() -> None:
    tables = [drawn(200, skill=3), drawn(200, seed=1, skill=1), drawn(200, seed=2, skill=1)]
    found = compare(tables, ["good", "bad", "worse"])
    assert [(p["first"], p["second"]) for p in found["pairs"]] == [("good", "bad"), ("good", "worse"), ("bad", "worse")]
    pair = found["pairs"][0]
    assert pair["difference"]["overall"]["accuracy"]["low"] > 0
    assert pair["mcnemar"]["p"] < 1e-4 <= found["pairs"][2]["mcnemar"]["p"]
    assert pair["p_holm"] >= pair["mcnemar"]["p"]
    predicted = np.stack([t.predicted() for t in tables])
    assert found["disagreements"] == int((predicted != predicted[0]).any(axis=0).sum())
    assert found["all_wrong"] == int((predicted != tables[0].labels).all(axis=0).sum())
    assert f"they disagree on {found['disagreements']}" in lines(found)[-1]
    with pytest.raises(BadInput, match="one run"):
        compare(tables[:1], ["good"])


def test_disagreements_are_listed_the_surest_contradictions_first() -> None:
    tables = [drawn(100, skill=1), drawn(100, seed=1, skill=1)]
    found = disagreements(tables, ["a", "b"])
    ours, theirs = (t.predicted() for t in tables)
    assert sorted(found.column("id").to_pylist()) == np.flatnonzero(ours != theirs).tolist()
    rows = found.to_pylist()
    for row in rows:
        assert row["a"] == CLASSES[ours[row["id"]]] != row["b"] == CLASSES[theirs[row["id"]]]
        assert row["right"] == int(row["a"] == row["label"]) + int(row["b"] == row["label"])
    sure = [min(row["a probability"], row["b probability"]) for row in rows]
    assert sure == sorted(sure, reverse=True)


def test_other_packings_and_groups_are_told() -> None:
    first = drawn(60, group_size=3)
    other = replace(shuffled(drawn(60, seed=1, group_size=3)), groups=["x"] * 60)
    aligned, notes = read_alike([first, other], ["a", "b"])
    assert aligned[1].groups == first.groups
    assert len(notes) == 2
    assert "b has other groups than a" in notes[1]
    assert read_alike([first, drawn(60, seed=1, group_size=3)], ["a", "b"])[1] == []


def test_a_table_is_used_again_only_where_it_holds(tmp_path: Path) -> None:
    path, source = tmp_path / "predictions" / "test.parquet", Source("w1", "f00", "test")
    assert read_sourced(path, source) == "there is none yet"
    write_sourced(path, drawn(), source, "fp32")
    found = read_sourced(path, source)
    assert isinstance(found, Predictions)
    np.testing.assert_array_equal(found.logits, drawn().logits)
    for name, value in (
        ("weights", "w2"),
        ("fingerprint", "f"),
        ("split", "val"),
        ("orientations", 8),
        ("labels", "m"),
    ):
        assert read_sourced(path, replace(source, **{name: value})) == SAID[name]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert read_sourced(path, source) == "the file is not the one that was written"
    path.with_suffix(".json").write_text("{")
    assert read_sourced(path, source) == "no note says which weights made it"


def test_a_combined_result_is_told_from_other_folders(tmp_path: Path) -> None:
    combined = Combined("ensemble", ["a", "b"], ["1", "2"], 1, "set", "f00", CLASSES)
    folder = tmp_path / "whole"
    assert read_combined(folder) is None
    write_combined(folder, combined)
    write_combined(folder, combined)
    assert read_combined(folder) == combined
    with pytest.raises(BadInput, match="no predictions for split 'test'"):
        read_table(folder, "test")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("")
    with pytest.raises(BadInput, match="something else"):
        write_combined(tmp_path / "taken", combined)
    (folder / "combined.json").write_text('{"schema": "bloodcell/combined/9"}')
    with pytest.raises(BadInput, match="not a combined result"):
        read_combined(folder)


def test_names_tell_the_runs_apart(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert short_names([tmp_path / "a" / "fold0", tmp_path / "b" / "fold0"]) == ["a/fold0", "b/fold0"]
    with pytest.raises(BadInput, match="twice"):
        short_names([tmp_path / "a", tmp_path / "b", tmp_path / "x" / ".." / "a"])
