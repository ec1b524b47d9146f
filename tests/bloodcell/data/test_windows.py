"""The readers `stream` and `webdataset` on real tars: the bytes of `plan` in few long reads, faults named as there."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bloodcell.data.layout import Layout
from bloodcell.data.loader import Batch, Loader, evaluation_requests, training_requests
from bloodcell.data.order import BatchOrder, EvaluationOrder
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES
from bloodcell.data.readahead import ReadAhead
from bloodcell.data.reading import Reading
from bloodcell.data.request import Request
from bloodcell.data.resident import HostCache
from bloodcell.data.runs import GAP, make_runs
from bloodcell.data.shardset import Reader, ShardSet
from bloodcell.data.streaming import SEQUENTIAL, StreamPlan
from bloodcell.data.windows import Window, sequential_reader, together
from shards.errors import Unreadable

CPU = torch.device("cpu")
VIEW = View(32, (0.5,) * 3, (0.25,) * 3, POLICIES["strong"], seed=3, backend="cpu")
both = pytest.mark.parametrize("name", SEQUENTIAL)


def order_of(shards: ShardSet, window: int = 24, micro_batches: int = 2) -> BatchOrder:
    plan = StreamPlan(shards.pieces("train"), 8, micro_batches, window)
    return BatchOrder(plan, 3, 8, micro_batches, plan.window_steps)


def training(shards: ShardSet, first: int = 0, epochs: int = 2) -> Iterator[Request]:
    order = order_of(shards)
    return training_requests(order, 1, 0, first, epochs * order.steps_per_epoch)


def batches(shards: ShardSet, requests: Iterator[Request], view: View, threads: int = 1, **how: Any) -> list[Batch]:
    with Loader(shards, requests, view, 8, threads, CPU, Reading(**how)) as loader:
        return list(loader)


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(
        (a.request.ids == b.request.ids).all()
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.valid, b.valid)
        and torch.equal(a.images, b.images)
        for a, b in pairs
    )


@pytest.fixture
def own_set(small_set: Path, tmp_path: Path) -> Path:
    """A copy of the set that may be damaged."""
    return Path(shutil.copytree(small_set, tmp_path / "set"))


def test_runs_are_cut_at_shards_at_gaps_and_at_length(monkeypatch: pytest.MonkeyPatch) -> None:
    index = np.zeros(9, dtype=[("offset", "<u8"), ("size", "<u4"), ("shard", "<u4")])
    index["size"] = 1000
    index["offset"] = [512, 2048, 4096, 4096 + GAP + 2000, 80_000, 82_000, 512, 2048, 4000]
    index["shard"] = [0] * 6 + [2] * 3
    found = [(run.shard, run.ids.tolist()) for run in make_runs(index, np.array([5, 0, 1, 2, 3, 4, 8, 6, 8]))]
    assert found == [(0, [0, 1, 2]), (0, [3, 4, 5]), (2, [6, 8])]  # 7 is read along
    monkeypatch.setattr("bloodcell.data.runs.LONG", 2600)
    assert [run.ids.tolist() for run in make_runs(index, np.arange(3))] == [[0, 1], [2]]
    assert make_runs(index, np.array([], dtype=np.int64)) == []


def test_a_window_holds_what_is_still_wanted_and_no_more() -> None:
    ids = np.array([4, 7, 4])
    request = Request(ids, np.zeros_like(ids), 0, np.ones(3, dtype=bool))
    window = Window([request], [])
    for sample in (4, 7):
        window.put(sample, np.array([sample], dtype=np.uint8))
    assert [window.take(sample) is not None for sample in (4, 7, 7, 4, 4)] == [True, True, False, True, False]
    numbers = [
        [one.window for one in group] for group in together(replace(request, window=w) for w in (0, 0, 1, -1, -1))
    ]
    assert numbers == [[0, 0], [1], [-1], [-1]]


@both
@pytest.mark.parametrize("first", [0, 4])
def test_bytes_are_those_of_random_access_in_few_reads(
    small_set: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: int
) -> None:
    """Also from the middle of a window on. 168 images in 4 shards: about a read for each window of each lane."""
    shards = ShardSet.open(small_set)
    plain, reads = Reader(shards), []
    expected = {sample: plain.read(sample) for sample in range(len(shards.index))}
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: reads.append(arguments) or preadv(*arguments))
    reader = sequential_reader(name, shards)
    fetched = []
    fetch = reader.fetch
    monkeypatch.setattr(reader, "fetch", lambda run: fetched.append(run) or fetch(run))
    dealt = 0
    for request in reader.through(training(shards, first)):
        for sample in request.ids.tolist():
            assert (reader.read(sample) == expected[sample]).all()
            dealt += 1
    order = order_of(shards)
    windows = len({order.window(step) for step in range(first, 2 * order.steps_per_epoch)})
    assert len(fetched) <= 2 * (windows + 5) < dealt / 8  # two lanes; shards end inside windows, rings are cut open
    assert len(reads) == (len(fetched) if name == "stream" else 0)  # nothing was asked for again by itself
    reader.close()


@both
def test_about_a_window_is_held(small_set: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Two lanes of 16 samples, and a run of up to 16 that comes in early; 160 are dealt."""
    shards = ShardSet.open(small_set)
    order = order_of(shards, window=16)
    held, most = 0, 0

    def gone() -> None:
        nonlocal held
        held -= 1

    def put(window: Window, sample: int, data: np.ndarray) -> None:
        nonlocal held, most
        weakref.finalize(data, gone)
        held += 1
        most = max(most, held)
        plain(window, sample, data)

    plain = Window.put
    monkeypatch.setattr(Window, "put", put)
    reader = sequential_reader(name, shards)
    for request in reader.through(training_requests(order, 1, 0, 0, order.steps_per_epoch)):
        for sample in request.ids.tolist():
            reader.read(sample)
    assert 32 <= most <= 48
    assert held == 0


@pytest.mark.parametrize(("name", "backend"), [("stream", "cpu"), ("webdataset", "cpu"), ("stream", "dali")])
def test_a_loader_gives_the_same_batches_with_every_reader(small_set: Path, name: str, backend: str) -> None:
    """Ids, labels, draws and pixels; with other threads; and from the middle of a window on, as after a restart."""
    shards, view = ShardSet.open(small_set), replace(VIEW, backend=backend)
    plain = batches(shards, training(shards), view)
    assert same(batches(shards, training(shards), view, threads=3, reader=name), plain)
    assert same(batches(shards, training(shards, 4), view, reader=name), plain[8:])


@both
@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_sees_each_sample_once(small_set: Path, name: str, world: int) -> None:
    shards, view = ShardSet.open(small_set), replace(VIEW, policy=POLICIES["none"])
    order = EvaluationOrder(shards.ranges("val"), 8)
    seen: list[int] = []
    for rank in range(world):
        found = batches(shards, evaluation_requests(order, world, rank), view, reader=name)
        assert same(found, batches(shards, evaluation_requests(order, world, rank), view))
        seen += [sample for batch in found for sample in batch.request.ids[batch.request.valid].tolist()]
    assert sorted(seen) == [sample for first, last in shards.ranges("val") for sample in range(first, last)]


def harm(folder: Path, shards: ShardSet, sample: int, how: str) -> None:
    path, offset = folder / shards.shard_of(sample), int(shards.index["offset"][sample])
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[offset + 40] ^= 1
    elif how == "header":  # of the tar: the image itself is whole
        data[offset - 512 : offset - 412] = bytes(100)
    path.write_bytes(data[: offset + 1] if how == "truncated" else data)


@both
@pytest.mark.parametrize("how", ["flipped", "truncated", "header"])
def test_faults_and_what_is_left_out_are_those_of_plan(own_set: Path, name: str, how: str) -> None:
    shards = ShardSet.open(own_set)
    victim = int(order_of(shards).micro(2, 1).ids[3])
    harm(own_set, shards, victim, how)

    def taken(skip: bool, reader: str) -> list[Any]:
        found: list[Any] = []
        ahead = ReadAhead(shards, training(shards, epochs=1), Reading(skip=skip, reader=reader))
        try:
            while True:
                request, images = ahead.take()
                found.append((request.ids.tolist(), request.left_out, [image.tobytes() for image in images]))
        except (StopIteration, Unreadable) as end:
            found.append(str(end))
        ahead.close()
        return found

    for skip in (False, True):
        assert taken(skip, name) == taken(skip, "plan")
    assert ("cannot be read" in taken(False, name)[-1]) is (how != "header")


@both
def test_no_answer_is_a_named_fault(own_set: Path, name: str) -> None:
    """Opening a pipe that nobody writes to blocks as a dead file server does."""
    shards = ShardSet.open(own_set)
    for path in own_set.glob("train-*.tar"):
        path.unlink()
        os.mkfifo(path)
    reader = ReadAhead(shards, training(shards), Reading(patience=0.5, reader=name))
    fault = reader.fault_before(1)
    assert isinstance(fault, Unreadable)
    assert "no answer for 0.5 s" in str(fault)
    reader.close()
    for path in own_set.glob("train-*.tar"):  # let the thread go
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def test_images_in_memory_are_not_read_again(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ShardSet.open(small_set)
    cache = HostCache(Layout(shards, np.arange(len(shards.index))), HostCache.create())
    plain = batches(shards, training(shards), VIEW)
    assert same(batches(shards, training(shards), VIEW, reader="stream", cache=cache), plain)
    order = order_of(shards)
    left = np.setdiff1d(np.arange(*shards.ranges("train")[0]), [b.request.ids for b in plain])
    for sample in left.tolist():
        cache.put(sample, np.zeros(1))  # of another shape: stays away
    read = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: read.append(1) or preadv(*arguments))
    again = batches(
        shards, training_requests(order, 1, 0, 0, order.steps_per_epoch), VIEW, reader="stream", cache=cache
    )
    assert same(again, plain[: len(again)])
    assert not read
