"""Images that stay in memory: the pixels of the path that decodes, nothing read twice, shared by processes, bounded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bloodcell.data.layout import Layout
from bloodcell.data.loader import Batch, Loader, training_requests
from bloodcell.data.memory import available_memory
from bloodcell.data.order import BatchOrder, NaturalPlan
from bloodcell.data.pipeline import View
from bloodcell.data.policies import POLICIES
from bloodcell.data.reading import Reading
from bloodcell.data.resident import HostCache
from bloodcell.data.shardset import Reader, ShardSet
from shards.errors import Unreadable
from shards.images import decode
from tests.batches import assert_same

CPU = torch.device("cpu")
VIEW = View(32, (0.5,) * 3, (0.25,) * 3, POLICIES["light"], seed=3, backend="cpu")


def new_cache(shards: ShardSet) -> HostCache:
    return HostCache(Layout(shards, np.arange(*shards.ranges("train")[0])), HostCache.create())


def shown(shards: ShardSet, view: View, cache: HostCache | None, epoch: int) -> list[Batch]:
    """Return the batches of one epoch; 8 divides the training images, so that every one is shown."""
    order = BatchOrder(NaturalPlan(shards.ranges("train")), view.seed, 8, 1)
    first = epoch * order.steps_per_epoch
    requests = training_requests(order, 1, 0, first, first + order.steps_per_epoch)
    with Loader(shards, requests, view, 8, 2, CPU, Reading(cache=cache)) as loader:
        return list(loader)


@pytest.mark.parametrize("backend", ["cpu", "dali"])
def test_the_pixels_are_those_of_decoding_and_nothing_is_read_again(
    small_set: Path, tmp_path: Path, backend: str
) -> None:
    """Bit by bit; after the first epoch the shards may be gone."""
    folder = Path(shutil.copytree(small_set, tmp_path / "set"))
    shards, view = ShardSet.open(folder), replace(VIEW, backend=backend)
    cache = new_cache(shards)
    reference = [shown(shards, view, None, epoch) for epoch in (0, 1)]
    assert_same(shown(shards, view, cache, 0), reference[0])
    seen = {int(sample) for batch in reference[0] for sample in batch.request.ids}
    assert cache.filled == pytest.approx(len(seen) / len(cache.layout.ids))
    for sample in set(cache.layout.ids.tolist()) - seen:  # the tail that the first epoch left out
        cache.put(sample, decode(Reader(shards).read(sample).tobytes())[0])
    for tar in folder.glob("*.tar"):
        tar.unlink()
    assert_same(shown(shards, view, cache, 1), reference[1])


def test_another_process_sees_what_this_one_decoded(small_set: Path) -> None:
    shards = ShardSet.open(small_set)
    cache = new_cache(shards)
    sample = int(cache.layout.ids[3])
    pixels = decode(Reader(shards).read(sample).tobytes())[0]
    cache.put(sample, pixels)
    code = (
        "import os, sys; from pathlib import Path; import numpy as np\n"
        "from bloodcell.data.layout import Layout; from bloodcell.data.resident import HostCache\n"
        "from bloodcell.data.shardset import ShardSet\n"
        f"shards = ShardSet.open(Path({str(small_set)!r}))\n"
        "layout = Layout(shards, np.arange(*shards.ranges('train')[0]))\n"
        f"cache = HostCache(layout, os.open('/proc/{os.getpid()}/fd/{cache.descriptor}', os.O_RDWR))\n"
        f"assert cache.get({sample + 1}) is None\n"
        f"sys.stdout.buffer.write(cache.get({sample}).tobytes())\n"
        f"cache.put({sample + 1}, np.full((48, 48, 3), 7, np.uint8))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == pixels.tobytes()
    found = cache.get(sample + 1)
    assert found is not None
    assert (found == 7).all()


def test_other_samples_and_other_sizes_are_not_kept(small_set: Path) -> None:
    shards = ShardSet.open(small_set)
    cache = new_cache(shards)
    inside, outside = int(cache.layout.ids[0]), int(shards.ranges("test")[0][0])
    for sample, side in ((inside, 47), (outside, 48)):
        cache.put(sample, np.zeros((side, side, 3), np.uint8))
        assert cache.get(sample) is None
    assert HostCache.size(cache.layout) == len(cache.layout.ids) * (48 * 48 * 3 + 1) + 1


def test_a_sample_that_cannot_be_read_is_named_as_without_a_cache(small_set: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_set, tmp_path / "set"))
    shards = ShardSet.open(folder)
    victim = int(shards.ranges("train")[0][0]) + 7
    path = folder / shards.shard_of(victim)
    data = bytearray(path.read_bytes())
    data[int(shards.index["offset"][victim]) + 200] ^= 1
    path.write_bytes(data)
    cache = new_cache(shards)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), VIEW.seed, 8, 1)
    epoch = 0 if any(victim in order.step(step, 1, 0).ids for step in range(order.steps_per_epoch)) else 1
    with pytest.raises(Unreadable, match=f"{shards.keys[victim]} in .*{path.name}"):
        shown(shards, VIEW, cache, epoch)
    assert cache.get(victim) is None


def test_control_groups_limit_the_memory(tmp_path: Path) -> None:
    """Version 2: each group above counts; version 1; pages of files count as free; "max" is no limit."""

    def group(folder: Path, names: tuple[str, str], limit: object, used: int, cached: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n", encoding="ascii")
        (folder / names[1]).write_text(f"{used}\n", encoding="ascii")
        (folder / "memory.stat").write_text(cached, encoding="ascii")

    second, first = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    own = tmp_path / "own"
    own.write_text("0::/job/step\n", encoding="ascii")
    group(tmp_path / "job", second, 5000, 3000, "anon 2000\ninactive_file 700\n")
    group(tmp_path / "job" / "step", second, "max", 100, "inactive_file 0\n")
    assert available_memory(tmp_path, own) == 2700
    group(tmp_path / "job" / "step", second, 1000, 100, "inactive_file 0\n")
    assert available_memory(tmp_path, own) == 900
    own.write_text("4:cpu,memory:/old\n", encoding="ascii")
    group(tmp_path / "memory" / "old", first, 800, 600, "total_inactive_file 50\n")
    assert available_memory(tmp_path, own) == 250
    own.write_text("", encoding="ascii")
    assert available_memory(tmp_path, own) > 2**20
