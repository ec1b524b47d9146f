"""What else a run was judged on: other sets below RUN/external, and its own images in several orientations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bloodcell.report.files import ordered, read_json


def others(run: Path, weights: str) -> list[dict[str, Any]]:
    """Return the further results below a run folder, sorted by their place.

    Args:
        run: the run folder.
        weights: sha256 of its weights, "" without any; what other weights made is named and left out.

    Returns:
        For each: place (its folder below the run), set ("" for the run's own), orientations, splits (as in
        evaluation.json), shift and gain (by split, as in their files), outdated (splits made by other weights).

    Raises:
        BadInput: a file is damaged.
    """
    folders = [*run.glob("tta*"), *run.glob("external/*"), *run.glob("external/*/tta*")]
    found = []
    for folder in sorted(folder for folder in folders if (folder / "evaluation.json").is_file()):
        splits = dict(read_json(folder / "evaluation.json").get("splits") or {})
        outdated = [name for name in ordered(splits) if _outdated(folder, name, weights)]
        several = folder.name.removeprefix("tta") if folder.name.startswith("tta") else ""
        home = folder.parent if several and folder.parent != run else folder
        kept = [name for name in ordered(splits) if name not in outdated]
        found.append(
            {
                "place": folder.relative_to(run).as_posix(),
                "set": "" if home.parent == run else home.name,
                "orientations": int(several) if several.isdigit() else 1,
                "splits": {name: splits[name] for name in kept},
                "shift": _beside(folder, "shift", kept),
                "gain": _beside(folder, "gain", kept),
                "outdated": outdated,
            }
        )
    return found


def _outdated(folder: Path, split: str, weights: str) -> bool:
    """Whether the note beside a table of predictions says that other weights made it."""
    made = read_json(folder / "predictions" / f"{split}.json").get("weights")
    return bool(weights and made and made != weights)


def _beside(folder: Path, kind: str, splits: list[str]) -> dict[str, Any]:
    """Return what files such as shift-test.json say, by split."""
    read = {name: read_json(folder / f"{kind}-{name}.json") for name in splits}
    return {name: value for name, value in read.items() if value}
