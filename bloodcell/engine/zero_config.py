"""What DeepSpeed is told, made from our config alone, and what it needs on this machine, looked up beforehand."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bloodcell.config import Config
from bloodcell.engine.optim import OWN
from shards.errors import BadInput

OP = "deepspeed_shm_comm"
"""The extension that DeepSpeed compiles when it runs without a GPU; everything else that it could compile is unused."""

BUCKET = 50_000_000
"""Weights whose gradients are sent together at most; DeepSpeed's own default would take 2 GB for its buffer."""


def check_zero(config: Config) -> None:
    """Find what DeepSpeed cannot do, or lacks here.

    Raises:
        BadInput: DeepSpeed, a compiler or ninja is not there, or a setting that the stage has no exact form of.
    """
    name, stage = config.engine.strategy, stage_of(config.engine.strategy)
    if config.engine.precision == "fp16":
        raise BadInput(f"{name} has no fp16 here", "engine.precision", "use bf16 or fp32, or the strategy ddp")
    if stage and config.optim.name not in OWN:
        # It would see flattened parts of weights, and its norms of layers would be those of the parts.
        fix = f"choose one of {', '.join(OWN)}, or the strategy ddp or zero0"
        raise BadInput(f"{name} cuts weights into parts, {config.optim.name} needs them whole", "optim.name", fix)
    if stage and config.model.unfreeze_after:
        fix = "use ddp or zero0, or set it to 0"
        raise BadInput(f"{name} cannot take up more weights in mid-run", "model.unfreeze_after", fix)
    if stage == 3 and config.train.average != "none":
        raise BadInput(
            "zero3 has no rank with whole weights to average", "train.average", "use zero2, or set it to none"
        )
    if not stage and config.engine.offload:
        raise BadInput("zero0 shares no optimizer state that could be kept elsewhere", "engine.offload", "use zero1")
    if importlib.util.find_spec("deepspeed") is None:
        raise BadInput("DeepSpeed is not installed", "engine.strategy", "install it, or use the strategy ddp")
    if config.engine.device == "cpu":
        _check_tools()


def stage_of(strategy: str) -> int:
    """Return the ZeRO stage of a strategy's name."""
    return int(strategy.removeprefix("zero"))


def _check_tools() -> None:
    reach_tools()
    compiler = os.environ.get("CXX", "c++")
    for tool, package in ((compiler, "g++"), ("ninja", "ninja")):
        if shutil.which(tool) is None:
            what = f"without a GPU DeepSpeed compiles an extension, and there is no {tool}"
            raise BadInput(what, "engine.strategy", f"install {package}, or use the strategy ddp")


def reach_tools() -> None:
    """Put this interpreter's folder first on PATH: ninja lies there, also where the environment is not activated."""
    own = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if own not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([own, path]) if path else own


def prepare_machine(device: torch.device) -> Path | None:
    """Tell DeepSpeed what to compute on; return where it will compile its extension, None if it is there or unneeded.

    To be called before DeepSpeed is imported.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime is found": we know
    from torch.utils.cpp_extension import _get_build_directory

    os.environ["DS_ACCELERATOR"] = device.type
    reach_tools()
    # DeepSpeed calls by their old names what torch has since renamed.
    warnings.filterwarnings("ignore", message=".*(all_gather_into|reduce_scatter)_tensor", category=FutureWarning)
    if device.type != "cpu":
        return None
    folder = Path(_get_build_directory(OP, verbose=False))
    return None if (folder / f"{OP}.so").exists() else folder


def zero_config(config: Config, weights: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Args:
        config: resolved.
        weights: how many the network has.
    """
    stage = stage_of(config.engine.strategy)
    sharing: dict[str, Any] = {"stage": stage, "reduce_bucket_size": max(1, min(BUCKET, weights))}
    if config.engine.offload:
        sharing["offload_optimizer"] = {"device": "cpu", "pin_memory": config.engine.device == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": config.data.micro_batch,
        # Slots are ours: DeepSpeed sees one backward pass, or several that it reduces together.
        "gradient_accumulation_steps": 1,
        # Left out it would be 1.0. Stage 0 keeps whole gradients, which are clipped as under DDP.
        "gradient_clipping": config.optim.clip if stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": sharing,
        # Weights, BatchNorm and gradients on their way stay float32, as under DDP.
        "torch_autocast": {
            "enabled": config.engine.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


@contextlib.contextmanager
def launched(device: torch.device) -> Iterator[None]:
    """Inside the block name this rank's device as DeepSpeed wants it, whoever started the process, and keep it quiet.

    What it writes to stdout belongs nowhere: that is for results.
    """
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(device.index or 0) if device.type == "cuda" else (before or "0")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before
