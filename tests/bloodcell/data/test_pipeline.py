"""The DALI pipeline on real shards: right pixels for every format, by the sample alone; errors that name it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bloodcell.data.draws import Draws
from bloodcell.data.loader import Batch, Loader, evaluation_requests, training_requests
from bloodcell.data.operations import Colour, Crop, Flip
from bloodcell.data.order import BatchOrder, EvaluationOrder, NaturalPlan
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES, Policy, find_policy
from bloodcell.data.reading import Reading
from bloodcell.data.request import Request
from bloodcell.data.shardset import Reader, ShardSet
from shards.errors import BadInput, EnvironmentFault
from shards.images import decode
from shards.pack import PackOptions, pack
from shards.synth import SynthOptions, synthesise

CPU = torch.device("cpu")
VIEW = View(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), POLICIES["rotate"], seed=3)


def train_batches(
    shards: ShardSet, view: View, micro: int = 8, k: int = 2, threads: int = 1, first: int = 0
) -> list[Batch]:
    order = BatchOrder(NaturalPlan(shards.ranges("train")), view.seed, micro, k)
    requests = training_requests(order, 1, 0, first, 2 * order.steps_per_epoch)
    with Loader(shards, requests, view, micro, threads, CPU) as loader:
        return list(loader)


def by_sample(batches: list[Batch]) -> dict[tuple[int, int], torch.Tensor]:
    return {
        (batch.request.epoch, int(sample)): image
        for batch in batches
        for sample, image in zip(batch.request.ids, batch.images, strict=True)
    }


@pytest.fixture(scope="module")
def odd_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in every format and mode that people have, not square, all in one split."""
    root = tmp_path_factory.mktemp("odd")
    synthesise(root / "images", SynthOptions(images=60, size=48, patients=4, odd_formats=21, seed=5))
    pack(root / "images", root / "set", PackOptions(split="0/0/100", workers=1))
    return root / "set"


def test_every_format_gives_the_pixels_of_pil(odd_set: Path) -> None:
    """Tolerance: 1 of 255 (16-bit colour is rounded differently); resizing to the image's own size changes nothing."""
    shards = ShardSet.open(odd_set)
    view = View(48, (0.0,) * 3, (1.0,) * 3, POLICIES["none"], 0)
    order = EvaluationOrder(shards.ranges("test"), 16)
    reader, seen = Reader(shards), set()
    table = shards.table(["mode", "format"]).to_pylist()
    with Loader(shards, evaluation_requests(order, 1, 0), view, 16, 2, CPU) as loader:
        for batch in loader:
            for sample, image in zip(batch.request.ids[batch.request.valid], batch.images, strict=False):
                expected = decode(reader.read(int(sample)).tobytes())[0]
                got = (image.permute(1, 2, 0).numpy() * 255).round()
                assert np.abs(got - expected).max() <= 1, table[int(sample)]
                seen.add((table[int(sample)]["format"], table[int(sample)]["mode"]))
    assert {("BMP", "RGB"), ("PNG", "RGB"), ("PNG", "P"), ("JPEG", "CMYK"), ("JPEG", "RGB")} <= seen
    assert any(mode == "L" for _, mode in seen)
    assert any(mode.startswith("I;16") for _, mode in seen)


def test_resizing_is_that_of_pil(small_set: Path) -> None:
    """Tolerance to PIL's antialiased bilinear resize when shrinking to half: 4 of 255, 0.5 on average."""
    from PIL import Image

    shards = ShardSet.open(small_set)
    view = View(24, (0.0,) * 3, (1.0,) * 3, POLICIES["none"], 0)
    ids = np.arange(8)
    request = Request(ids, np.zeros(8, dtype=np.int64), 0, np.ones(8, dtype=bool))
    reader = Reader(shards)
    with Loader(shards, iter([request]), view, 8, 1, CPU) as loader:
        (batch,) = loader
    for sample, image in zip(ids, batch.images, strict=True):
        pixels = Image.fromarray(decode(reader.read(int(sample)).tobytes())[0])
        expected = np.asarray(pixels.resize((24, 24), Image.Resampling.BILINEAR), dtype=float)
        difference = np.abs(image.permute(1, 2, 0).numpy() * 255 - expected)
        assert difference.max() <= 4.01
        assert difference.mean() <= 0.5


def test_pixels_depend_on_the_sample_alone(small_set: Path) -> None:
    shards = ShardSet.open(small_set)
    reference = by_sample(train_batches(shards, VIEW))
    for other in (
        train_batches(shards, VIEW, micro=4, k=4),
        train_batches(shards, VIEW, threads=3),
        train_batches(shards, VIEW, first=3),
    ):
        found = by_sample(other)
        assert found
        assert all(torch.equal(image, reference[place]) for place, image in found.items() if place in reference)
    differing = by_sample(train_batches(shards, replace(VIEW, seed=4)))
    shared = [place for place in differing if place in reference]
    assert sum(torch.equal(differing[place], reference[place]) for place in shared) == 0
    epochs = [place for place in reference if place[0] == 0 and (1, place[1]) in reference]
    assert not any(torch.equal(reference[place], reference[1, place[1]]) for place in epochs)


def test_labels_and_ids_belong_to_the_images(small_set: Path) -> None:
    shards = ShardSet.open(small_set)
    labels = shards.table(["label"]).column("label").to_numpy()
    for batch in train_batches(shards, VIEW):
        assert (batch.labels.numpy() == labels[batch.request.ids]).all()
        assert batch.images.shape == (8, 3, 32, 32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    plain = train_batches(shards, replace(VIEW, channels_last=False))
    assert plain[0].images.is_contiguous()
    assert torch.equal(plain[0].images, train_batches(shards, VIEW)[0].images)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_each_sample_once(small_set: Path, world: int) -> None:
    shards = ShardSet.open(small_set)
    order = EvaluationOrder(shards.ranges("val"), 16)
    seen: list[int] = []
    for rank in range(world):
        with Loader(
            shards, evaluation_requests(order, world, rank), replace(VIEW, policy=POLICIES["none"]), 16, 1, CPU
        ) as loader:
            for batch in loader:
                assert len(batch.images) == 16
                seen += batch.request.ids[batch.request.valid].tolist()
    first, last = shards.ranges("val")[0]
    assert sorted(seen) == list(range(first, last))


@pytest.fixture
def broken_set(small_set: Path, tmp_path: Path) -> Path:
    """A copy of the set that may be damaged."""
    return Path(shutil.copytree(small_set, tmp_path / "set"))


def test_a_flipped_byte_is_named_by_key_and_shard(broken_set: Path) -> None:
    shards = ShardSet.open(broken_set)
    victim = int(shards.ranges("train")[0][0]) + 7
    path = broken_set / shards.shard_of(victim)
    data = bytearray(path.read_bytes())
    data[int(shards.index["offset"][victim]) + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(EnvironmentFault, match=f"{shards.keys[victim]} in .*{path.name}"):
        train_batches(shards, VIEW)


def test_an_undecodable_image_is_named_without_checksums(broken_set: Path) -> None:
    shards = ShardSet.open(broken_set)
    victim = int(shards.ranges("train")[0][0]) + 2
    path = broken_set / shards.shard_of(victim)
    data = bytearray(path.read_bytes())
    begin = int(shards.index["offset"][victim])
    data[begin : begin + 64] = bytes(64)
    path.write_bytes(data)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 0, 8, 1)
    requests = training_requests(order, 1, 0, 0, order.steps_per_epoch)
    unchecked = Loader(shards, requests, VIEW, 8, 1, CPU, Reading(check=False))
    with unchecked as loader, pytest.raises(EnvironmentFault) as caught:
        list(loader)
    assert shards.keys[victim] in str(caught.value)


def test_a_missing_or_short_shard_is_found_when_the_set_is_opened(broken_set: Path) -> None:
    path = broken_set / "train-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-512])
    with pytest.raises(BadInput, match=r"bytes, dataset\.json says"):
        ShardSet.open(broken_set)
    path.unlink()
    with pytest.raises(BadInput, match="a shard is missing"):
        ShardSet.open(broken_set)


def test_an_unfinished_loader_can_be_closed(small_set: Path) -> None:
    shards = ShardSet.open(small_set)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 0, 8, 1)
    with Loader(shards, training_requests(order, 1, 0, 0, 10_000), VIEW, 8, 1, CPU) as loader:
        next(iter(loader))


def test_crops_lie_inside_and_keep_to_their_range() -> None:
    n = 5000
    height, width = np.full(n, 240), np.full(n, 320)
    draws = Draws(0, 0, np.arange(n), np.zeros(n, dtype=np.int64))
    window = Crop((0.3, 0.9), (0.75, 1.33)).draw(draws, height, width)["window"]
    assert window.min() >= 0
    assert window.max() <= 1
    tall, wide = (window[:, 2] - window[:, 0]) * 240, (window[:, 3] - window[:, 1]) * 320
    assert (tall * wide / (240 * 320)).min() > 0.29
    assert (tall * wide / (240 * 320)).max() < 0.91
    assert 0.74 < (wide / tall).min() < (wide / tall).max() < 1.34


def test_neutral_arguments_change_nothing(small_set: Path) -> None:
    shards = ShardSet.open(small_set)
    still = Policy("still", (Colour(0.0, 0.0),))
    plain = by_sample(train_batches(shards, replace(VIEW, policy=POLICIES["none"])))
    for place, image in by_sample(train_batches(shards, replace(VIEW, policy=still))).items():
        assert (image - plain[place]).abs().max() <= 1.01 / 255 / 0.25


def test_a_flip_inside_the_resize_is_a_flip(small_set: Path) -> None:
    """Tolerance: 1 of 255, the rounding of the resize read backwards."""
    shards = ShardSet.open(small_set)
    flip, still = Flip(0.5, 0.5), Colour(0.0, 0.0)
    folded = by_sample(train_batches(shards, replace(VIEW, policy=Policy("folded", (Crop(), flip, still)))))
    explicit = by_sample(train_batches(shards, replace(VIEW, policy=Policy("explicit", (Crop(), still, flip)))))
    assert max(float((folded[place] - explicit[place]).abs().max()) for place in folded) <= 1.01 / 255 / 0.25


def test_policy_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[operation]]\nname = "crop"\narea = [0.5, 1.0]\n\n[[operation]]\nname = "flip"\nvertical = 0.0\n')
    policy = find_policy(str(path))
    assert policy.name == "mine"
    assert policy.operations[0] == Crop((0.5, 1.0))
    for text, message in (
        ('[[operation]]\nname = "crob"\n', "did you mean 'crop'"),
        ('[[operation]]\nname = "flip"\nhorizontl = 1\n', "did you mean 'horizontal'"),
        ('[[operation]]\nname = "flip"\nhorizontal = "x"\n', "Expected `float`"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=message):
            find_policy(str(path))
    with pytest.raises(BadInput, match="did you mean 'light'"):
        find_policy("lite")
