"""The strategy that the config asks for, and whether it can be had on this machine."""

from __future__ import annotations

import torch
from torch import nn

from bloodcell.config import TORCHS_BUCKET, Config
from bloodcell.engine.compiling import Compiler, check_compile
from bloodcell.engine.ddp import DDP
from bloodcell.engine.strategy import Strategy
from bloodcell.engine.zero_config import check_zero, reach_tools
from shards.errors import BadInput


def check_strategy(config: Config) -> None:
    """Find out before anything is spent whether the strategy can be had.

    Args:
        config: resolved.

    Raises:
        BadInput: what it needs is not there, or settings that do not go together.
    """
    engine = config.engine
    check_compile(config)
    if engine.device == "cpu" and engine.sync_norm:
        fix = "set it to false, or use a GPU"
        raise BadInput("BatchNorm over all ranks needs a GPU: torch has none for a CPU", "engine.sync_norm", fix)
    if engine.device == "cpu" and engine.compress != "none":
        fix = "set it to none, or use GPUs"
        raise BadInput("gradients are sent as bf16 between GPUs only", "engine.compress", fix)
    if engine.strategy == "ddp":
        if engine.offload:
            fix = "use the strategy zero1, zero2 or zero3"
            raise BadInput("ddp keeps the optimizer state where the weights are", "engine.offload", fix)
        return
    if engine.compress != "none":
        raise BadInput(f"{engine.strategy} sends gradients as they are", "engine.compress", "use the strategy ddp")
    check_zero(config)


def joined_norms(model: nn.Module, config: Config) -> nn.Module:
    """Return the network, with BatchNorm over all ranks if the config asks for it; the weights are the same ones."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if config.engine.sync_norm else model


def make_compiler(config: Config, device: torch.device) -> Compiler | None:
    """Return what compiles the training step, if the config asks for it."""
    if config.engine.compile != "on":
        return None
    reach_tools()
    return Compiler(config, torch.distributed.get_world_size(), device)


def make_strategy(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, config: Config, slots: int
) -> Strategy:
    """Return the strategy around the network. Collective.

    Args:
        model: the network, on its device.
        optimizer: over its parameters.
        device: of this rank.
        config: resolved.
        slots: micro-batches of a step on this rank.

    Raises:
        EnvironmentFault: DeepSpeed's extension cannot be compiled.
    """
    if config.engine.strategy == "ddp":
        return DDP(
            model,
            optimizer,
            device,
            config.engine.precision,
            config.optim,
            config.train.micro_batches,
            config.engine.compress == "bf16",
            config.engine.bucket_mb or TORCHS_BUCKET,
            make_compiler(config, device),
        )
    from bloodcell.engine.zero import Zero

    return Zero(model, optimizer, device, config, slots)
