"""How long training waits for a checkpoint: written beside it by a thread, or in its own time. For `bench engine`.

A network of the size that is asked for trains on drawn tensors without a loader; every few steps it is saved. The stall
is what the training loop loses at a save; the steps that follow, while the thread writes, are timed too.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bloodcell.engine.checkpoint import Checkpoints
from jobs.bench.result import Row, interleaved, measured

STEPS_BETWEEN = 4
"""Steps after a save that are timed with it."""


def stall_rows(megabytes: int = 64, repeats: int = 20, folder: Path | None = None) -> list[Row]:
    """Return the stall of a save and the time of the steps behind it, asynchronous against synchronous, interleaved.

    Args:
        megabytes: of state that is saved: weights and AdamW's two moments, float32.
        repeats: pairs of saves.
        folder: where to write; a temporary one is made in it. None is the system's own place.
    """
    width = max(round((megabytes * 1e6 / 12 / 4) ** 0.5), 8)
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
    optimizer = torch.optim.AdamW(network.parameters())
    batch = torch.randn(64, width)

    def step() -> None:
        network(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with tempfile.TemporaryDirectory(dir=folder) as place:
        kept = {name: Checkpoints(Path(place) / name, 2, synchronous=name == "within") for name in ("beside", "within")}
        after: dict[str, list[float]] = {name: [] for name in kept}
        numbers = dict.fromkeys(kept, 0)

        def case(name: str) -> float:
            step()
            numbers[name] += 1
            state = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
            begin = time.perf_counter()
            kept[name].save(numbers[name], state, {}, {"step": numbers[name]})
            stalled = time.perf_counter() - begin
            begin = time.perf_counter()
            for _ in range(STEPS_BETWEEN):
                step()
            after[name].append((time.perf_counter() - begin) / STEPS_BETWEEN)
            kept[name].wait()  # the next case shall not be timed while this one is still written
            return stalled

        for name in kept:
            (Path(place) / name).mkdir()
        figures = interleaved({name: partial(case, name) for name in kept}, repeats, warmups=1)
        written = kept["beside"].write_seconds
    size = sum(p.numel() * p.element_size() for p in network.parameters()) * 3 / 1e6
    within = f"stall of a save written in the training's own time, {size:.0f} MB"
    steps = "a step with nothing written beside it"
    return [
        measured("stall of a save written beside the training", figures["beside"], "s", within, figures["within"]),
        measured(within, figures["within"], "s"),
        measured(
            "a step while a checkpoint is written beside it", after["beside"][1:], "s", steps, after["within"][1:]
        ),
        measured(steps, after["within"][1:], "s"),
        Row("writing a checkpoint beside the training, the last one", written, "s"),
    ]
