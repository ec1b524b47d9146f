"""DistributedDataParallel behind the strategy interface: gloo on CPU, NCCL on GPU."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from bloodcell.config import TORCHS_BUCKET, OptimConfig
from bloodcell.engine.batchnorm import BatchNormStatistics
from bloodcell.engine.optim import add_l1, clip_gradients, set_learning_rate
from bloodcell.engine.warming import untraced
from shards.errors import BadInput

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class DDP:
    """Every rank holds the whole model; gradients are averaged during the last slot's backward.

    Args:
        model: the network, on its device.
        optimizer: over its parameters.
        device: of this rank.
        precision: fp32, bf16 or fp16 (autocast; fp16 with a gradient scaler).
        config: of the optimizer: L1 penalty and largest gradient norm.
        micro_batches: in a step over all ranks, to keep BatchNorm's counters independent of the world size.
        compress: whether gradients travel as bf16 (NCCL only).
        bucket_mb: MiB of gradients that travel together; TORCHS_BUCKET is torch's own layout.
        compiler: makes compiled code of the network, which the steps then run.
    """

    name = "ddp"

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: str,
        config: OptimConfig,
        micro_batches: int,
        compress: bool = False,
        bucket_mb: int = TORCHS_BUCKET,
        compiler: Callable[[nn.Module, BatchNormStatistics], nn.Module] | None = None,
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.precision, self.config, self.micro_batches = precision, config, micro_batches
        self.steps, self._compress, self._bucket = 0, compress, bucket_mb
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._statistics = BatchNormStatistics(model)
        self._weights = list[torch.Tensor](model.parameters())
        self._compiler = compiler
        self._net: nn.Module = self._wrapped(share_weights=True)

    def _wrapped(self, share_weights: bool) -> DistributedDataParallel:
        with warnings.catch_warnings():
            # The successor of broadcast_buffers is not there before torch 2.14.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(
                self._compiler(self.model, self._statistics) if self._compiler else self.model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                # BatchNorm statistics stay local and are averaged when needed (batchnorm.py).
                broadcast_buffers=False,
                bucket_cap_mb=None if self._bucket == TORCHS_BUCKET else self._bucket,
                gradient_as_bucket_view=True,
                static_graph=True,
                init_sync=share_weights,
            )
        if self._compress:
            wrapped.register_comm_hook(None, bf16_compress_hook)
        return wrapped

    def rewrap(self) -> None:
        """Take up that other weights need gradients than before: warm_up() must follow. Collective.

        The first rank's weights are not sent out again: they are the same everywhere, and its own BatchNorm statistics
        would go with them.
        """
        self._net = self.model  # the old wrapper takes its hooks along before the new one sets its own
        gc.collect()
        self._net = self._wrapped(share_weights=False)

    def warm_up(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Do two forwards and backwards that leave no trace.

        DDP lays its gradient buckets out anew once it knows the order in which gradients arrive, and beyond two ranks
        the order of summation follows that layout; a resumed process would repeat the first layout and drift from the
        undisturbed run. A static graph counts its hooks in the first backward and notes their order in the second.
        """
        with untraced(self.model):
            for _ in range(2):
                loss = nn.functional.cross_entropy(self.forward(images), labels)
                loss.backward()
                self.optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def slot(self, index: int, slots: int) -> Iterator[None]:
        """Surround the forward and backward of one micro-batch; gradients travel in the last one only."""
        self._statistics.enter_slot(index, slots)
        with contextlib.nullcontext() if index == slots - 1 else self._net.no_sync():  # type: ignore[operator]
            yield

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes], float32."""
        with autocast(self.device, self.precision):
            return self._net(images).float()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's loss."""
        self._scaler.scale(loss).backward()

    def step(self, rate: float) -> torch.Tensor:
        """Clip, move the weights, forget the gradients; return the gradient norm."""
        self._statistics.leave_slots()
        set_learning_rate(self.optimizer, rate)
        self._scaler.unscale_(self.optimizer)
        add_l1(self.optimizer, self.config.l1)
        norm = clip_gradients(self._weights, self.config.clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return norm

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Hold BatchNorm statistics averaged over ranks inside the block. Collective."""
        self._statistics.count_steps(self.steps * self.micro_batches)
        with self._statistics.averaged():
            yield

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return model (averaged statistics), optimizer, scaler and every rank's own statistics; no rank holds more.

        Parameters and optimizer state are those that training goes on with, not copies. Collective.
        """
        own = self._statistics.gather(self._statistics.read())
        parameters = {name for name, _ in self.model.named_parameters()}
        with self.averaged():
            model = {
                name: value.detach() if name in parameters else value.detach().clone()
                for name, value in self.model.state_dict().items()
            }
        common = {
            "strategy": self.name,
            "steps": self.steps,
            "model": model,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "statistics": own,
        }
        return common, {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of any world size; each rank's own statistics return where the size is the same."""
        if state["strategy"] != self.name:
            raise BadInput(
                f"the checkpoint was written by {state['strategy']}", "engine.strategy", f"use {state['strategy']}"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        lay_out_alike(self.optimizer)
        self._scaler.load_state_dict(state["scaler"])
        self.steps = state["steps"]
        rows = state["statistics"]
        if len(rows) == torch.distributed.get_world_size():
            self._statistics.write(rows[torch.distributed.get_rank()].to(self.device))


def lay_out_alike(optimizer: torch.optim.Optimizer) -> None:
    """Give the state of each weight the memory layout of the weight, as it had before it was saved.

    Files hold values in one order. A norm over a state that lies otherwise than before sums in another order.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            alike = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if alike and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context of a precision; fp32 is none."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])
