"""What a run cost: wall time over all its starts, GPU-hours, core-hours, and an estimate of the energy."""

from __future__ import annotations

import re
from typing import Any

CORE_WATTS = 10.0
"""Watts taken for each CPU core in use: about what a server's processor draws under load, divided by its cores."""

BOARD_WATTS = (
    (r"B200", 1000.0),
    (r"H200 NVL", 600.0),
    (r"H200", 700.0),
    (r"H100 NVL", 400.0),
    (r"H100 PCIe", 350.0),
    (r"H100", 700.0),
    (r"A100.*SXM", 400.0),
    (r"A100.*80GB", 300.0),
    (r"A100", 250.0),
    (r"V100.*SXM", 300.0),
    (r"V100", 250.0),
    (r"P100", 250.0),
    (r"L40S", 350.0),
    (r"L40\b", 300.0),
    (r"L4\b", 72.0),
    (r"T4\b", 70.0),
    (r"A40\b", 300.0),
    (r"A30\b", 165.0),
    (r"A10\b", 150.0),
    (r"RTX A6000", 300.0),
    (r"RTX 6000 Ada", 300.0),
    (r"RTX 4090", 450.0),
    (r"RTX 3090\b", 350.0),
)
"""Power limits of whole boards as their data sheets state them; the first pattern that is found in the name counts."""


def cost(status: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a run cost; None where its wall time is not known.

    Devices, ranks and threads are those of the last start. A rank on a CPU uses as many cores as it computes with
    threads (decoding shares them); a rank on a GPU those that launch and decode.

    Args:
        status: status.json: wall_seconds (over all starts), world.
        environment: environment.json: device, world, threads.

    Returns:
        {wall_seconds, ranks, device, gpu_hours, core_hours, energy, speed}; what is not known is None. energy: {kwh,
        gpu_watts, core_watts, assumption}, an estimate and never a measurement. speed: {images_per_s, data_wait, and
        what engine.efficiency found}, of the last start that trained.
    """
    wall = status.get("wall_seconds")
    if not isinstance(wall, int | float) or isinstance(wall, bool) or wall <= 0:
        return None
    hours = wall / 3600
    ranks = int(status.get("world") or environment.get("world") or 1)
    device = environment.get("device") or None
    on_gpu = device not in (None, "cpu")
    threads = environment.get("threads") or {}
    cores = None
    if device and isinstance(threads.get("torch"), int) and isinstance(threads.get("loader"), int):
        cores = threads["torch"] + threads["loader"] if on_gpu else max(threads["torch"], threads["loader"])
    found: dict[str, Any] = {
        "wall_seconds": round(float(wall), 3),
        "ranks": ranks,
        "device": device,
        "gpu_hours": round(hours * ranks, 6) if on_gpu else (0.0 if device else None),
        "core_hours": round(hours * ranks * cores, 6) if cores else None,
        "energy": None,
        "speed": _speed(status),
    }
    found["energy"] = _energy(found, str(device), on_gpu)
    return found


def _speed(status: dict[str, Any]) -> dict[str, Any] | None:
    if not status.get("images_per_s"):
        return None
    found = {name: status.get(name) for name in ("images_per_s", "data_wait")}
    return {**dict.fromkeys(("tflops", "mfu", "gb_per_s", "bandwidth")), **found, **(status.get("efficiency") or {})}


def board_watts(device: str) -> float | None:
    """Return the power limit of a GPU by its name; None if it is unknown, or only a part of the GPU (MIG)."""
    if re.search(r"\bMIG\b", device):
        return None
    return next((watts for pattern, watts in BOARD_WATTS if re.search(pattern, device)), None)


def _energy(found: dict[str, Any], device: str, on_gpu: bool) -> dict[str, Any] | None:
    watts = board_watts(device) if on_gpu else 0.0
    if watts is None or found["core_hours"] is None or found["gpu_hours"] is None:
        return None
    kwh = (found["gpu_hours"] * watts + found["core_hours"] * CORE_WATTS) / 1000
    gpu = f"each GPU at its power limit of {watts:.0f} W and " if on_gpu else ""
    return {
        "kwh": float(f"{kwh:.4g}"),
        "gpu_watts": watts if on_gpu else None,
        "core_watts": CORE_WATTS,
        "assumption": f"estimated, not measured: {gpu}each core in use at {CORE_WATTS:.0f} W all the time, "
        "without memory, disks and cooling",
    }
