"""Attempts of a run: those that saved something are healthy; those that die in one step again and again are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bloodcell.data.order import BatchOrder
from bloodcell.engine.watchdog import read_heartbeat
from bloodcell.runfolder import Status
from shards.atomic import open_atomic
from shards.errors import Fault

SUSPECTS_FILE = "suspects.txt"
ONCE_MORE = "start the same command once more: it gets one more try"
NAMED = 12
"""How many samples the message names; the file has all."""

NO_DEATH = (0, 2, 85, 130)
"""Exit codes of attempts that did not die: done, bad input, stopped by a signal, interrupted."""


@dataclass(frozen=True)
class Attempts:
    """What is known of a run's attempts when a new one begins; stored in status.json.

    Attributes:
        began: optimizer steps that were saved then.
        fruitless: attempts in a row before it that died without saving anything new.
        died_at: the step, counted from 0, in which one of them died last; -1 if none did.
        deaths: how often in a row it was that step.
        refused: whether this attempt was not allowed to begin.
    """

    began: int = 0
    fruitless: int = 0
    died_at: int = -1
    deaths: int = 0
    refused: bool = False


def take_stock(before: dict[str, Any], heartbeat: dict[str, Any], saved: int) -> Attempts:
    """Return the account of the attempts so far.

    Args:
        before: status.json as the last attempt left it; {} before the first.
        heartbeat: what the last attempt was doing last.
        saved: optimizer steps in the newest checkpoint.
    """
    past = Attempts(**before.get("attempts", {}))
    outcome = before.get("outcome")
    code = outcome.get("code") if isinstance(outcome, dict) else None  # None: killed before it could say anything
    fruitless, died_at, deaths = past.fruitless, past.died_at, past.deaths
    if before and not past.refused and code not in NO_DEATH:
        fruitless += 1
        if heartbeat.get("attempt") == before.get("attempt") and heartbeat.get("phase") == "training":
            step = int(heartbeat["step"])
            died_at, deaths = step, deaths + 1 if step == died_at else 1
    if saved > past.began:
        fruitless = 0
    if saved > died_at:
        died_at, deaths = -1, 0
    return Attempts(saved, fruitless, died_at, deaths)


def begin_attempt(
    run: Path,
    status: Status,
    saved: int,
    limits: tuple[int, int],
    order: BatchOrder,
    describe: Callable[[int], str],
) -> None:
    """Put the account of the attempts into the status, or refuse to begin another. On the first rank.

    Args:
        run: the run folder.
        status: of this attempt.
        saved: optimizer steps in the newest checkpoint.
        limits: fruitless attempts in a row, and deaths in one step, after which it ends; 0 is no limit.
        order: of the training samples.
        describe: names a sample id.

    Raises:
        Fault: the run dies again and again. In one step: its samples are named, RUN/suspects.txt has them all.
    """
    attempts = take_stock(status.before, read_heartbeat(run), saved)
    most, deaths = limits
    loops, fruitless = 0 < deaths <= attempts.deaths, 0 < most <= attempts.fruitless
    if loops or fruitless:
        # Whoever starts the run once more, by hand, gets one more try.
        again = replace(attempts, refused=True, fruitless=max(most - 1, 0), deaths=max(deaths - 1, 0))
        status.values["attempts"] = asdict(again)
        raise (
            _crash_loop(attempts, order, describe, run)
            if loops
            else Fault(
                f"{attempts.fruitless} attempts in a row saved nothing new",
                run,
                f"see why in its log, then {ONCE_MORE}",
            )
        )
    status.values["attempts"] = asdict(attempts)


def _crash_loop(attempts: Attempts, order: BatchOrder, describe: Callable[[int], str], run: Path) -> Fault:
    keys = [describe(int(i)) for i in order.step(attempts.died_at, 1, 0).ids.reshape(-1)]
    with open_atomic(run / SUSPECTS_FILE, "w") as file:
        file.write("\n".join(keys) + "\n")
    named = ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
    return Fault(
        f"{attempts.deaths} attempts in a row died in step {attempts.died_at}; its samples: {named}",
        run / SUSPECTS_FILE,
        f"look at them (`bloodcell verify SET`), then {ONCE_MORE}",
    )
