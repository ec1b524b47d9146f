"""DeepSpeed behind the strategy interface: ZeRO-0 (whole copies) to ZeRO-3 (state, gradients, weights shared out)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bloodcell.config import Config
from bloodcell.engine.batchnorm import BatchNormStatistics, mean_over_ranks
from bloodcell.engine.optim import add_l1, clip_gradients, set_learning_rate
from bloodcell.engine.zero_config import launched, prepare_machine, stage_of, zero_config
from bloodcell.engine.zero_pieces import pieces, read_pieces, write_pieces
from shards.console import say
from shards.errors import BadInput, EnvironmentFault


class Zero:
    """ZeRO stage 0 to 3; numbers, slots, learning rate, BatchNorm statistics and checkpoints stay ours.

    Under stage 3 no rank holds the network: `model` is a plain copy that is filled inside averaged().

    Args:
        model: the network, on its device.
        optimizer: over its parameters.
        device: of this rank.
        config: resolved; its engine.strategy says which stage.
        slots: micro-batches of a step on this rank.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, config: Config, slots: int
    ) -> None:
        self.name: str = config.engine.strategy
        self.stage = stage_of(self.name)
        self.optimizer, self.device, self.config, self.slots = optimizer, device, config.optim, slots
        self.steps, self.micro_batches = 0, config.train.micro_batches
        self._reduction = contextlib.ExitStack()
        self._shapes = {name: p.numel() for name, p in model.named_parameters()}
        self._network, self._parameters = model, list[torch.Tensor](model.parameters())
        self.model = copy.deepcopy(model) if self.stage == 3 else model
        self._statistics = BatchNormStatistics(model)
        if self.stage:
            self._penalise()
        settings = zero_config(config, sum(self._shapes.values()))
        self._engine: Any = _initialize(model, optimizer, device, settings)

    def _penalise(self) -> None:
        """Add the L1 penalty's gradient where a weight's gradient arises: later no rank has all of it."""
        strength = self.config.l1 / self.slots
        for group in self.optimizer.param_groups:
            if strength and group["l1"]:
                for weight in group["params"]:
                    weight.register_hook(lambda grad, weight=weight: grad.add(weight.detach().sign(), alpha=strength))

    def rewrap(self) -> None:
        """Take up that other weights need gradients than before: stage 0 sees it by itself, others refuse it."""

    def warm_up(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Do nothing: DeepSpeed lays its buckets out once, in an order that no step changes."""

    @contextlib.contextmanager
    def slot(self, index: int, slots: int) -> Iterator[None]:
        """Surround the forward and backward of one micro-batch; gradients travel after the last one only.

        Also under stages 2 and 3, which then hold whole gradients while they are summed: sent slot by slot they would
        be summed in another order than under DDP, and `slots` times as many.
        """
        self._statistics.enter_slot(index, slots)
        if index == 0 and slots > 1 and self.stage:
            self._reduction.enter_context(self._engine.coalesce_grad_reduction())
        quiet = not self.stage and index < slots - 1
        with self._engine.no_sync() if quiet else contextlib.nullcontext():
            yield
        if index == slots - 1:
            self._reduction.close()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes], float32; DeepSpeed does the autocast."""
        logits: torch.Tensor = self._engine(images)
        return logits.float()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's loss."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, rate: float) -> torch.Tensor:
        """Clip, move the weights, forget the gradients; return the gradient norm (inf if it is not finite)."""
        self._statistics.leave_slots()
        set_learning_rate(self.optimizer, rate)
        norm = None if self.stage else self._clip()
        self._engine.step()
        self.steps += 1
        if norm is None:
            norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)
        return norm.to(self.device)

    def _clip(self) -> torch.Tensor:
        add_l1(self.optimizer, self.config.l1)
        return clip_gradients(self._parameters, self.config.clip)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Hold BatchNorm statistics averaged over ranks inside the block; stage 3 also whole weights. Collective."""
        self._statistics.count_steps(self.steps * self.micro_batches)
        if self.stage < 3:
            with self._statistics.averaged():
                yield
            return
        self.model.to(self.device)
        self._fill()
        own = self._statistics.gather(self._statistics.read())
        BatchNormStatistics(self.model).write(mean_over_ranks(own))
        yield
        if self.device.type != "cpu":
            self.model.to("cpu")

    @torch.no_grad()
    def _fill(self) -> None:
        """Copy weights and buffers of the shared-out network into the plain one. Collective."""
        from deepspeed.runtime.zero import GatheredParameters

        for theirs, ours in zip(self._network.parameters(), self.model.parameters(), strict=True):
            with GatheredParameters([theirs]):
                ours.copy_(theirs)
        for buffer, kept in zip(self._network.buffers(), self.model.buffers(), strict=True):
            kept.copy_(buffer)

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what every rank has (weights, all ranks' statistics) and what this one has. Collective.

        The optimizer state is kept by the name of the weight, in pieces, so that any number of ranks can take it up.
        """
        own = self._statistics.gather(self._statistics.read())
        with self.averaged():
            model = self._weights()
        common = {"strategy": self.name, "steps": self.steps, "model": model, "statistics": own}
        if not self.stage:
            return {**common, "optimizer": self.optimizer.state_dict()}, {}
        mine = read_pieces(pieces(self._network, self._engine.optimizer, self.stage), self.optimizer)
        return common, {"pieces": mine}

    def _weights(self) -> dict[str, torch.Tensor]:
        names = {name for name, _ in self.model.named_parameters()}
        whole = self.model.state_dict()
        return {name: value.detach() if name in names else value.detach().clone() for name, value in whole.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of any world size; each rank's own statistics return where the size is the same."""
        if state["strategy"] != self.name:
            what = f"the checkpoint holds the optimizer state of {state['strategy']}"
            raise BadInput(what, "engine.strategy", f"use {state['strategy']}")
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])
        if not self.stage:
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            if self.stage == 3:
                self._spread()
            self._engine.optimizer.refresh_fp32_params()
            found = pieces(self._network, self._engine.optimizer, self.stage)
            write_pieces(found, self.optimizer, state["pieces"], self._shapes)
        rows = state["statistics"]
        if len(rows) == dist.get_world_size():
            self._statistics.write(rows[dist.get_rank()].to(self.device))

    @torch.no_grad()
    def _spread(self) -> None:
        """Copy weights and buffers of the plain network into the shared-out one. Collective."""
        from deepspeed.runtime.zero import GatheredParameters

        for theirs, ours in zip(self._network.parameters(), self.model.parameters(), strict=True):
            with GatheredParameters([theirs], modifier_rank=0):
                theirs.copy_(ours)
        for buffer, kept in zip(self._network.buffers(), self.model.buffers(), strict=True):
            buffer.copy_(kept)


def _initialize(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, config: dict[str, Any]
) -> Any:
    """Return DeepSpeed's engine around the network; the process group is up.

    Raises:
        EnvironmentFault: its extension cannot be compiled.
    """
    folder = prepare_machine(device)
    if folder is not None and dist.get_rank() == 0:
        say(f"DeepSpeed compiles an extension, once (about a minute of one core); it is kept in {folder}")
    dist.barrier()  # nobody asks whether it is there before the first rank has
    strides = [p.stride() for p in model.parameters()]
    for parameter in model.parameters():
        # DeepSpeed sends weights out as bytes in a row; contiguous() would let a 1x1 filter keep its strides.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    with launched(device):
        import deepspeed

        try:
            # The process group is ours; without this DeepSpeed would look for MPI where its variables are not set.
            deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        except (RuntimeError, OSError) as error:
            what = f"DeepSpeed's extension cannot be compiled: {str(error).splitlines()[0]}"
            raise EnvironmentFault(what, folder or "", "is the compiler whole?") from error
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    if config["zero_optimization"]["stage"] == 0:  # elsewhere weights now lie in rows
        for parameter, stride in zip(model.parameters(), strides, strict=True):
            before = torch.empty_strided(parameter.shape, stride, dtype=parameter.dtype, device=parameter.device)
            parameter.data = before.copy_(parameter.data)
    return engine
