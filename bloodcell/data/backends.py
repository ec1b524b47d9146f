"""Which backend turns the bytes of samples into network input: DALI or the CPU's pool of threads, and why."""

from __future__ import annotations

import importlib.util

from bloodcell.data.policies import Policy
from shards.errors import BadInput

WHERE = "data.backend"


def choose_backend(wanted: str, policy: Policy, device: str, elsewhere: bool = False) -> str:
    """Return "dali" or "cpu" for a wish of auto, dali or cpu, where the network is on `device` ("cuda" or "cpu").

    Without a GPU `auto` takes the CPU backend, which gave more images a second than DALI's CPU operators wherever the
    two were timed (`bloodcell bench data`, also with --policy), unless the policy has an operation that it lacks. What
    will run `elsewhere` (on a cluster's nodes) finds DALI there.

    Raises:
        BadInput: what is asked for is not installed here, or lacks an operation of the policy.
    """
    missing = not_done_by_pool(policy)
    installed = elsewhere or dali_is_installed()
    if wanted == "cpu" and missing:
        raise BadInput(f"the CPU backend has no {', '.join(missing)}", WHERE, "set it to dali")
    if wanted == "dali" and not installed:
        raise BadInput("DALI is not installed here", WHERE, "set it to cpu, or install nvidia-dali-cuda130")
    if wanted != "auto":
        return wanted
    if installed and (device == "cuda" or missing):
        return "dali"
    if missing:
        raise BadInput(f"DALI is not installed here; the CPU backend has no {', '.join(missing)}", WHERE, "install it")
    return "cpu"


def of_reader(wanted: str, reader: str) -> str:
    """Return the backend to wish for with a reader: `webdataset` is for where DALI is not.

    Raises:
        BadInput: DALI is asked for all the same.
    """
    if reader != "webdataset":
        return wanted
    if wanted == "dali":
        raise BadInput("the reader webdataset has the CPU backend", WHERE, "set it to cpu, or data.reader to stream")
    return "cpu"


def describe_backend(backend: str, policy: Policy, device: str, threads: int) -> str:
    """Return in words who prepares the images, and why that is the better one."""
    if backend == "cpu":
        why = "there is no GPU" if device == "cpu" else "asked for"
        return f"images: CPU backend, {threads} thread{'s' * (threads != 1)} ({why})"
    missing = not_done_by_pool(policy)
    if device == "cuda":
        return f"images: DALI on the GPU, {threads} threads"
    return f"images: DALI on the CPU ({'the CPU backend has no ' + ', '.join(missing) if missing else 'asked for'})"


def not_done_by_pool(policy: Policy) -> list[str]:
    """Return the names of the policy's operations that the CPU backend lacks."""
    from bloodcell.data.pool import not_done

    return not_done(policy)


def dali_is_installed() -> bool:
    """Whether DALI can be imported here."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False
