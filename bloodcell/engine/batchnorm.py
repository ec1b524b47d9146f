"""Running statistics of BatchNorm that do not depend on how micro-batches are dealt to ranks and slots.

One step moves the statistics once, towards the mean over all K micro-batches of the step. Inside a rank, slot j of A
gets the momentum m / (A - (A - j) m), j = 1..A, after which every slot's statistics weigh m / A and the old ones 1 - m.
Between ranks the update is linear, so averaging the ranks' statistics only when they are needed gives what averaging
after every step would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNormStatistics:
    """The running means and variances of a model, seen as one vector.

    Args:
        model: the network (not wrapped).
        modules: its layers that are meant; None is all that have running statistics.
    """

    def __init__(self, model: nn.Module, modules: Sequence[_BatchNorm] | None = None) -> None:
        found = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.modules = found if modules is None else [m for m in found if any(m is wanted for wanted in modules)]
        self._momentum = [m.momentum for m in self.modules]
        self._buffers = [b for m in self.modules for b in (m.running_mean, m.running_var) if b is not None]

    def enter_slot(self, slot: int, slots: int) -> None:
        """Set the momentum for micro-batch `slot` (from 0) of `slots` of a step."""
        if slots == 1:
            return
        for module, momentum in zip(self.modules, self._momentum, strict=True):
            if momentum is not None:
                module.momentum = momentum / (slots - (slots - slot - 1) * momentum)

    def leave_slots(self) -> None:
        """Give every module its own momentum back."""
        for module, momentum in zip(self.modules, self._momentum, strict=True):
            module.momentum = momentum

    def read(self) -> torch.Tensor:
        """Return a copy of all statistics, float32 [values]."""
        if not self._buffers:
            return torch.empty(0)
        return torch.cat([buffer.detach().reshape(-1).float() for buffer in self._buffers])

    def write(self, values: torch.Tensor) -> None:
        """Set all statistics from a vector as read() gives it."""
        begin = 0
        for buffer in self._buffers:
            part = values[begin : begin + buffer.numel()]
            buffer.copy_(part.reshape(buffer.shape))
            begin += buffer.numel()

    def count_steps(self, micro_batches: int) -> None:
        """Set num_batches_tracked to the micro-batches of all ranks; a layer in evaluation mode keeps its count."""
        for module in self.modules:
            if module.training and module.num_batches_tracked is not None:
                module.num_batches_tracked.fill_(micro_batches)

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        """Return every rank's vector of statistics, float32 [world, values]. Collective."""
        if dist.get_world_size() == 1 or not len(mine):
            return mine.expand(dist.get_world_size(), -1).clone()
        rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, mine)
        return torch.stack(rows)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Hold the mean over ranks inside the block, then go on with this rank's own. Collective."""
        own = self.read()
        self.write(mean_over_ranks(self.gather(own)) if len(own) else own)
        try:
            yield
        finally:
            self.write(own)


def mean_over_ranks(rows: torch.Tensor) -> torch.Tensor:
    """Return the mean of rows [world, values], to the bit where they are equal, as those of frozen layers are."""
    return rows[0] + (rows - rows[0]).mean(dim=0)
