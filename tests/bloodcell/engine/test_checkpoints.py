"""Checkpoints on disk: written beside the work, whole or not at all, proven by sums, never executed."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bloodcell.engine.checkpoint import Checkpoints
from bloodcell.engine.hostcopy import HostCopy
from bloodcell.engine.tree import merge, pack_tree, unpack_tree
from shards.errors import BadInput, EnvironmentFault

FILES = ["model.safetensors", "state.safetensors", "state.json", "manifest.json", "rank-00000.safetensors"]
MINE = {"parts": {"0": {"exp_avg": torch.arange(5.0), "step": 3}}}
"""What only one rank holds."""


def state(value: float = 1.0) -> dict[str, Any]:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, value)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"strategy": "ddp", "model": model.state_dict(), "optimizer": optimizer.state_dict(), "pair": (1, None)}


def kept_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def filled(folder: Path, steps: tuple[int, ...] = (1, 2), best: tuple[int, ...] = (), keep: int = 3) -> Checkpoints:
    """Checkpoints of some steps, of which some were the best when they were saved."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = Checkpoints(folder, keep)
    last_best = 0
    for step in steps:
        last_best = step if step in best else last_best
        progress = {"step": step, "best": 0.5 if last_best else None, "best_step": last_best}
        kept.save(step, state(step), MINE, progress)
    kept.wait()
    return kept


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def swap(path: Path) -> None:
    """Zeros of the right length, as some file systems leave them after a power failure."""
    path.write_bytes(bytes(path.stat().st_size))


def test_trees_come_back_as_they_were() -> None:
    before = state()
    tensors: dict[str, torch.Tensor] = {}
    tree = json.loads(json.dumps(pack_tree(before, tensors)))
    back = unpack_tree(tree, tensors)
    assert back["pair"] == (1, None)
    assert back["optimizer"]["param_groups"] == before["optimizer"]["param_groups"]
    assert torch.equal(back["optimizer"]["state"][0]["exp_avg"], before["optimizer"]["state"][0]["exp_avg"])


def test_what_ranks_hold_is_merged_and_never_overwritten() -> None:
    assert merge({"a": {"x": 1}, "b": 2}, {"a": {"y": 3}}) == {"a": {"x": 1, "y": 3}, "b": 2}
    with pytest.raises(ValueError, match="/a/x"):
        merge({"a": {"x": 1}}, {"a": {"x": 1}})


def test_a_host_copy_is_a_safetensors_file_of_that_moment(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]
    tensors = {str(kind): torch.arange(7).to(kind) for kind in kinds}
    tensors["bool"] = torch.tensor([True, False, True])
    tensors["scalar"], tensors["empty"] = torch.tensor(2.5), torch.empty(0, 3)
    tensors["last"] = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    tensors["turned"] = torch.arange(6.0).reshape(2, 3).T
    copy = HostCopy()
    copy.take({name: torch.full_like(value, 9) for name, value in tensors.items()})
    place = copy._memory.data_ptr()
    copy.take(tensors, {"note": "x"})
    assert copy._memory.data_ptr() == place
    wanted = {name: value.clone() for name, value in tensors.items()}
    tensors["last"].zero_()  # training goes on before the copy is written
    summed = copy.write(tmp_path / "f.safetensors")
    assert summed["bytes"] == (tmp_path / "f.safetensors").stat().st_size
    back = load_file(tmp_path / "f.safetensors")
    assert back.keys() == wanted.keys()
    for name, value in wanted.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


def test_the_newest_stay_and_the_best_of_each_of_them(tmp_path: Path) -> None:
    kept = filled(tmp_path, (1, 2, 3, 4, 5, 6), best=(2, 6), keep=2)
    assert kept_steps(tmp_path) == [2, 5, 6]  # 5 goes back to 2
    assert (os.readlink(tmp_path / "last"), os.readlink(tmp_path / "best")) == ("00000006", "00000006")
    kept.save(7, state(), {}, {"step": 7, "best_step": 6})
    kept.wait()
    assert kept_steps(tmp_path) == [6, 7]
    found = kept.load("best")
    assert found is not None
    assert found[1]["step"] == 6


def test_training_goes_on_while_it_is_written_and_the_next_waits(tmp_path: Path) -> None:
    kept, go = Checkpoints(tmp_path, 3), threading.Event()
    first = state(1)
    kept.save(1, first, {}, {"step": 1}, before=lambda: go.wait(30) and None)
    first["model"]["weight"].fill_(77)
    assert not (tmp_path / "00000001").exists()
    threading.Timer(0.2, go.set).start()
    kept.save(2, state(2), {}, {"step": 2})
    assert (tmp_path / "00000001").exists()
    kept.wait()
    shutil.rmtree(tmp_path / "00000002")
    found = kept.load()
    assert found is not None
    assert float(found[0]["model"]["weight"].detach()[0, 0]) < 2


@pytest.mark.parametrize("harm", [flip, truncate, swap, os.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_one_is_passed_over_loudly(
    tmp_path: Path, file: str, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = filled(tmp_path / "c")
    harm(tmp_path / "c" / "00000002" / file)
    found = kept.load()
    assert found is not None
    assert found[1]["step"] == 1
    assert found[0]["parts"]["0"]["step"] == 3
    assert torch.equal(found[0]["parts"]["0"]["exp_avg"], MINE["parts"]["0"]["exp_avg"])  # type: ignore[arg-type]
    assert "00000002 is damaged" in " ".join(capsys.readouterr().err.split())
    assert [entry["checkpoint"] for entry in kept.damaged] == ["00000002"]
    assert (tmp_path / "c" / "00000002.damaged").exists()
    assert os.readlink(tmp_path / "c" / "last") == "00000001"
    kept.save(2, state(2), MINE, {"step": 2})
    kept.wait()
    assert kept_steps(tmp_path / "c") == [1, 2]
    assert not (tmp_path / "c" / "00000002.damaged").exists()


def test_damage_everywhere_is_one_clear_line_and_nothing_is_removed(tmp_path: Path) -> None:
    kept = filled(tmp_path)
    flip(tmp_path / "00000002" / "model.safetensors")
    truncate(tmp_path / "00000001" / "manifest.json")
    with pytest.raises(BadInput, match="no checkpoint can be read") as raised:
        kept.load()
    assert len(str(raised.value).splitlines()) == 1
    assert kept_steps(tmp_path) == [1, 2]


def test_a_lost_best_one_is_found_again_from_before_it(tmp_path: Path) -> None:
    """Going on from step 4 would end with a result that is gone; from step 1 the same best comes about again."""
    kept = filled(tmp_path, (1, 2, 3, 4), best=(3,), keep=4)
    flip(tmp_path / "00000003" / "model.safetensors")
    with pytest.raises(EnvironmentFault, match="best checkpoint is damaged"):
        kept.load("best")
    found = kept.load()
    assert found is not None
    assert found[1]["step"] == 2
    assert kept_steps(tmp_path) == [1, 2]
    assert not (tmp_path / "best").exists()


def test_a_lost_best_one_that_cannot_be_found_again_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = filled(tmp_path, (1, 2), best=(1,))
    shutil.rmtree(tmp_path / "00000001")
    found = kept.load()
    assert found is not None
    assert found[1] == {"step": 2, "best": None, "best_step": 0}
    assert "chosen anew" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("file", FILES)
def test_a_pickle_in_any_place_is_not_run(tmp_path: Path, file: str) -> None:
    """Also where the manifest vouches for it: whoever can write there can write sums too."""
    import hashlib

    class Canary:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sang"),)

    kept = filled(tmp_path / "c", (1,))
    folder = tmp_path / "c" / "00000001"
    (folder / file).write_bytes(pickle.dumps(Canary()))
    manifest = folder / "manifest.json"
    if file != manifest.name:
        content = json.loads(manifest.read_text())
        data = (folder / file).read_bytes()
        content["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest.write_text(json.dumps(content))
    torch.save({"x": 1}, folder / "extra.pt")
    with pytest.raises((BadInput, EnvironmentFault), match=r"can(not)? be read"):
        kept.load()
    assert not (tmp_path / "sang").exists()


def test_a_full_disk_is_told_with_the_next_one_and_the_old_ones_stay(tmpfs: Path) -> None:
    kept = filled(tmpfs, (1,))
    large = {**state(), "extra": torch.zeros(3_000_000)}
    kept.save(2, large, {}, {"step": 2})  # nobody knows yet
    with pytest.raises(EnvironmentFault, match="could not write"):
        kept.save(3, state(), {}, {"step": 3})
    kept.save(4, state(), {}, {"step": 4})  # and there is space again
    kept.wait()
    kept.save(5, {**state(), "model": {"x": torch.zeros(1)}}, {"parts": torch.zeros(3_000_000)}, {"step": 5})
    with pytest.raises(EnvironmentFault, match="could not write"):
        kept.wait()
    assert sorted(path.name for path in tmpfs.iterdir()) == ["00000001", "00000004", "last"]
    found = kept.load()
    assert found is not None
    assert found[1]["step"] == 4


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    kept = filled(tmp_path, (1, 2))
    os.rename(tmp_path / "00000002", tmp_path / "00000002.old")  # killed between two renames
    (tmp_path / "00000003.partial").mkdir()
    (tmp_path / ".00000003.rank-00001.safetensors").write_bytes(b"x")
    found = kept.load()
    assert found is not None
    assert found[1]["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000002", "last"]


def test_nan_progress_survives(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep=1)
    kept.save(1, state(), {}, {"best": math.inf})
    kept.wait()
    found = kept.load()
    assert found is not None
    assert found[1]["best"] == math.inf
