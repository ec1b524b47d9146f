"""An average of the weights over the training, which is validated and kept in place of the last ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from bloodcell.config import TrainConfig
from bloodcell.engine.batchnorm import BatchNormStatistics, mean_over_ranks


class WeightAverage:
    """The exponential (Polyak and Juditsky, 1992) or equal-weight average (SWA; Izmailov et al., 2018) of the weights.

    BatchNorm statistics are averaged in the same way as the weights, on each rank its own, and over ranks when they are
    needed: that is linear, so the number of ranks does not matter. Those of the equal-weight average are too old for it
    by then: they are estimated anew (reestimate.py) before it is validated, and kept with it.

    Args:
        model: the network (not wrapped), on its device; what never needs a gradient is left out.
        kind: "none", "ema" or "swa".
        decay: weight of the past; young averages forget faster: (1 + n) / (10 + n) after n updates, if that is less.
        first: the step from which "swa" averages.
    """

    def __init__(self, model: nn.Module, kind: str, decay: float, first: int) -> None:
        self.kind, self.decay, self.first = kind, decay, first
        self.updates = 0
        named = {name: p for name, p in model.named_parameters() if p.requires_grad and kind != "none"}
        self._names, self._parameters = list(named), list[torch.Tensor](named.values())
        self._shadow = [p.detach().clone() for p in self._parameters]
        self._statistics = BatchNormStatistics(model)
        self._shadow_statistics = self._statistics.read()
        self._estimated: torch.Tensor | None = None

    @property
    def active(self) -> bool:
        """Whether there is an average yet."""
        return self.updates > 0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        if self.kind == "none" or (self.kind == "swa" and step < self.first):
            return
        self.updates += 1
        self._estimated = None  # of other weights
        young = (1 + self.updates) / (10 + self.updates)
        share = 1 / self.updates if self.kind == "swa" else 1 - min(self.decay, young)
        torch._foreach_lerp_(self._shadow, [p.detach() for p in self._parameters], share)
        self._shadow_statistics.lerp_(self._statistics.read(), share)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Hold the average, the same on all ranks, in the model inside the block (if there is one). Collective."""
        if not self.active:
            yield
            return
        own, statistics = [p.detach().clone() for p in self._parameters], self._statistics.read()
        averaged = mean_over_ranks(self._gathered()) if self._estimated is None else self._estimated
        self._write(self._shadow, averaged)
        try:
            yield
        finally:
            self._write(own, statistics)

    def refresh(self, estimate: Callable[[], object]) -> None:
        """Let `estimate` set the statistics of the averaged weights in the model, and keep them. Collective.

        Only an equal-weight average needs it; an exponential one forgets as fast as the statistics do.
        """
        if self.kind != "swa" or not self.active or self._estimated is not None:
            return
        with self.applied():
            estimate()
            found = self._statistics.read()
        self._estimated = found

    @torch.no_grad()
    def _write(self, parameters: list[torch.Tensor], statistics: torch.Tensor) -> None:
        torch._foreach_copy_(self._parameters, parameters)
        self._statistics.write(statistics)

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs, the same on every rank; the average itself, not a copy. Collective."""
        if self.kind == "none":
            return {}
        shadow = dict(zip(self._names, self._shadow, strict=True))
        state = {"updates": self.updates, "shadow": shadow, "statistics": self._gathered()}
        return state if self._estimated is None else {**state, "estimated": self._estimated}

    def _gathered(self) -> torch.Tensor:
        """Return the averaged statistics of all ranks, float32 [world, values]. Collective."""
        return self._statistics.gather(self._shadow_statistics)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state; on another world size every rank takes the mean of the statistics."""
        if not state:
            return
        self.updates = state["updates"]
        with torch.no_grad():
            for name, value in zip(self._names, self._shadow, strict=True):
                value.copy_(state["shadow"][name])
        estimated = state.get("estimated")
        self._estimated = None if estimated is None else estimated.to(self._shadow_statistics)
        rows = state["statistics"].to(self._shadow_statistics)
        same = len(rows) == torch.distributed.get_world_size()
        self._shadow_statistics = (rows[torch.distributed.get_rank()] if same else mean_over_ranks(rows)).clone()


def make_average(model: nn.Module, config: TrainConfig, steps: int) -> WeightAverage:
    """Return the average that the config asks for, in a run of so many steps."""
    return WeightAverage(model, config.average, config.ema_decay, round(config.swa_from * steps))
