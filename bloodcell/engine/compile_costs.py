"""How long compiling a network took on this machine, kept beside the compiled code: `auto` counts with it next time."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import torch

from bloodcell.config import Config
from shards.atomic import write_json

FILE = "costs.json"


def name_of(config: Config, size: int) -> str:
    """Return what a cost belongs to: network, image size, micro-batch, precision, device and torch's version."""
    gpu = config.engine.device == "cuda"
    device = torch.cuda.get_device_name() if gpu and torch.cuda.is_available() else config.engine.device
    what = (f"{config.model.name}/{config.model.head}", f"{size} px", f"batch {config.data.micro_batch}")
    return ", ".join([*what, config.engine.precision, device, f"torch {torch.__version__}"])


def known_cost(folder: Path, config: Config, size: int) -> float | None:
    """Return the seconds that one form of this network took here to compile; None if it never was.

    Args:
        folder: of compiled code.
        config: resolved.
        size: of the images.
    """
    return _read(folder).get(name_of(config, size))


def note_cost(folder: Path, config: Config, size: int, seconds: float) -> None:
    """Keep what one form took to compile. The longest counts: a start that finds the code compiled takes less.

    What cannot be written is not kept.
    """
    costs, name = _read(folder), name_of(config, size)
    if seconds <= costs.get(name, 0.0):
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, {**costs, name: round(seconds, 1)})


def _read(folder: Path) -> dict[str, float]:
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
