"""What only a CUDA device can show: the same graph on the GPU, bf16 under NCCL, resuming there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bloodcell.data.loader import Loader, training_requests
from bloodcell.data.order import BatchOrder, NaturalPlan
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES
from bloodcell.data.shardset import ShardSet
from tests.conftest import bloodcell

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RUN = (
    "--data.size",
    64,
    "--data.micro_batch",
    16,
    "--train.micro_batches",
    2,
    "--train.epochs",
    2,
    "--tracking.wandb",
    "off",
)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_graph_gives_the_same_pixels_on_the_gpu(small_set: Path, policy: str) -> None:
    """Tolerance: the GPU decodes and interpolates with other rounding: 3 of 255 on average, 99 % within 12."""
    shards = ShardSet.open(small_set)
    view = View(40, (0.0,) * 3, (1.0,) * 3, POLICIES[policy], seed=2)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 2, 16, 1)

    def batches(device: torch.device) -> list[torch.Tensor]:
        with Loader(shards, training_requests(order, 1, 0, 0, 6), view, 16, 2, device) as loader:
            return [batch.images.cpu() for batch in loader]

    for ours, reference in zip(batches(torch.device("cuda", 0)), batches(torch.device("cpu")), strict=True):
        difference = (ours - reference).abs().numpy() * 255
        assert difference.mean() <= 3
        assert np.quantile(difference, 0.99) <= 12


@pytest.mark.parametrize(
    ("precision", "engine"),
    [
        ("bf16", ()),
        ("fp16", ()),
        ("fp32", ()),
        ("bf16", ("--engine.sync_norm", "true", "--engine.compress", "bf16")),
        *(("bf16", ("--engine.strategy", f"zero{stage}")) for stage in range(4)),
        ("bf16", ("--engine.strategy", "zero2", "--engine.offload", "true")),
        ("fp32", ("--engine.strategy", "zero1", "--engine.sync_norm", "true")),
    ],
)
def test_training_and_resuming_on_the_gpu(
    small_set: Path, tmp_path: Path, precision: str, engine: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    arguments = (
        "train",
        "resnet10t",
        "--data",
        small_set,
        "--run",
        run,
        *RUN,
        "--engine.precision",
        precision,
        *engine,
    )
    done = bloodcell(*arguments, ranks=1)
    assert done.code == 0, done.err
    status = json.loads((run / "status.json").read_text())
    assert status["lineage_proven"] is True
    newest = (run / "checkpoints" / "last").resolve()
    shutil.rmtree(newest)
    for link in ("last", "best"):
        (run / "checkpoints" / link).unlink(missing_ok=True)
    again = bloodcell(*arguments, ranks=1)
    assert again.code == 0, again.err
    assert json.loads((run / "status.json").read_text())["lineage"] == status["lineage"]


def test_weights_trained_on_the_gpu_are_judged_on_the_cpu(small_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = bloodcell("train", "resnet10t", "--data", small_set, "--run", run, *RUN, ranks=1)
    assert done.code == 0, done.err
    values = [
        bloodcell("evaluate", run, "--device", device, "--json").json["metrics"]["accuracy"]["value"]
        for device in ("cuda", "cpu")
    ]
    assert values[0] == pytest.approx(values[1], abs=0.03)


def test_images_in_the_memory_of_the_gpu_are_those_of_decoding(small_set: Path) -> None:
    """Tolerance: the JPEG unit and the kernels beside it may round a few levels apart: 2 on average, 99 % within 8."""
    from bloodcell.data.filling import fill
    from bloodcell.data.layout import Layout
    from bloodcell.data.reading import Reading
    from bloodcell.data.resident import DeviceCache, HostCache

    shards, device = ShardSet.open(small_set), torch.device("cuda", 0)
    layout = Layout(shards, np.arange(*shards.ranges("train")[0]))
    view = View(40, (0.0,) * 3, (1.0,) * 3, POLICIES["rotate"], seed=2)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 2, 16, 1)
    on_device = DeviceCache(layout, device)
    fill(on_device, shards, 2, True)
    assert all(on_device.has(int(sample)) for sample in layout.ids)

    def batches(cache: DeviceCache | HostCache | None) -> list[torch.Tensor]:
        requests = training_requests(order, 1, 0, 0, 2 * order.steps_per_epoch)
        with Loader(shards, requests, view, 16, 2, device, Reading(cache=cache)) as loader:
            return [batch.images.cpu() for batch in loader]

    reference = batches(None)
    for cache in (on_device, HostCache(layout, HostCache.create())):
        for ours, theirs in zip(batches(cache), reference, strict=True):
            difference = (ours - theirs).abs().numpy() * 255
            assert difference.mean() <= 2
            assert np.quantile(difference, 0.99) <= 8


def test_a_run_with_images_on_the_gpu_learns_and_goes_on(small_set: Path, tmp_path: Path) -> None:
    arguments = ("train", "resnet10t", "--data", small_set, "--run", tmp_path / "run", *RUN)
    done = bloodcell(*arguments, "--data.cache", "device", timeout=900)
    assert done.code == 0, done.err
    assert "decoded images stay in memory (device)" in done.err
    assert bloodcell(*arguments, "--train.epochs", 3, timeout=900).code == 0


@pytest.mark.parametrize("graphs", ["false", "true"])
def test_a_compiled_run_learns_and_goes_on(small_set: Path, tmp_path: Path, graphs: str) -> None:
    """`goes on`: by the compiled code that the cache holds, as CUDA graphs too."""
    arguments = ("train", "resnet10t", "--data", small_set, "--run", tmp_path / "run", *RUN, "--train.micro_batches", 1)
    flags = ("--engine.compile", "on", "--engine.cuda_graphs", graphs)
    done = bloodcell(*arguments, *flags, timeout=900)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["efficiency"]["mfu"] > 0
    assert bloodcell(*arguments, *flags, "--train.epochs", 3, timeout=900).code == 0


def test_the_largest_micro_batch_fits(small_set: Path, tmp_path: Path) -> None:
    """Within a stated memory: what training then takes at its peak is not more."""
    from bloodcell.engine.batch_size import training_needs
    from bloodcell.runfolder import RunFolder

    flags = ("--engine.memory", 1, "--data.micro_batch", 0, "--profile")
    arguments = ("train", "resnet10t", "--data", small_set, "--run", tmp_path / "run", *RUN, "--train.epochs", 6)
    done = bloodcell(*arguments, *flags, timeout=900)
    assert done.code == 0, done.err
    config = RunFolder(tmp_path / "run").config()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    needs = training_needs(config)
    peak = max(record["train/memory_mib"] for record in records if "train/memory_mib" in record)
    assert peak * 2**20 < needs.fixed + config.data.micro_batch * needs.image + 2**28
    assert (tmp_path / "run" / "profile" / "account.md").exists()
