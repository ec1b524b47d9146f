"""Every `auto` of the config turned into a value, once, before the run starts; the result is what config.json holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bloodcell.config import TORCHS_BUCKET, Config, override
from bloodcell.data.backends import choose_backend, of_reader
from bloodcell.data.policies import find_policy
from bloodcell.engine.optim import is_fused
from bloodcell.models import zoo
from bloodcell.ranks import Ranks, choose_device, cores_per_rank

PARTS = 8
"""Buckets that the gradients of a network shall fill at least."""


@dataclass(frozen=True)
class Machine:
    """Where the run will be, if that is not here: `device` ("cuda" or "cpu") and `cores` of each rank."""

    device: str
    cores: int


def resolve(config: Config, ranks: Ranks, machine: Machine | None = None) -> Config:
    """Return the config with device, backend, precision and threads decided for `machine` (this one), paths absolute.

    Raises:
        BadInput: a device is asked for that is not here, where here matters; a backend that cannot do the policy.
    """
    if machine is None:
        device, cores = choose_device(ranks, config.engine.device), cores_per_rank(ranks)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # what asks for memory from here on means this rank's own GPU, not the first
    else:
        wanted = machine.device if config.engine.device == "auto" else config.engine.device
        device, cores = torch.device(wanted), machine.cores
    policy, elsewhere = find_policy(config.data.policy), machine is not None
    wanted = of_reader(config.data.backend, config.data.reader)
    return override(
        config,
        {
            "data.set": str(Path(config.data.set).resolve()),
            "data.backend": choose_backend(wanted, policy, device.type, elsewhere),
            "data.threads": config.data.threads or _loader_threads(cores, device),
            "engine.bucket_mb": config.engine.bucket_mb or _bucket(config, device),
            "engine.device": device.type,
            "engine.precision": _precision(config.engine.precision, device),
            "engine.threads": config.engine.threads or _torch_threads(cores, device),
            "optim.fused": "on" if is_fused(config.optim, device) else "off",
        },
    )


def as_stored(config: Config, stored: Config) -> Config:
    """Return the config of a run that goes on: what was decided once, on another length or machine, stays."""
    if config.engine.compile == "auto":
        config = override(config, {"engine.compile": stored.engine.compile})
    if not config.engine.bucket_mb:
        config = override(config, {"engine.bucket_mb": stored.engine.bucket_mb})
    if not config.data.micro_batch:
        config = override(config, {"data.micro_batch": stored.data.micro_batch})
    return config


def _precision(wanted: str, device: torch.device) -> str:
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cuda" else "fp32"


def _bucket(config: Config, device: torch.device) -> int:
    """Return the MiB of DDP's gradient buckets: on GPUs an eighth of the gradients, from 1 to torch's 25.

    Of a network with fewer gradients than one bucket holds, nearly all would be sent after the backward pass, and none
    in it. On a CPU, whose cores do both, smaller ones cost up to 6 % more of them (`bloodcell bench engine --buckets`,
    ResNet-18 on two ranks).
    """
    if config.engine.strategy != "ddp" or device.type == "cpu":
        return TORCHS_BUCKET
    model = zoo.outline(config.model.name, config.model.head, config.data.size)
    gradients = 4 * sum(weight.numel() for weight in model.parameters()) / 2**20
    return max(1, min(TORCHS_BUCKET, round(gradients / PARTS)))


def _torch_threads(cores: int, device: torch.device) -> int:
    """On a CPU the network gets all cores: decoding takes little beside it. On a GPU the host only launches kernels."""
    return cores if device.type == "cpu" else min(cores, 2)


def _loader_threads(cores: int, device: torch.device) -> int:
    """On a CPU one decoding thread in four cores keeps up with any network; on a GPU decoding gets what is left."""
    return max(1, cores // 4) if device.type == "cpu" else max(1, min(16, cores - 2))
