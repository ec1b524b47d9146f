"""The CPU backend beside DALI's: each operation within its stated tolerance; pixels by the sample alone."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bloodcell.data.backends import choose_backend, describe_backend
from bloodcell.data.choosing import AugMix, Hybrid, RandAugment, Trivial
from bloodcell.data.decoding import decoded
from bloodcell.data.kernels import KERNELS, TOLERANCE
from bloodcell.data.loader import Batch, Loader, training_requests
from bloodcell.data.operations import (
    Affine,
    Blur,
    Brightness,
    Colour,
    Crop,
    Erase,
    Flip,
    Operation,
    Rotate,
    Sharpness,
    Stain,
)
from bloodcell.data.order import BatchOrder, NaturalPlan
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES, Policy
from bloodcell.data.pool import Buffers, PoolRenderer, not_done
from bloodcell.data.reading import Reading
from bloodcell.data.request import Request
from bloodcell.data.shardset import Reader, ShardSet
from shards.errors import BadInput, Unreadable
from shards.images import decode
from shards.pack import PackOptions, pack
from shards.synth import SynthOptions, synthesise

CPU = torch.device("cpu")
SIZE = 48  # of the drawn images
IDS = np.arange(32)


def shown(folder: Path, policy: Policy, backend: str, size: int = SIZE, views: int = 1) -> np.ndarray:
    """Return what a backend makes of samples: int64 [views * n, size, size, 3]."""
    view = View(size, (0.0,) * 3, (1.0,) * 3, policy, seed=9, views=views, backend=backend)
    request = Request(IDS, np.zeros_like(IDS), 1, np.ones(len(IDS), dtype=bool))
    with Loader(ShardSet.open(folder), iter([request]), view, len(IDS), 2, CPU) as loader:
        (batch,) = loader
    return (batch.images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.int64)


STEPS: list[Operation] = [
    *(Flip(), Rotate(), Affine(0.2, (0.7, 1.4), 20.0), Brightness(0.4, 0.4), Colour(0.5, 40.0), Stain(0.3, 0.1, 0.7)),
    *(Sharpness(1.0), Blur((0.4, 3.0), 0.5), Erase((0.05, 0.3), probability=0.7, fill=77)),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_an_operation_is_that_of_dali(small_set: Path, step: Operation) -> None:
    mean, largest = TOLERANCE[type(step)]
    policy = Policy("one", (step,))
    difference = np.abs(shown(small_set, policy, "cpu") - shown(small_set, policy, "dali"))
    assert difference.max() <= largest
    assert difference.mean() <= mean


def test_every_kernel_states_its_tolerance() -> None:
    assert set(TOLERANCE) == {*KERNELS, Crop}
    assert set(KERNELS) == {type(step) for step in STEPS}


@pytest.mark.parametrize("step", [RandAugment(), Trivial(), AugMix(), Hybrid()], ids=lambda step: type(step).__name__)
def test_chosen_operations_are_those_of_dali(small_set: Path, step: Operation) -> None:
    """Tolerance: 1 on average for nine of ten images; a level of an equalised histogram may fall to the next bin."""
    policy = Policy("one", (step,))
    difference = np.abs(shown(small_set, policy, "cpu", views=3) - shown(small_set, policy, "dali", views=3))
    means = difference.mean(axis=(1, 2, 3))
    assert np.quantile(means, 0.9) <= 1
    assert means.max() <= 3
    assert (difference[: len(IDS)] == 0).all()  # the first view of several is clean


@pytest.mark.parametrize("size", [32, 48, 96])
def test_a_whole_window_is_resized_as_by_dali(small_set: Path, size: int) -> None:
    mean, largest = TOLERANCE[Crop]
    difference = np.abs(
        shown(small_set, POLICIES["none"], "cpu", size) - shown(small_set, POLICIES["none"], "dali", size)
    )
    assert difference.max() <= largest
    assert difference.mean() <= mean


def test_a_crop_is_that_of_dali_but_for_half_a_pixel(small_set: Path) -> None:
    """Its window is rounded to whole pixels of the original: the mean difference is that of a shift by half a pixel."""
    policy = Policy("crop", (Crop((0.4, 0.9)),))
    ours, theirs = shown(small_set, policy, "cpu"), shown(small_set, policy, "dali")
    moved = np.abs(theirs[:, 1:, 1:] - theirs[:, :-1, :-1]).mean()  # by a whole pixel of the result
    assert np.abs(ours - theirs).mean() <= moved


def test_every_format_decodes_to_the_same_pixels(tmp_path: Path) -> None:
    """Tolerance: 1 (CMYK, 16 bit), as the set's own decoder beside DALI's."""
    synthesise(tmp_path / "images", SynthOptions(images=60, size=48, patients=4, odd_formats=21, seed=5))
    pack(tmp_path / "images", tmp_path / "set", PackOptions(split="0/0/100", workers=1))
    shards = ShardSet.open(tmp_path / "set")
    reader = Reader(shards)
    for sample in range(len(shards.index)):
        data = reader.read(sample)
        pixels, mode, kind = decode(data.tobytes())
        assert np.abs(decoded(data).astype(int) - pixels).max() <= 1, (mode, kind)


VIEW = View(32, (0.5,) * 3, (0.25,) * 3, POLICIES["strong"], seed=3, backend="cpu")


def train_batches(
    shards: ShardSet, view: View = VIEW, micro: int = 8, k: int = 2, threads: int = 1, first: int = 0
) -> list[Batch]:
    order = BatchOrder(NaturalPlan(shards.ranges("train")), view.seed, micro, k)
    with Loader(
        shards, training_requests(order, 1, 0, first, 2 * order.steps_per_epoch), view, micro, threads, CPU
    ) as loader:
        return list(loader)


def by_sample(batches: list[Batch]) -> dict[tuple[int, int], torch.Tensor]:
    return {
        (batch.request.epoch, int(sample)): image
        for batch in batches
        for sample, image in zip(batch.request.ids, batch.images, strict=True)
    }


def test_pixels_depend_on_the_sample_alone(small_set: Path) -> None:
    """Not on threads, the batch, a restart, the layout; all batches are held, so none is written to again."""
    shards = ShardSet.open(small_set)
    batches = train_batches(shards)
    copies = [batch.images.clone() for batch in batches]
    reference = by_sample(batches)
    for other in (
        train_batches(shards, micro=4, k=4),
        train_batches(shards, threads=3),
        train_batches(shards, first=3),
        train_batches(shards, replace(VIEW, channels_last=False)),
    ):
        found = by_sample(other)
        assert found
        assert all(torch.equal(image, reference[place]) for place, image in found.items() if place in reference)
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(batches, copies, strict=True))
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)


def test_memory_that_somebody_holds_is_left_alone() -> None:
    buffers = Buffers()
    held = torch.from_numpy(buffers.take((2, 3)))[1:].permute(1, 0)
    assert buffers.take((2, 3)).ctypes.data != held.untyped_storage().data_ptr()
    place = held.untyped_storage().data_ptr()
    del held
    assert place in {buffers.take((2, 3)).ctypes.data for _ in range(2)}


def test_threads_of_others_stay_as_they_are(small_set: Path) -> None:
    """The pool computes on one core an image; the network keeps the threads that it was given."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_batches(ShardSet.open(small_set), threads=3)
        seen = []
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert torch.get_num_threads() == 2
        assert seen == [2]
    finally:
        torch.set_num_threads(before)


def test_a_thread_of_the_pool_computes_on_one_core(small_set: Path) -> None:
    """Also in its first operation, in which torch asks how many threads the process uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shards = ShardSet.open(small_set)
        view = View(SIZE, (0.0,) * 3, (1.0,) * 3, POLICIES["light"], seed=9, backend="cpu")
        renderer = PoolRenderer(shards, iter([]), view, 2, Reading())
        used = [renderer._pool.submit(torch.get_num_threads).result() for _ in range(8)]
        renderer.close()
        assert set(used) == {1}
    finally:
        torch.set_num_threads(before)


def test_an_undecodable_image_is_named_and_what_was_before_it_is_delivered(small_set: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_set, tmp_path / "set"))
    shards = ShardSet.open(folder)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 3, 8, 1)
    victim = int(order.micro(2, 0).ids[5])
    path = folder / shards.shard_of(victim)
    data = bytearray(path.read_bytes())
    begin = int(shards.index["offset"][victim])
    data[begin : begin + int(shards.index["size"][victim])] = bytes(int(shards.index["size"][victim]))
    path.write_bytes(data)
    seen: list[Batch] = []
    with (
        Loader(shards, training_requests(order, 1, 0, 0, 6), VIEW, 8, 1, CPU, Reading(check=False)) as loader,
        pytest.raises(Unreadable, match=f"cannot be decoded.*{shards.keys[victim]}"),
    ):
        seen.extend(loader)
    assert len(seen) == 2


def test_an_operation_of_somebody_else_is_not_done_here() -> None:
    class Odd:
        def draw(self, *_: object) -> dict[str, np.ndarray]:
            return {}

    assert not_done(Policy("own", (Crop(), Odd()))) == ["odd"]
    assert not any(not_done(policy) for policy in POLICIES.values())


def test_auto_takes_the_cpu_backend_without_a_gpu_and_only_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        def draw(self, *_: object) -> dict[str, np.ndarray]:
            return {}

    light, own = POLICIES["light"], Policy("own", (Odd(),))
    assert choose_backend("auto", light, "cpu") == "cpu"
    assert choose_backend("auto", light, "cuda") == choose_backend("auto", own, "cpu") == "dali"
    assert "has no odd" in describe_backend("dali", own, "cpu", 1)
    with pytest.raises(BadInput, match="has no odd"):
        choose_backend("cpu", own, "cpu")
    monkeypatch.setattr("bloodcell.data.backends.dali_is_installed", lambda: False)  # as on macOS
    assert choose_backend("auto", light, "cuda") == "cpu"
    assert choose_backend("auto", light, "cuda", elsewhere=True) == "dali"
    for wanted, policy in (("dali", light), ("auto", own)):
        with pytest.raises(BadInput, match="DALI is not installed"):
            choose_backend(wanted, policy, "cpu")
