"""engine.bucket_mb: decided once by the size of the network and the device; an older run keeps torch's own layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bloodcell.config import TORCHS_BUCKET, Config, encode, override
from bloodcell.engine.resolve import Machine, as_stored, resolve
from bloodcell.ranks import Ranks
from bloodcell.runfolder import RunFolder

ONE = Ranks(0, 1, 0, 1, "none")


@pytest.mark.parametrize(
    ("model", "device", "strategy", "bucket"),
    [
        ("mobilenet_v3_small", "cuda", "ddp", 1),  # 5.8 MiB of gradients
        ("resnet50", "cuda", "ddp", 11),  # 90 MiB
        ("vgg16", "cuda", "ddp", TORCHS_BUCKET),  # 512 MiB
        ("resnet50", "cpu", "ddp", TORCHS_BUCKET),
        ("resnet50", "cuda", "zero1", TORCHS_BUCKET),
    ],
)
def test_the_choice(tmp_path: Path, model: str, device: str, strategy: str, bucket: int) -> None:
    wanted = override(Config(), {"model.name": model, "engine.strategy": strategy, "data.set": str(tmp_path)})
    assert resolve(wanted, ONE, Machine(device, 4)).engine.bucket_mb == bucket
    stated = override(wanted, {"engine.bucket_mb": 7})
    assert resolve(stated, ONE, Machine(device, 4)).engine.bucket_mb == 7


def test_a_run_goes_on_with_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    stored = encode(override(Config(), {"engine.bucket_mb": 3, "data.set": str(tmp_path)}))
    folder.create({"config": stored})
    assert folder.config().engine.bucket_mb == 3
    again = as_stored(override(folder.config(), {"engine.bucket_mb": 0}), folder.config())
    assert resolve(again, ONE, Machine("cuda", 4)).engine.bucket_mb == 3
    del stored["engine"]["bucket_mb"]
    (folder.path / "config.json").write_text(json.dumps({"config": stored}), encoding="utf-8")
    assert folder.config().engine.bucket_mb == TORCHS_BUCKET
