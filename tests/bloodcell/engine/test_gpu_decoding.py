"""What DALI's decoder is asked for on a GPU: windows alone, shares of its JPEG unit, hints, smaller images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bloodcell.data.decoder import Decoder
from bloodcell.data.layout import EncodedLayout, Layout
from bloodcell.data.loader import Loader, training_requests
from bloodcell.data.order import BatchOrder, NaturalPlan
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES
from bloodcell.data.reading import Reading
from bloodcell.data.resident import DeviceCache, EncodedCache, HostCache
from bloodcell.data.shardset import ShardSet
from tests.conftest import bloodcell

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

VIEW = View(24, (0.0,) * 3, (1.0,) * 3, POLICIES["light"], seed=2)


def shown(shards: ShardSet, **how: Any) -> np.ndarray:
    """Return the images of two epochs in levels of 255."""
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 2, 16, 1)
    requests = training_requests(order, 1, 0, 0, 2 * order.steps_per_epoch)
    with Loader(shards, requests, VIEW, 16, 2, torch.device("cuda", 0), Reading(**how)) as loader:
        return np.concatenate([255 * batch.images.cpu().numpy() for batch in loader])


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Tolerance, as of the GPU's decoders among each other: 2 levels on average, 99 % within 8."""
    difference = np.abs(ours - theirs)
    assert difference.mean() <= 2
    assert np.quantile(difference, 0.99) <= 8


@pytest.mark.parametrize(
    "decoder",
    [Decoder(roi=True), Decoder(hw_load=0.0), Decoder(hw_load=1.0), Decoder(hints=True), Decoder(True, 0, True)],
)
def test_the_decoder_may_be_asked_differently(small_set: Path, decoder: Decoder) -> None:
    shards = ShardSet.open(small_set)
    assert_close(shown(shards, decoder=decoder), shown(shards))


def test_smaller_images_are_alike_wherever_they_are_kept(small_set: Path) -> None:
    from bloodcell.data.filling import fill

    shards, device = ShardSet.open(small_set), torch.device("cuda", 0)
    ids = np.arange(*shards.ranges("train")[0])
    layout = Layout(shards, ids, 32)
    on_device = DeviceCache(layout, device)
    fill(on_device, shards, 2, True, Decoder(hints=True))
    assert all(on_device.has(int(sample), 32) and not on_device.has(int(sample)) for sample in ids)
    reference = shown(shards, side=32)
    caches = (on_device, HostCache(layout, HostCache.create()))
    for cache in (*caches, EncodedCache(EncodedLayout(shards, ids), EncodedCache.create())):
        assert_close(shown(shards, side=32, cache=cache), reference)


@pytest.mark.parametrize("place", ["device", "host", "encoded"])
def test_a_run_with_smaller_images_learns_and_goes_on(small_set: Path, tmp_path: Path, place: str) -> None:
    flags = ("--data.size", 24, "--data.micro_batch", 16, "--train.micro_batches", 1, "--tracking.wandb", "off")
    flags = (*flags, "--data.cache", place, "--data.cache_side", 32, "--data.decoder_hints")
    arguments = ("train", "resnet10t", "--data", small_set, "--run", tmp_path / "run", *flags)
    done = bloodcell(*arguments, "--train.epochs", 2, timeout=900)
    assert done.code == 0, done.err
    assert f"stay in memory ({place})" in done.err
    assert bloodcell(*arguments, "--train.epochs", 3, timeout=900).code == 0


def test_a_run_that_decodes_windows_alone_learns(small_set: Path, tmp_path: Path) -> None:
    flags = ("--data.size", 24, "--data.micro_batch", 16, "--train.micro_batches", 1, "--tracking.wandb", "off")
    flags = (*flags, "--data.cache", "off", "--data.roi_decode", "--data.hw_decoder_load", 0.0, "--train.epochs", 2)
    done = bloodcell("train", "resnet10t", "--data", small_set, "--run", tmp_path / "run", *flags, timeout=900)
    assert done.code == 0, done.err
    assert "does nothing here" not in done.err
