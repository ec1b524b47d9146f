"""Sets that do not fit decoded: images kept smaller, kept as bytes, decoded in part; what the network sees is stated.

What `data.cache_side` changes, measured in levels of 255 of the network's input: blood cells of 360 pixels (pbc8) kept
at 256 and shown at 224 under the policy light differ by 1.2 levels on average and by 11 at the 99th percentile, those
of 575 pixels (raabin5) by 1.0 and 7.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bloodcell.data.decoder import Decoder, boxes
from bloodcell.data.decoding import decoded
from bloodcell.data.draws import Draws
from bloodcell.data.kernels import resized
from bloodcell.data.layout import EncodedLayout, Layout
from bloodcell.data.loader import Batch, Loader, evaluation_requests, training_requests
from bloodcell.data.operations import Crop
from bloodcell.data.order import BatchOrder, EvaluationOrder, NaturalPlan
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES, Policy
from bloodcell.data.reading import Reading
from bloodcell.data.resident import EncodedCache, HostCache
from bloodcell.data.shardset import Reader, ShardSet
from bloodcell.data.smaller import shrunk, smaller
from shards.pack import PackOptions, pack
from shards.synth import SynthOptions, synthesise
from tests.batches import assert_same

CPU = torch.device("cpu")
VIEW = View(24, (0.0,) * 3, (1.0,) * 3, POLICIES["light"], seed=3, backend="cpu")
SIDE = 32
DRAWN, REAL = (4.5, 30), (1.5, 14)
"""Mean, and bound of 99 % of the values, between images that were scaled down first and as they are, in levels."""

backends = pytest.mark.parametrize("backend", ["cpu", "dali"])


@pytest.fixture(scope="module")
def odd_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Images of every format and mode, some stored lying, not square, all in the training split."""
    root = tmp_path_factory.mktemp("odd")
    synthesise(root / "images", SynthOptions(images=48, size=96, patients=4, odd_formats=21, seed=5))
    pack(root / "images", root / "set", PackOptions(split="100/0/0", workers=1))
    return ShardSet.open(root / "set")


def train_ids(shards: ShardSet) -> np.ndarray:
    return np.concatenate([np.arange(first, last) for first, last in shards.ranges("train")])


def shown(shards: ShardSet, view: View, epochs: tuple[int, int] = (0, 1), **how: Any) -> list[Batch]:
    """Return the batches of some epochs; the last few images of an epoch may be left out."""
    order = BatchOrder(NaturalPlan(shards.ranges("train")), view.seed, 8, 1)
    first, last = (epoch * order.steps_per_epoch for epoch in epochs)
    with Loader(shards, training_requests(order, 1, 0, first, last), view, 8, 2, CPU, Reading(**how)) as loader:
        return list(loader)


def judged(shards: ShardSet, split: str, **how: Any) -> list[Batch]:
    order, view = EvaluationOrder(shards.ranges(split), 16), replace(VIEW, policy=POLICIES["none"])
    with Loader(shards, evaluation_requests(order, 1, 0), view, 16, 2, CPU, Reading(**how)) as loader:
        return list(loader)


def levels(ours: list[Batch], theirs: list[Batch]) -> np.ndarray:
    """Return how far the images of two loaders are apart, in levels of 255."""
    pairs = zip(ours, theirs, strict=True)
    return np.concatenate([(255 * (one.images - other.images)).abs().flatten().numpy() for one, other in pairs])


def assert_stated(differences: np.ndarray, bounds: tuple[float, float]) -> None:
    assert 0 < differences.mean() <= bounds[0]
    assert np.quantile(differences, 0.99) <= bounds[1]


def test_the_shorter_side_is_at_most_the_stated_one() -> None:
    height, width = np.array([360, 363, 100, 20, 360]), np.array([363, 360, 100, 90, 4000])
    tall, wide = smaller(height, width, 256)
    assert tall.tolist() == [256, 258, 100, 20, 256]
    assert wide.tolist() == [258, 256, 100, 90, 2844]
    assert [side.tolist() for side in smaller(height, width, 0)] == [height.tolist(), width.tolist()]
    mixed, _ = smaller(height, width, np.array([0, 256, 50, 256, 0]))
    assert mixed.tolist() == [360, 258, 50, 20, 360]
    pixels = np.zeros((30, 47, 3), np.uint8)
    assert shrunk(pixels, 30) is pixels
    assert shrunk(pixels, 20).shape == (20, 31, 3)


@backends
def test_smaller_images_are_the_same_kept_or_not(odd_set: ShardSet, backend: str) -> None:
    """Bit by bit: without a cache, with decoded images, with bytes. Order and labels are those of the images' own size;
    the pixels differ as DRAWN says: these images have hard edges and are kept at a third of their size.
    """
    view = replace(VIEW, backend=backend)
    plain = shown(odd_set, view, side=SIDE)
    pixels = HostCache(Layout(odd_set, train_ids(odd_set), SIDE), HostCache.create())
    encoded = EncodedCache(EncodedLayout(odd_set, train_ids(odd_set)), EncodedCache.create())
    for cache in (pixels, encoded, pixels, encoded):
        assert_same(shown(odd_set, view, side=SIDE, cache=cache), plain)
    assert pixels.filled == encoded.filled > 0.9
    assert pixels.layout.bytes < Layout(odd_set, train_ids(odd_set)).bytes / 6
    own = shown(odd_set, view)
    assert [batch.request.ids.tolist() for batch in own] == [batch.request.ids.tolist() for batch in plain]
    assert not torch.equal(own[0].images, plain[0].images)
    assert_stated(levels(own, plain), DRAWN)


def test_an_evaluation_never_sees_smaller_images(small_set: Path) -> None:
    """Whatever is in memory: training images kept smaller are decoded anew, validation ones are kept as they are."""
    shards = ShardSet.open(small_set)
    train = train_ids(shards)
    ids = np.arange(len(shards.index))
    layout = Layout(shards, ids, np.where(np.isin(ids, train), SIDE, 0))
    cache = HostCache(layout, HostCache.create())
    assert layout.scaled.sum() == len(train)
    shown(shards, VIEW, side=SIDE, cache=cache)
    for split in ("train", "val"):
        reference = judged(shards, split)
        for _ in range(2):
            assert_same(judged(shards, split, cache=cache), reference)
    sample = int(train[0])
    smaller_one = cache.get(sample, SIDE)
    assert smaller_one is not None
    assert smaller_one.shape == (SIDE, SIDE, 3)
    assert cache.get(sample) is None
    assert cache.get(sample, 16) is None
    whole = cache.get(int(shards.ranges("val")[0][0]))
    assert whole is not None
    assert whole.shape == (48, 48, 3)


@pytest.mark.realdata
def test_smaller_real_images_differ_as_stated(real_data: Path) -> None:
    """Blood cells of 360 pixels at 256, windows and size as in training with the policy light at 224."""
    files = sorted(file for file in (real_data / "pbc8").rglob("*.jpg") if file.name[0] != ".")[::80]
    images = [decoded(np.fromfile(file, np.uint8)) for file in files]
    ids = np.arange(len(images))
    height, width = (np.array([image.shape[axis] for image in images]) for axis in (0, 1))
    windows = Crop().draw(Draws(0, 0, ids, np.zeros_like(ids)), height, width)["window"]
    pairs = [
        [resized(torch.from_numpy(one), window, 224).numpy().astype(int) for one in (image, shrunk(image, 256))]
        for image, window in zip(images, windows, strict=True)
    ]
    assert len(pairs) >= 20
    differences = np.concatenate([np.abs(one - other).ravel() for one, other in pairs])
    assert_stated(differences, REAL)
    assert differences.mean() > 0


@backends
@pytest.mark.parametrize("reader", ["plan", "stream", "webdataset"])
def test_bytes_in_memory_are_those_of_the_files(small_set: Path, tmp_path: Path, backend: str, reader: str) -> None:
    """Bit by bit, in the same order; when all were read once, the files may be gone."""
    folder = Path(shutil.copytree(small_set, tmp_path / "set"))
    shards, view = ShardSet.open(folder), replace(VIEW, backend=backend)
    cache = EncodedCache(EncodedLayout(shards, train_ids(shards)), EncodedCache.create())
    reference = shown(shards, view, (0, 2))
    first = shown(shards, view, cache=cache, reader=reader)
    reading = Reader(shards)
    for sample in train_ids(shards).tolist():  # the tail that the first epoch left out
        cache.put(sample, reading.read(sample))
    for tar in folder.glob("*.tar"):
        tar.unlink()
    assert_same(first + shown(shards, view, (1, 2), cache=cache, reader=reader), reference)


def test_bytes_in_memory_are_shared_and_only_sound_ones_are_kept(small_set: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_set, tmp_path / "set"))
    shards = ShardSet.open(folder)
    ids = train_ids(shards)
    cache = EncodedCache(EncodedLayout(shards, ids), EncodedCache.create())
    victim = int(ids[5])
    path = folder / shards.shard_of(victim)
    data = bytearray(path.read_bytes())
    data[int(shards.index["offset"][victim]) + 200] ^= 1
    path.write_bytes(data)
    shown(shards, VIEW, cache=cache, skip=True)
    assert cache.get(victim) is None
    there = [int(sample) for sample in ids if cache.get(int(sample)) is not None]
    assert len(there) >= len(ids) - 8
    code = (
        "import os, sys; from pathlib import Path; import numpy as np\n"
        "from bloodcell.data.layout import EncodedLayout; from bloodcell.data.resident import EncodedCache\n"
        "from bloodcell.data.shardset import ShardSet\n"
        f"shards = ShardSet.open(Path({str(folder)!r})); ids = np.arange(*shards.ranges('train')[0])\n"
        f"memory = os.open('/proc/{os.getpid()}/fd/{cache.descriptor}', os.O_RDWR)\n"
        f"sys.stdout.buffer.write(EncodedCache(EncodedLayout(shards, ids), memory).get({there[0]}).tobytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == Reader(shards).read(there[0]).tobytes()
    assert EncodedCache.size(cache.layout) == int(shards.index["size"][ids].sum()) + len(ids) + 1


def test_a_box_holds_all_that_the_filter_looks_at() -> None:
    window = np.array([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.101, 0.101]])
    height, width = np.full(3, 400), np.full(3, 200)
    begin, end, inside = boxes(window, height, width, 50)
    assert begin.tolist() == [[96, 98], [0, 0], [39, 19]]
    assert end.tolist() == [[304, 200], [400, 200], [42, 22]]
    sides = end - begin
    back = np.concatenate([begin + inside[:, :2] * sides, begin + inside[:, 2:] * sides], axis=1)
    np.testing.assert_allclose(back, window * [400, 200, 400, 200], atol=1e-4)


@pytest.mark.parametrize("views", [1, 3])
def test_decoding_a_window_alone_shows_the_same(odd_set: ShardSet, views: int) -> None:
    """Every format, images stored lying, mirrored windows. Tolerance: one level, in a thousandth of the values."""
    policy = Policy("cut", (Crop((0.1, 0.6)), *POLICIES["augmix" if views > 1 else "light"].operations[1:]))
    view = replace(VIEW, backend="dali", policy=policy, views=views)
    whole, part = (shown(odd_set, view, decoder=Decoder(roi=roi)) for roi in (False, True))
    differences = levels(part, whole).round()
    if views == 1:
        assert differences.max() <= 2  # a level, which brightness and contrast stretch
    assert (differences > 0).mean() <= 1e-3


def test_a_policy_without_a_crop_decodes_all(small_set: Path) -> None:
    shards = ShardSet.open(small_set)
    view = replace(VIEW, backend="dali", policy=POLICIES["flip"])
    assert_same(shown(shards, view, decoder=Decoder(roi=True)), shown(shards, view))


def test_what_the_decoder_of_a_gpu_is_told(small_set: Path) -> None:
    """These arguments exist in DALI's decoders; nothing of it is told on a CPU."""
    from nvidia.dali import fn

    largest = ShardSet.open(small_set).largest
    assert largest == (48, 48)
    told = Decoder(hw_load=0.5, hints=True).told("gpu", (6430, 5980))
    assert (told["device"], told["hw_decoder_load"]) == ("mixed", 0.5)
    assert (told["preallocate_height_hint"], told["preallocate_width_hint"]) == (6430, 5980)
    assert told["device_memory_padding"] >= 211_025_920
    assert told["host_memory_padding"] >= 140_544_512
    assert Decoder().told("gpu", largest) == {"device": "mixed", "hw_decoder_load": 0.65}
    assert Decoder(hw_load=0.5, hints=True).told("cpu", largest) == {"device": "cpu"}
    for decoder in (fn.decoders.image, fn.decoders.image_slice):
        assert all(f"{name} :" in (decoder.__doc__ or "") for name in told if name != "device")
