"""Which parts of a network keep their weights: a function of the epoch alone, so that resuming needs no memory of it.

A network is cut into its head and the blocks before it, counted from the input; a block is a layer of the layer-wise
learning rates (optim.layers_of). The head is trained from the beginning. Frozen blocks follow from the top on, a
quarter of them each time that `model.unfreeze_after` epochs are over: gradual unfreezing (Howard and Ruder, Universal
Language Model Fine-tuning for Text Classification, ACL 2018, section 3.3; their network had four layers to thaw).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bloodcell.config import ModelConfig
from bloodcell.engine.optim import layers_of
from bloodcell.models.heads import head_parameters
from shards.errors import BadInput

STAGES = 4
"""Steps in which the frozen blocks are trained again."""


@dataclass
class Block:
    """A part of a network before its head: parameters that its maker lets train, and BatchNorm layers."""

    parameters: list[nn.Parameter] = field(default_factory=list)
    norms: list[_BatchNorm] = field(default_factory=list)


class Freezing:
    """Switches the blocks of a network on and off.

    Args:
        model: the network (not wrapped). What its maker froze stays frozen.
        config: what the recipe asks for.

    Raises:
        BadInput: a value that makes no sense, more blocks than there are, or nothing is left to train.
    """

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        self.every, self.norms = config.unfreeze_after, config.freeze_norm
        self._model = model
        # A network without a classifier that can be told from the rest is trained as a whole.
        wanted = config.freeze != "none" or config.freeze_norm == "always"
        self.blocks = blocks_before_head(model) if wanted else []
        held = {id(p) for block in self.blocks for p in block.parameters}
        self._head = [p for p in model.parameters() if p.requires_grad and id(p) not in held]
        self.first = _count(config, len(self.blocks))
        self._now = 0
        if self.every and not self.first:
            raise BadInput("nothing is frozen that could be trained later", "model.unfreeze_after", "set model.freeze")
        if not self.trained(self.first):
            raise BadInput("no weight can be trained: all are frozen", "model", "unfreeze some of them")

    def frozen(self, epoch: int) -> int:
        """Return how many of the first blocks are frozen in an epoch (from 0)."""
        if not self.every:
            return self.first
        stages = min(STAGES, self.first)
        return self.first * max(0, stages - epoch // self.every) // max(1, stages)

    def apply(self, count: int) -> bool:
        """Freeze the first `count` blocks and no others; return whether that is a change. Sets modes of BatchNorm too.

        The modes are set anew each time, since model.train() has no regard for them.
        """
        changed, self._now = count != self._now, count
        for place, block in enumerate(self.blocks):
            for parameter in block.parameters:
                parameter.requires_grad_(place >= count)
            if self._model.training:
                still = self.norms == "always" or (self.norms == "frozen" and place < count)
                for norm in block.norms:
                    norm.train(not still)
        return changed

    @property
    def last(self) -> int:
        """How many of the first blocks stay frozen however long a run is."""
        return 0 if self.every else self.first

    def describe(self, count: int) -> str:
        """Return in words what is trained while the first `count` blocks are frozen."""
        trained = sum(p.numel() for p in self.trained(count))
        whole = sum(p.numel() for p in self._model.parameters())
        return f"{count} of {len(self.blocks)} blocks are frozen; {trained:,} of {whole:,} weights are trained"

    def trained(self, count: int) -> list[nn.Parameter]:
        """Return the parameters that are trained while the first `count` blocks are frozen."""
        return [*self._head, *(p for block in self.blocks[count:] for p in block.parameters)]


def blocks_before_head(model: nn.Module) -> list[Block]:
    """Return the blocks of a network from the input on, without its classifier.

    A BatchNorm layer without parameters belongs to the block of the parameters before it.
    """
    heads, layer_of = head_parameters(model), layers_of(model)
    named = dict(model.named_parameters())  # a tied parameter stands here once
    found: dict[int, Block] = {}
    layer: int | None = None
    for name, module in model.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{part}" if name else part
            if full in heads or full not in named:
                continue
            layer = layer_of(full)
            block = found.setdefault(layer, Block())
            if parameter.requires_grad:
                block.parameters.append(parameter)
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            found.setdefault(0 if layer is None else layer, Block()).norms.append(module)
    return [found[number] for number in sorted(found)]


def _count(config: ModelConfig, blocks: int) -> int:
    wanted = config.freeze
    if wanted == "none":
        return 0
    if not blocks:
        raise BadInput("the model has no blocks before its head", "model.freeze", "set it to none")
    if wanted == "backbone":
        return blocks
    if not isinstance(wanted, int):
        raise BadInput(f"{wanted!r} cannot be frozen", "model.freeze", "choose none, backbone or a number of blocks")
    if wanted > blocks:
        raise BadInput(
            f"no weight can be trained: {wanted} blocks and the head would be frozen",
            "model.freeze",
            f"{config.name} has {blocks} blocks before its head: freeze {blocks} or fewer",
        )
    return wanted
