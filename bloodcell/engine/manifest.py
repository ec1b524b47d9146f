"""What a checkpoint's folder holds: names of its files, and manifest.json with the size and sha256 of each of them.

A manifest that is damaged itself cannot pass: it no longer parses, or names other files or other sums than there are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from bloodcell.engine.tree import merge, unpack_tree

VERSION = 2
MODEL, STATE, TREE, MANIFEST = "model.safetensors", "state.safetensors", "state.json", "manifest.json"
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged checkpoint may raise, beside SafetensorError."""


def rank_file(rank: int) -> str:
    """Return the name of the file with what only this rank held."""
    return f"rank-{rank:05d}.safetensors"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return manifest.json: {"version", "step", "best_step", "files": {name: {"bytes", "sha256"}}}.

    Raises:
        ValueError, KeyError, TypeError, OSError: it is damaged, gone, or of another format version.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{MANIFEST} is no JSON: {error}") from error
    if manifest["version"] != VERSION:
        raise ValueError(f"format version {manifest['version']}, this program reads {VERSION}")
    missing = {MODEL, STATE, TREE} - manifest["files"].keys()
    if missing:
        raise ValueError(f"{MANIFEST} does not name {', '.join(sorted(missing))}")
    return dict(manifest)


def verify(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Compare files with the manifest: of `parts` equal shares of them the one numbered `part`.

    Raises:
        ValueError, KeyError, TypeError, OSError: a file is not what was written, or the manifest is damaged.
    """
    files = read_manifest(folder)["files"]
    for name in sorted(files)[part::parts]:
        if Path(name).name != name:
            raise ValueError(f"{MANIFEST} names {name!r}")
        size = (folder / name).stat().st_size
        if size != files[name]["bytes"]:
            raise ValueError(f"{name} has {size:,} bytes, not {files[name]['bytes']:,}")
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != files[name]["sha256"]:
                raise ValueError(f"{name} is not what was written")


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (state, progress) of a whole checkpoint; the state is what all ranks held, merged."""
    content = json.loads((folder / TREE).read_text(encoding="utf-8"))
    state: dict[str, Any] = unpack_tree(content["state"], load_file(folder / STATE))
    for name in sorted(set(read_manifest(folder)["files"]) - {MODEL, STATE, TREE}):
        with safe_open(folder / name, framework="pt") as file:
            tree = json.loads(file.metadata()["tree"])
        state = merge(state, unpack_tree(tree, load_file(folder / name)))
    return {**state, "model": load_file(folder / MODEL)}, content["progress"]
