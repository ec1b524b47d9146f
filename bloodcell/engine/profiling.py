"""`--profile`: a trace of a few steps of every rank, and an account of where a step's time goes, in RUN/profile.

After the first steps, which are slower, some are timed part by part (on a GPU the host then waits for the device after
each part, or it would time the launching of kernels), and some are traced by torch.profiler as they are. Neither draws
a random number nor changes one: the weights are those of a run without a profile.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bloodcell.engine.agree import gather_texts
from bloodcell.engine.phases import PARTS, Phases
from bloodcell.engine.profile_page import account, page
from bloodcell.engine.profile_trace import Events, busiest, collectives
from bloodcell.ranks import Ranks
from shards.atomic import open_atomic, write_json
from shards.console import say, warn

FOLDER = "profile"
SKIPPED, TIMED, TRACED = 3, 10, 4
"""Steps after the start of a process."""

TRACES = 8
"""Ranks that keep their trace."""


class Profile(Phases):
    """Times some steps of a run, traces some, writes RUN/profile and then rests.

    Args:
        run: the run folder.
        ranks: this process's place.
        device: of this rank.
        images: in a step, over all ranks.
    """

    def __init__(self, run: Path, ranks: Ranks, device: torch.device, images: int) -> None:
        self.folder, self.ranks, self.device, self.images = run / FOLDER, ranks, device, images
        self._done = 0
        self._steps: list[tuple[float, dict[str, float]]] = []
        """Seconds of each timed step, and of its parts."""
        self._timed: list[int] = []
        self._traced: list[int] = []
        self._parts: dict[str, float] = {}
        self._begin = 0.0
        self._trace: profile | None = None
        self._over = False

    def begin(self, step: int) -> None:
        """Say that a step begins."""
        if self._over:
            return
        if SKIPPED <= self._done < SKIPPED + TIMED:
            self._timed.append(step)
        elif self._done >= SKIPPED + TIMED:
            self._traced.append(step)
            if self._trace is None:
                self._start_trace()
        self._wait()
        self._parts, self._begin = dict.fromkeys(PARTS, 0.0), time.perf_counter()

    def part(self, name: str) -> AbstractContextManager[None]:
        """Surround a part of the step."""
        return super().part(name) if self._over else self._noted(name)

    @contextlib.contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        with record_function(f"bloodcell: {name}") if self._trace else contextlib.nullcontext():
            yield
        self._wait()
        self._parts[name] += time.perf_counter() - begin

    def end(self) -> bool:
        """Say that the step is over; after the last one that is wanted, write. Collective."""
        if self._over:
            return False
        if SKIPPED <= self._done < SKIPPED + TIMED:
            self._steps.append((time.perf_counter() - self._begin, self._parts))
        self._done += 1
        if self._done == SKIPPED + TIMED + TRACED:
            self.finish()
        return self._over

    def finish(self) -> None:
        """Write what was found, if the run was long enough. Collective."""
        if self._over:
            return
        found = self._found()
        self.close()
        told = [json.loads(text) for text in gather_texts(json.dumps(found))]
        if not self.ranks.first:
            return
        if not self._timed:
            warn(f"nothing to profile: the run has ended within {SKIPPED} steps of its start")
            return
        whole = account(told, self.device.type, self.images, self._timed, self._traced)
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / "account.json", whole)
        with open_atomic(self.folder / "account.md") as file:
            file.write(page(whole).encode())
        say(f"where a step's time goes: {self.folder / 'account.md'}")

    def close(self) -> None:
        """Stop, whatever the reason."""
        if self._trace is not None and not self._over:
            self._trace.stop()
        self._over, self._trace = True, None

    def _wait(self) -> None:
        """Let the device finish what it was given, while steps are timed."""
        if self.device.type == "cuda" and SKIPPED <= self._done < SKIPPED + TIMED:
            torch.cuda.synchronize(self.device)

    def _start_trace(self) -> None:
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])
        self._trace = profile(activities=kinds)
        self._trace.start()

    def _found(self) -> dict[str, Any]:
        """Return what this rank noted: {step, parts, collectives, busiest}, seconds."""
        found: dict[str, Any] = {"steps": self._steps}
        if self._trace is None or not self._traced:
            return found
        self._trace.stop()
        self._over = True
        self.folder.mkdir(exist_ok=True)
        file = self.folder / f"trace-{self.ranks.rank}.json.gz"
        if self.ranks.rank >= TRACES:
            file = self.folder / f".trace-{self.ranks.rank}.json.gz"
        self._trace.export_chrome_trace(str(file))
        events = Events.read(file)
        if self.ranks.rank >= TRACES:
            file.unlink()
        count = len(self._traced)
        return {**found, **collectives(events, count), "busiest": busiest(self._trace, self.device.type, count)}
