"""Where the samples of a set come from as a whole (hospital, device, published set), as its files tell."""

from __future__ import annotations

from pathlib import Path

from shards.bysource import source_of
from shards.format import DatasetInfo, read_samples


def origins(folder: Path | None, info: DatasetInfo | None) -> dict[int, str] | None:
    """Return the source of each sample by its id; None where the set tells none, or is not at hand.

    A set that leaves one source out in each fold names the source of each part. In a set of several folders every
    path begins with the name of its folder. A sample of neither (a fixed test set) has the source "".

    Args:
        folder: of the set.
        info: its dataset.json.

    Raises:
        BadInput: the sample table cannot be read.
    """
    if folder is None or info is None:
        return None
    named = info.split.get("sources")
    if isinstance(named, dict) and named:
        by_part = {f"source{fold.removeprefix('fold')}": str(name) for fold, name in named.items()}
        parts = read_samples(folder, ["split"]).column("split").to_pylist()
        return {i: by_part.get(source_of(part), "") for i, part in enumerate(parts)}
    if info.options.get("also"):
        paths = read_samples(folder, ["source"]).column("source").to_pylist()
        return {i: path.split("/")[0] for i, path in enumerate(paths)}
    return None
