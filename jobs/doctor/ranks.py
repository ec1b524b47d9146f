"""What all ranks look at together: how fast they talk, and two dry steps of the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bloodcell.config import Config
from bloodcell.engine.peers import GONE
from bloodcell.engine.resolve import resolve
from bloodcell.ranks import choose_device, discover, process_group, set_threads
from jobs.doctor import network, steps
from jobs.doctor.words import speak
from shards.errors import BadInput, EnvironmentFault, Fault, Stop

TIMEOUT = 120.0
"""Seconds that ranks wait for each other here."""


def look(config: Config | None, device: str, folder: Path) -> None:
    """Meet, measure, tell; where something fails, tell what and leave with its code. Collective.

    Args:
        config: of the dry steps, not yet resolved; None to leave them out.
        device: what ranks compute on, where no config says it.
        folder: on the disk of the run.
    """
    ranks = discover()
    stage = "ranks meet"
    try:
        if config is not None:
            config = resolve(config, ranks)
            set_threads(config.engine.threads)
        own = choose_device(ranks, config.engine.device if config else device)
        with process_group(ranks, own, TIMEOUT):
            stage = "network"
            seen = network.look(ranks, own)
            if ranks.first:
                speak("network", 0, seen)
            if config is not None:
                stage = "dry steps"
                speak("steps", ranks.rank, steps.look(config, _place(folder), ranks))
    except Stop as problem:
        speak("fault", ranks.rank, {"stage": stage, "code": problem.code, **_said(problem)})
        raise
    except Exception as error:  # whatever a broken node raises is the finding
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        consequence = any(sign in what for sign in GONE)  # of what another rank met
        code = EnvironmentFault.code if consequence else Fault.code
        speak("fault", ranks.rank, {"stage": stage, "code": code, "what": what, "fix": ""})
        raise


def _place(folder: Path) -> Path:
    if not folder.is_dir():
        raise BadInput("the run folder is not there on this node", folder, "choose one that all nodes share")
    return folder


def _said(problem: Stop) -> dict[str, Any]:
    return {"what": f"{problem.what} ({problem.where})" if problem.where else problem.what, "fix": problem.fix}
