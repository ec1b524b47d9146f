"""Paths of a GPU beside training itself: what is kept there, what is read while it is copied, trials, two devices."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from bloodcell.config import Config, override
from bloodcell.data.loader import Loader, training_requests
from bloodcell.data.order import BatchOrder, NaturalPlan
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES
from bloodcell.data.reading import Reading
from bloodcell.data.shardset import ShardSet
from tests.conftest import bloodcell

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

GPU = torch.device("cuda", 0)


def shown(shards: ShardSet, reading: Reading, batches: int = 12) -> list[torch.Tensor]:
    view = View(40, (0.0,) * 3, (1.0,) * 3, POLICIES["light"], seed=2)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 2, 16, 1)
    with Loader(shards, training_requests(order, 1, 0, 0, batches), view, 16, 2, GPU, reading) as loader:
        return [batch.images.cpu() for batch in loader]


def alike(ours: list[torch.Tensor], theirs: list[torch.Tensor], mean: float = 2, most: float = 8) -> None:
    for one, other in zip(ours, theirs, strict=True):
        difference = (one - other).abs().numpy() * 255
        assert difference.mean() <= mean
        assert np.quantile(difference, 0.99) <= most


def test_images_that_the_cache_lacks_live_until_they_are_shown(small_set: Path) -> None:
    """DALI reads pixels on the GPU where they lie: those of no cache must not be given to something else before."""
    from bloodcell.data.filling import fill
    from bloodcell.data.layout import Layout
    from bloodcell.data.resident import DeviceCache

    shards = ShardSet.open(small_set)
    first, last = shards.ranges("train")[0]
    cache = DeviceCache(Layout(shards, np.arange(first, last)[::2]), GPU)  # every other image
    fill(cache, shards, 2, True)
    stop = threading.Event()

    def busy() -> None:  # takes and gives back memory, and writes into it
        while not stop.is_set():
            torch.full((48, 48, 3), 255, dtype=torch.uint8, device=GPU)

    other = threading.Thread(target=busy)
    other.start()
    try:
        found = shown(shards, Reading(cache=cache))
    finally:
        stop.set()
        other.join()
    alike(found, shown(shards, Reading()))


def test_pictures_in_memory_become_the_same_input_as_on_a_cpu() -> None:
    """As predict shows them; the buffer of one batch may be used again for the next."""
    from bloodcell.data.pixels import Pixels

    view = View(40, (0.0,) * 3, (1.0,) * 3, POLICIES["none"], seed=0)
    pictures = [np.full((60, 50, 3), level, dtype=np.uint8) for level in range(0, 256, 4)]
    pixels = Pixels(view, 4, 2, GPU)
    found = [pixels(pictures[place : place + 4]) for place in range(0, len(pictures), 4)]
    for batch, place in zip(found, range(0, len(pictures), 4), strict=True):
        levels = batch.mean(dim=(1, 2, 3)).cpu().numpy() * 255
        assert levels == pytest.approx(np.arange(4 * place, 4 * place + 16, 4), abs=1)


def test_memory_does_not_grow_with_the_batches(small_set: Path) -> None:
    shards = ShardSet.open(small_set)
    shown(shards, Reading(), 8)
    before = torch.cuda.memory_reserved(GPU)
    shown(shards, Reading(), 80)
    assert torch.cuda.memory_reserved(GPU) <= before + (8 << 20)


def test_a_trial_measures_the_gpu_and_survives_its_end() -> None:
    from bloodcell.engine.trying import peak

    config = override(Config(), {"engine.device": "cuda", "engine.precision": "bf16", "model.name": "resnet10t"})
    config = override(config, {"engine.threads": 1, "data.size": 64})
    few, many = (peak(override(config, {"data.micro_batch": count}), 4, 300) for count in (8, 512))
    assert few is not None
    assert many is not None
    assert few < many
    huge = override(config, {"data.micro_batch": 4096, "data.size": 2048})
    assert peak(huge, 4, 300) is None
    assert torch.ones(1, device=GPU).item() == 1  # nothing of it is felt here


def test_the_largest_micro_batch_is_found_by_trial(small_set: Path, tmp_path: Path) -> None:
    words = ("train", "resnet10t", "--data", small_set, "--run", tmp_path / "run", "--data.size", 64)
    flags = ("--data.micro_batch", 0, "--train.micro_batches", 1, "--train.epochs", 1, "--tracking.wandb", "off")
    done = bloodcell(*words, *flags, timeout=600)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "run" / "config.json").read_text())["micro_batch"]
    assert 0 < record["peak_mib"] <= record["allowed_mib"]


def test_the_ceilings_are_those_of_a_gpu() -> None:
    from bloodcell.engine.efficiency import measured_ceiling

    half, whole = (measured_ceiling(GPU, precision) for precision in ("bf16", "fp32"))
    assert half is not None
    assert whole is not None
    assert half["tflops"] > whole["tflops"] > 0
    assert half["gb_per_s"] > 10


def test_a_full_gpu_has_no_ceilings_and_raises_nothing() -> None:
    from bloodcell.engine.efficiency import measured_ceiling

    torch.cuda.empty_cache()
    taken = torch.empty(max(1, torch.cuda.mem_get_info(GPU)[0] - (1 << 30)), dtype=torch.uint8, device=GPU)
    assert measured_ceiling(GPU, "bf16") is None
    del taken
    torch.cuda.empty_cache()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@pytest.mark.parametrize("engine", [(), ("--engine.compile", "on"), ("--engine.strategy", "zero2")])
def test_two_ranks_train_on_a_gpu_each(small_set: Path, tmp_path: Path, engine: tuple[str, ...]) -> None:
    words = ("train", "resnet10t", "--data", small_set, "--run", tmp_path / "run", "--data.size", 64)
    flags = ("--data.micro_batch", 16, "--train.micro_batches", 2, "--train.epochs", 2, "--tracking.wandb", "off")
    done = bloodcell(*words, *flags, *engine, ranks=2, timeout=900)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["lineage_proven"] is True
