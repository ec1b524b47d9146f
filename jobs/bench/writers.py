"""Three writers of the same samples for `bloodcell bench pack`: ours, webdataset's ShardWriter and GNU tar.

All read the image files, which lie in the page cache. Ours and webdataset's write three members for each image (image,
label, JSON); ours also checks each file's sha256 as packing does (CRC-32s come from the examination before), hashes the
tar and writes its index. GNU tar writes the image files alone: what is left of the work without any of that. All three
wait until what they wrote is on the disk, which webdataset and GNU tar leave to the system.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.atomic import sync_directory
from shards.errors import EnvironmentFault, Fault
from shards.tar import ShardWriter
from shards.write import encoded, read_file


@dataclass(frozen=True)
class Source:
    """An image file to be written: its label, what its JSON says, and the size and sha256 that it must have."""

    path: Path
    key: str
    label: int
    row: dict[str, Any]
    size: int
    sha256: str


def sources(folder: Path) -> list[Source]:
    """Return the JPEG files in the class folders below `folder`, which also warms the page cache."""
    found = []
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for number, path in enumerate(sorted(folder.glob("*/*.jpg"))):
        data, key, label = path.read_bytes(), f"train_{number:08d}", classes.index(path.parent.name)
        digest = hashlib.sha256(data).hexdigest()
        row = {
            "key": key,
            "split": "train",
            "label": label,
            "class": path.parent.name,
            "group": "",
            "source": f"{path.parent.name}/{path.name}",
            "sha256": digest,
            "width": 224,
            "height": 224,
            "mode": "RGB",
            "format": "JPEG",
        }
        found.append(Source(path, key, label, row, len(data), digest))
    return found


def write_ours(samples: Sequence[Source], place: Path) -> Path:
    """Write `place`/ours.tar and its index."""
    path = place / "ours.tar"
    with ShardWriter(path) as writer:
        for sample in samples:
            data = read_file(sample.path, sample.size)
            if hashlib.sha256(data).hexdigest() != sample.sha256:
                raise Fault("an image changed during the benchmark", sample.path)
            writer.add(sample.key, [("jpg", data), ("cls", b"%d" % sample.label), ("json", encoded(sample.row))])
    return path


def write_webdataset(samples: Sequence[Source], place: Path) -> Path:
    """Write `place`/webdataset-000000.tar by webdataset's ShardWriter with its own encoders."""
    import webdataset

    pattern = str(place / "webdataset-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=len(samples) + 1, maxsize=1 << 40, verbose=0) as writer:
        for sample in samples:
            data = sample.path.read_bytes()
            writer.write({"__key__": sample.key, "jpg": data, "cls": sample.label, "json": sample.row})
    return _synced(place / "webdataset-000000.tar")


def write_gnu_tar(samples: Sequence[Source], place: Path) -> Path:
    """Write `place`/gnu.tar of the image files by the `tar` command.

    Raises:
        EnvironmentFault: there is no such command, or it failed.
    """
    path = place / "gnu.tar"
    folder = samples[0].path.parent.parent
    names = "\n".join(str(sample.path.relative_to(folder)) for sample in samples)
    command = ["tar", "-cf", str(path.absolute()), "--format=ustar", "-T", "-"]
    try:
        done = subprocess.run(command, cwd=folder, input=names, text=True, capture_output=True, check=False)
    except OSError as error:
        raise EnvironmentFault(f"tar cannot be run: {error.strerror}", "bench pack", "install GNU tar") from error
    if done.returncode:
        raise EnvironmentFault(f"tar failed: {done.stderr.strip().splitlines()[-1:]}", path)
    return _synced(path)


def _synced(path: Path) -> Path:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    sync_directory(path.parent)
    return path
