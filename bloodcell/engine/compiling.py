"""torch.compile for the training step: whether it pays, what it needs, and all that it compiles before the first step.

Only the forward and backward of training are compiled; evaluation, saving and export see the bare network, so that no
name in a checkpoint changes. Its cache lies in one place that outlives a start: a run that goes on compiles nothing.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from bloodcell.config import Config
from bloodcell.engine.batchnorm import BatchNormStatistics
from bloodcell.engine.compile_costs import known_cost, note_cost
from bloodcell.engine.ddp import autocast
from bloodcell.engine.losses import VIEWS
from bloodcell.engine.sizes import parse_sizes
from bloodcell.engine.warming import example, untraced
from bloodcell.models import zoo
from shards.errors import BadInput

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The variable that names the cache's folder; one that is set already is left as it is."""

COLD_SECONDS = 180.0
"""What compiling one form of a network is taken to cost where this machine never did it: a cautious guess."""

SAFETY = 2.0
"""`auto` compiles where this many times the cost is expected back."""

PUBLISHED = {
    # model: (images/s in training without compiling on an H200, speed-up by compiling in inference)
    "vgg16": (6000, 1.32),
    "vgg19": (5000, 1.29),
    "resnet18": (18000, 1.42),
    "resnet50": (6200, 1.62),
    "resnet50v2": (6600, 1.39),
    "mobilenet_v2": (12000, 1.61),
    "mobilenet_v3_large": (14000, 1.45),
    "efficientnet_b0": (9000, 1.19),
    "efficientnet_v2_s": (1500, 1.22),
    "xception": (2600, 1.39),
    "vit_b": (2000, 1.18),
    "vit_s": (5300, 1.18),
    "convnextv2_tiny": (4200, 1.39),
}
"""From timm's published tables (results/ of its repository): training on an RTX 3090 scaled by memory bandwidth, and
torch.compile on an RTX 4090. Slower GPUs train longer and gain more; of what compiling gains half is counted."""


@dataclass(frozen=True)
class Choice:
    """Whether to compile, and why."""

    on: bool
    why: str


def choose_compile(config: Config, images: int, world: int) -> Choice:
    """Decide what engine.compile = auto means.

    Args:
        config: resolved but for that.
        images: that the run trains on, all epochs.
        world: ranks.
    """
    if config.engine.device != "cuda":
        return Choice(False, "on a CPU it saves 0 to 18 % of a step where it was measured, after up to 100 s")
    if config.engine.strategy != "ddp":
        return Choice(False, f"{config.engine.strategy} runs the network itself")
    if config.model.name not in PUBLISHED:
        return Choice(False, f"what {config.model.name} would gain is not known")
    if shutil.which(_tool()) is None:
        return Choice(False, f"there is no compiler ({_tool()})")
    rate, gain = PUBLISHED[config.model.name]
    native = zoo.spec(config.model.name).size
    stages = parse_sizes(config.train.sizes, config.data.size)
    work = sum(float(share) * (size / native) ** 2 for size, share in stages)
    saved = images * work / rate / world * (1 - 1 / (1 + (gain - 1) / 2))
    costs = [known_cost(cache_folder(), config, size) for size in {size for size, _ in stages}]
    cost = _slots(config, world) * sum(COLD_SECONDS if known is None else known for known in costs)
    basis = "by what it took here before" if None not in costs else "a cautious guess"
    told = f"it would save about {saved:.0f} s of the whole run and cost up to {cost:.0f} s ({basis})"
    return Choice(saved >= SAFETY * cost, told)


def forms(config: Config, world: int) -> int:
    """Return how many forms of the network are compiled: of each image size, and of each slot of a step."""
    return len({size for size, _ in parse_sizes(config.train.sizes, config.data.size)}) * _slots(config, world)


def check_compile(config: Config) -> None:
    """Raise BadInput for settings that compiling does not go together with, or if there is no compiler."""
    engine = config.engine
    if engine.cuda_graphs:
        sizes = parse_sizes(config.train.sizes, config.data.size)
        if engine.device != "cuda" or engine.compile != "on":
            raise BadInput("CUDA graphs need a GPU and engine.compile on", "engine.cuda_graphs", "set it to false")
        if len(sizes) > 1 or config.model.unfreeze_after:
            raise BadInput("CUDA graphs need steps that are all alike", "engine.cuda_graphs", "set it to false")
    if engine.compile != "on":
        return
    if engine.strategy != "ddp":
        raise BadInput(f"{engine.strategy} cannot be compiled here", "engine.compile", "use the strategy ddp")
    if shutil.which(_tool()) is None:
        raise BadInput(f"there is no compiler ({_tool()})", "engine.compile", "install one, or set it to off")


def cache_folder() -> Path:
    """Return where compiled code is kept: $TORCHINDUCTOR_CACHE_DIR, or a folder in the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(CACHE) or home / "bloodcell" / "compiled")


class Compiler:
    """Compiles networks for the micro-batches of a run.

    Args:
        config: resolved.
        world: ranks.
        device: of this rank.
    """

    def __init__(self, config: Config, world: int, device: torch.device) -> None:
        self.config, self.world, self.device = config, world, device
        os.environ[CACHE] = str(cache_folder())

    def __call__(self, model: nn.Module, statistics: BatchNormStatistics) -> nn.Module:
        """Return the network compiled for every image size and slot; weights, statistics and gradients are untouched.

        A slot has a momentum of BatchNorm of its own, which is a constant of compiled code.
        """
        from torch import _dynamo as dynamo  # late: it takes seconds to load

        config, slots = self.config, _slots(self.config, self.world)
        dynamo.config.recompile_limit = max(8, 2 * forms(config, self.world))
        mode = "reduce-overhead" if config.engine.cuda_graphs else None
        compiled = cast(nn.Module, torch.compile(model, dynamic=False, mode=mode))
        sizes = {size for size, _ in parse_sizes(config.train.sizes, config.data.size)}
        with untraced(model):
            for size in sorted(sizes):
                begin = time.perf_counter()
                images = torch.cat([example(config, self.device, size)[0]] * (VIEWS if config.loss.jsd else 1))
                for slot in range(slots):
                    statistics.enter_slot(slot, slots)
                    with autocast(self.device, config.engine.precision):
                        logits = compiled(images)
                    logits.float().sum().backward()
                if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
                    note_cost(cache_folder(), config, size, (time.perf_counter() - begin) / slots)
            statistics.leave_slots()
        return compiled


def _slots(config: Config, world: int) -> int:
    return math.ceil(config.train.micro_batches / world)


def _tool() -> str:
    return os.environ.get("CXX", "c++")
