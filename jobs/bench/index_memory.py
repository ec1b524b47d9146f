"""What memory a rank needs for the index of a huge set: a simulated one on disk, mapped, read as in training."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bloodcell.data.order import BatchOrder, NaturalPlan
from shards.format import INDEX_DTYPE

MIB = 2**20
STEPS = 300
MICRO_BATCH = 32


@dataclass(frozen=True)
class Memory:
    """Bytes: of the index on disk; that this process took for itself; of mapped pages that it touched (shared)."""

    disk: int
    own: int
    touched: int


def measure(samples: int, ranks: int = 512) -> Memory:
    """Return what one rank of `ranks` holds after some steps through an index of `samples` rows, in its own process.

    The index is a sparse file: it takes no room on the disk, and reads as a real one.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.npy"
        np.lib.format.open_memmap(file, "w+", INDEX_DTYPE, (samples,))
        command = [sys.executable, "-m", __name__, str(file), str(ranks)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return Memory(**json.loads(done.stdout))


def main(file: Path, ranks: int) -> Memory:
    """Open the index as a rank does, look up the samples of its steps, and see what that took."""
    _walk(np.zeros(10**4, dtype=INDEX_DTYPE), ranks)  # libraries load what they need
    before = _status()
    index = np.load(file, mmap_mode="r", allow_pickle=False)
    _walk(index, ranks)
    after = _status()
    return Memory(file.stat().st_size, after["RssAnon"] - before["RssAnon"], after["RssFile"] - before["RssFile"])


def _walk(index: np.ndarray, ranks: int) -> None:
    ranks = min(ranks, len(index) // MICRO_BATCH)
    order = BatchOrder(NaturalPlan(np.array([[0, len(index)]], dtype=np.int64)), 0, MICRO_BATCH, ranks)
    for number in range(min(STEPS, order.steps_per_epoch)):
        rows = index[order.step(number, ranks, ranks - 1).ids]
        assert rows["size"].sum() == 0


def _status() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}


if __name__ == "__main__":
    print(json.dumps(asdict(main(Path(sys.argv[1]), int(sys.argv[2])))))
