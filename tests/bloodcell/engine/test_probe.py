"""Probes find what separates classes, choose on validation alone, and become the head that they were fitted for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from bloodcell.config import Config, DataConfig, ModelConfig
from bloodcell.engine.feature_table import FeatureTable, read_feature_table, write_feature_table
from bloodcell.engine.features import tapped
from bloodcell.engine.probe import Samples, linear_probe, neighbour_probe
from bloodcell.engine.probing import attach
from bloodcell.models import zoo
from shards.errors import BadInput, Fault


def drawn_features(classes: int, each: int, seed: int, noise: float = 1.0) -> Samples:
    """Clouds around fixed directions, one feature constant, all of them large and far from zero."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 12)) * 2
    labels = np.repeat(np.arange(classes), each)
    values = centres[labels] + noise * rng.normal(size=(len(labels), 12))
    values[:, 0] = 7.0
    return Samples((values * 100 + 300).astype(np.float32), labels)


@pytest.mark.parametrize("method", [linear_probe, neighbour_probe])
def test_probes_tell_clouds_apart(method: object) -> None:
    probe = method(drawn_features(4, 60, 1), drawn_features(4, 20, 2), 4)  # type: ignore[operator]
    test = drawn_features(4, 100, 3)
    logits = probe.logits(test.features)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert (logits.argmax(axis=1) == test.labels).mean() > 0.97
    again = method(drawn_features(4, 60, 1), drawn_features(4, 20, 2), 4)  # type: ignore[operator]
    assert np.array_equal(logits, again.logits(test.features))


def test_the_setting_is_the_best_on_validation() -> None:
    """Noisy labels: a weak penalty or one neighbour learns them by heart, and the validation loss says so."""
    train, val = drawn_features(3, 40, 1, noise=4.0), drawn_features(3, 200, 2, noise=4.0)
    for method, weakest in ((linear_probe, {"C": 31.6}), (neighbour_probe, {"k": 1})):
        probe = method(train, val, 3)
        name, chosen = next(iter(probe.chosen.items()))
        best = min(probe.tried, key=lambda row: row["loss"])
        assert best[name] == chosen
        assert {name: chosen} != weakest
        logits = torch.from_numpy(probe.logits(val.features)).double()
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(val.labels))
        assert float(loss) == pytest.approx(best["loss"], rel=1e-4)
        assert float((logits.argmax(1).numpy() == val.labels).mean()) == pytest.approx(best["accuracy"])


def test_two_classes_and_classes_without_samples() -> None:
    train, val = drawn_features(2, 50, 1), drawn_features(2, 20, 2)
    found = linear_probe(train, val, 2)
    assert (found.logits(val.features).argmax(axis=1) == val.labels).mean() > 0.95
    wide = linear_probe(train, val, 3)
    assert wide.weight is not None
    assert wide.weight.shape == (3, 12)
    assert np.array_equal(wide.logits(val.features).argmax(axis=1), found.logits(val.features).argmax(axis=1))
    with pytest.raises(BadInput, match="one class"):
        linear_probe(Samples(train.features[:50], train.labels[:50]), val, 2)


def test_neighbours_vote_by_likeness() -> None:
    train = Samples(np.array([[1, 0], [1, 0.1], [0, 1], [-1, 0]], np.float32), np.array([0, 1, 2, 2]))
    probe = neighbour_probe(train, Samples(np.array([[5, 0.01]], np.float32), np.array([0])), 3)
    logits = probe.logits(np.array([[3, 0], [0, 9]], np.float32))
    assert logits.argmax(axis=1).tolist() == [0, 2]
    assert np.exp(logits).sum(axis=1) == pytest.approx([1, 1])


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:resnet10t"])
def test_a_probe_becomes_the_head(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.build(name, 4)
    images = torch.randn(40, 3, 64, 64)
    model.eval()
    with torch.inference_mode(), tapped(model) as tap:
        features = tap(images).numpy()
    samples = Samples(features, np.arange(40) % 4)
    probe = linear_probe(samples, samples, 4)
    config = Config(model=ModelConfig(name=name), data=DataConfig(size=64, micro_batch=4))
    attach(model, probe, config, torch.device("cpu"))
    with torch.inference_mode():
        np.testing.assert_allclose(model(images).numpy(), probe.logits(features), atol=1e-3)


class Crooked(nn.Module):
    """A network that does something behind its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.last(self.body(images.mean(dim=(2, 3)))))


def test_a_network_that_does_more_than_its_last_layer_takes_no_linear_probe() -> None:
    rng = np.random.default_rng(0)
    samples = Samples(rng.normal(size=(20, 6)).astype(np.float32), np.arange(20) % 2)
    config = Config(data=DataConfig(size=16, micro_batch=4))
    with pytest.raises(BadInput, match="more behind its features"):
        attach(Crooked(), linear_probe(samples, samples, 2), config, torch.device("cpu"))


def table_of(values: np.ndarray) -> FeatureTable:
    names = [str(i) for i in range(len(values))]
    rows = pa.table({"id": pa.array(np.arange(len(values)) * 2), "source": names})
    return FeatureTable(rows, values.astype(np.float32), {"model": "m", "size": 8})


def test_feature_tables_come_back_as_they_were(tmp_path: Path) -> None:
    table = table_of(np.random.default_rng(0).normal(size=(30, 5)))
    write_feature_table(tmp_path / "below" / "a.parquet", table)
    write_feature_table(tmp_path / "b.parquet", table)
    assert (tmp_path / "below" / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    back = read_feature_table(tmp_path / "b.parquet")
    assert np.array_equal(back.features, table.features)
    assert back.about == table.about
    assert np.array_equal(back.of(np.array([4, 10])), table.features[[2, 5]])
    with pytest.raises(Fault, match="first 3"):
        table_of(np.where(np.arange(5)[:, None] == 3, np.nan, np.ones((5, 2))))
    for content in (b"", b"PAR1 nothing PAR1", (tmp_path / "b.parquet").read_bytes()[:-40]):
        (tmp_path / "c.parquet").write_bytes(content)
        with pytest.raises(BadInput, match="not a table of features"):
            read_feature_table(tmp_path / "c.parquet")
