"""Whether a micro-batch fits: two training steps in a process of their own, on the run's device, and their peak memory.

A process that runs out of memory takes nothing with it, and leaves no fragments behind. It does the run's own steps
(network, optimizer, average, strategy, precision, largest image size) on one rank: what several ranks share out is
counted whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from typing import Any

import torch

from bloodcell.config import Config, decode, encode, override
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.agree import on_first_rank, share
from bloodcell.engine.batch_size import Estimate, proven
from bloodcell.engine.batches import check_window
from bloodcell.ranks import Ranks
from shards.console import say, warn
from shards.errors import EnvironmentFault

STEPS = 2

SHARE = 0.5
"""Of engine.timeout, for all trials together: the other ranks wait meanwhile."""

FULL = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
"""How libraries say that memory was not enough, in small letters."""


TRIED = "micro_batch"
"""Where config.json says what the trials found; without "tried" in it the estimate is not proven yet."""


class _LateError(Exception):
    """There is no time for another trial."""


def found_micro_batch(config: Config, content: dict[str, Any], shards: ShardSet, ranks: Ranks) -> Config:
    """Return the config with the micro-batch that fits by trial, where it is an estimate still. Collective.

    `content` is what config.json shall hold; it is brought up to date.
    """
    pending = content.get(TRIED)
    if pending is None or "tried" in pending:
        return config
    config, content[TRIED] = find(config, Estimate(**pending), len(shards.info.classes), ranks)
    content["config"] = encode(config)
    check_window(config, shards, ranks)
    return config


def find(config: Config, estimate: Estimate, classes: int, ranks: Ranks) -> tuple[Config, dict[str, Any]]:
    """Try on the first rank what fits; return the config with it, and what config.json shall say of it. Collective.

    Where trials cannot be made at all the estimate stays, with a warning.

    Args:
        config: resolved; data.micro_batch is the estimate.
        estimate: where to begin, and the limits.
        classes: of the set.
        ranks: this process's place.

    Returns:
        The config, and {images, peak_mib, allowed_mib, tried: {images: peak in MiB, None if it did not fit}, why}.

    Raises:
        BadInput: not one image fits.
    """
    found = json.loads(share(json.dumps(on_first_rank(ranks, lambda: _find(config, estimate, classes)))))
    return override(config, {"data.micro_batch": found["images"]}), found


def _find(config: Config, estimate: Estimate, classes: int) -> dict[str, Any]:
    tried: dict[int, int | None] = {}
    end = time.monotonic() + SHARE * config.engine.timeout

    def peak_of(images: int) -> int | None:
        say(f"trying micro-batches of {images} images ...")
        tried[images] = peak(override(config, {"data.micro_batch": images}), classes, end - time.monotonic())
        return tried[images]

    said = {"allowed_mib": estimate.allowed >> 20, "why": estimate.why}
    try:
        images, most = proven(estimate, peak_of)
    except (_LateError, EnvironmentFault) as problem:
        fitted = {count: took for count, took in tried.items() if took is not None and took <= estimate.allowed}
        images = max(fitted, default=estimate.images)
        warn(f"micro-batches of {images} images are {'proven' if fitted else 'an estimate'}: {problem}")
        found = {"images": images, "peak_mib": fitted[images] >> 20 if fitted else None}
    else:
        limit = f"of the {estimate.allowed >> 20} MiB that training may take"
        say(f"micro-batches of {images} images: {most >> 20} MiB at the peak {limit}; {estimate.why}")
        found = {"images": images, "peak_mib": most >> 20}
    return {**found, **said, "tried": {count: took and took >> 20 for count, took in tried.items()}}


def peak(config: Config, classes: int, seconds: float) -> int | None:
    """Return the bytes that two steps of the config's micro-batch take at their peak, None if they do not fit.

    Args:
        config: resolved.
        classes: of the set.
        seconds: that this may take.

    Raises:
        EnvironmentFault: the process failed for another reason than memory.
    """
    if seconds <= 0:
        raise _LateError("there was no time for more trials")
    index = torch.cuda.current_device() if config.engine.device == "cuda" else 0
    asked = json.dumps({"config": encode(config), "classes": classes, "index": index})
    begin, out = time.monotonic(), ""
    with tempfile.TemporaryFile("w+") as problems:
        words, pipe = [sys.executable, "-m", "bloodcell.engine.trying"], subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=problems, text=True, env=_alone()) as process:
            timer = threading.Timer(seconds, process.kill)
            timer.start()
            with contextlib.suppress(BrokenPipeError):  # it ended at once
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(asked + "\n")
                process.stdin.flush()  # and stays open: its end would tell the trial that nobody waits for it any more
                out = process.stdout.read()
            timer.cancel()
        problems.seek(0)
        last = problems.read().strip().splitlines() or ["it said nothing"]
    if out.strip():
        found = json.loads(out)["peak"]
        return None if found is None else int(found)
    if time.monotonic() - begin >= seconds:
        raise _LateError("a trial took too long")
    if process.returncode < 0:  # killed, as a rule for its memory
        return None
    raise EnvironmentFault(f"a trial ended with {process.returncode}: {last[-1][:200]}", "data.micro_batch")


def _alone() -> dict[str, str]:
    """Return this environment without what launchers tell ranks of each other."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*launchers, "TORCHELASTIC_"))}
    path = os.pathsep.join(filter(None, sys.path))
    return {**kept, "PYTHONPATH": path}


def main() -> None:
    """Read {config, classes, index} from stdin, do the steps, print {peak}: bytes, null if memory was not enough."""
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries write there
    try:
        found: int | None = _peak(decode(asked["config"], "a trial"), asked["classes"], asked["index"])
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
        if not any(word in str(error).lower() for word in FULL):
            raise
        found = None
    print(json.dumps({"peak": found}), file=out, flush=True)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _peak(config: Config, classes: int, index: int) -> int:
    from bloodcell.engine.average import make_average
    from bloodcell.engine.freezing import Freezing
    from bloodcell.engine.losses import VIEWS
    from bloodcell.engine.optim import build_optimizer
    from bloodcell.engine.setup import make_network
    from bloodcell.engine.sizes import parse_sizes
    from bloodcell.engine.strategies import joined_norms, make_strategy
    from bloodcell.engine.warming import example
    from bloodcell.ranks import process_group, set_threads

    set_threads(config.engine.threads)
    config = override(config, {"engine.compile": "off", "engine.cuda_graphs": False})
    device = torch.device("cuda", index) if config.engine.device == "cuda" else torch.device("cpu")
    ranks = Ranks(0, 1, 0, 1, "trial")
    with process_group(ranks, device, 60.0):
        model = joined_norms(make_network(config, classes).to(device), config)
        freezing = Freezing(model, config.model)
        freezing.apply(freezing.last)
        optimizer = build_optimizer(model, config.optim, device)
        average = make_average(model, config.train, STEPS)
        strategy = make_strategy(model, optimizer, device, config, 1)
        views = VIEWS if config.loss.jsd else 1
        size = max(size for size, _ in parse_sizes(config.train.sizes, config.data.size))
        shown = replace(config.data, micro_batch=config.data.micro_batch * views)
        images, labels = example(replace(config, data=shown), device, size)
        strategy.warm_up(images, labels)
        model.train()
        for step in range(STEPS):
            with strategy.slot(0, 1):
                strategy.backward(torch.nn.functional.cross_entropy(strategy.forward(images), labels))
            strategy.step(config.optim.lr)
            average.update(step + 1)
        return taken(device)


def taken(device: torch.device) -> int:
    """Return the bytes that this process took at its peak: on the GPU, with what torch keeps in reserve, or of RAM."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_reserved(device))
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            (line,) = (line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):  # not Linux
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


if __name__ == "__main__":
    main()
