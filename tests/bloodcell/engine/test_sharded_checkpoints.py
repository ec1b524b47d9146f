"""Checkpoints of state that is spread over ranks, on two real ones: all files or none, and one choice for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import on_ranks

ROOT = Path(__file__).resolve().parents[3]

WORK = """
import sys
from pathlib import Path
import torch
from bloodcell.engine.checkpoint import Checkpoints
from bloodcell.ranks import discover, process_group
from shards.errors import Stop

ranks, folder, what = discover(), Path(sys.argv[1]), sys.argv[2]


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # at one go: the other rank writes there too
    sys.stdout.flush()


with process_group(ranks, torch.device("cpu"), 60):
    kept = Checkpoints(folder, 2, ranks.rank, ranks.world)
    common = {"model": {"w": torch.ones(3)}, "optimizer": {"step": 1}}

    def save(step, size=4):
        mine = {"pieces": {str(ranks.rank): torch.full((size,), float(step))}}
        kept.save(step, common, mine, {"step": step})

    try:
        if what == "save":
            save(1)
            save(2)
            kept.wait()
        elif what == "full":
            save(3, size=4 if ranks.first else 3_000_000)
            kept.wait()
        found = kept.load()
        state, progress = found
        names = sorted(state["pieces"])
        say("found", progress["step"], names, [float(state["pieces"][name][0]) for name in names])
    except Stop as stop:
        say("stopped", stop.code, stop)
"""


def two_ranks(folder: Path, what: str) -> list[str]:
    """Return what both ranks printed."""
    script = folder.parent / "work.py"
    script.write_text(WORK)
    done = on_ranks(2, script, folder, what)
    return [line for line in done.out.splitlines() if line.startswith(("found", "stopped"))]


def test_a_piece_that_is_damaged_makes_all_ranks_take_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    whole = "found 2 ['0', '1'] [2.0, 2.0]"
    assert two_ranks(folder, "save") == [whole, whole]
    piece = folder / "00000002" / "rank-00001.safetensors"
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.write_bytes(data)
    before = "found 1 ['0', '1'] [1.0, 1.0]"
    assert two_ranks(folder, "load") == [before, before]
    assert sorted(path.name for path in folder.iterdir()) == ["00000001", "00000002.damaged", "last"]


def test_where_one_rank_cannot_write_there_is_no_checkpoint_and_all_say_so(tmpfs: Path) -> None:
    folder = tmpfs / "c"
    folder.mkdir()
    assert len(two_ranks(folder, "save")) == 2
    said = two_ranks(folder, "full")
    assert len(said) == 2
    assert all(line.startswith("stopped 3") for line in said), said
    assert all("could not write" in line for line in said), said
    assert sorted(path.name for path in folder.iterdir()) == ["00000001", "00000002", "last"]


@pytest.mark.slow
def test_one_rank_takes_up_what_two_have_saved(tmp_path: Path) -> None:
    from bloodcell.engine.checkpoint import Checkpoints

    folder = tmp_path / "c"
    folder.mkdir()
    two_ranks(folder, "save")
    found = Checkpoints(folder, 2).load()
    assert found is not None
    assert sorted(found[0]["pieces"]) == ["0", "1"]
