"""The parts of flattened, shared-out tensors that belong to one weight: what ZeRO-1/2/3 leave on a rank, by name.

ZeRO flattens the weights of a parameter group one behind the other and cuts the row into as many parts as there are
ranks (Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, SC 2020, section 5);
ZeRO-3 cuts every weight on its own. A piece says which elements of which weight stand where in a rank's part. With it
optimizer state is written without any communication and read back on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + count) of the flattened weight `name`, at `offset` of this rank's part `flat`."""

    name: str
    start: int
    count: int
    flat: torch.Tensor
    offset: int


def pieces(model: nn.Module, optimizer: Any, stage: int) -> Iterator[Piece]:
    """Yield this rank's pieces of all trained weights, in the order of the weights.

    Args:
        model: the network that DeepSpeed has taken over.
        optimizer: DeepSpeed's, around the torch optimizer.
        stage: of ZeRO, 1 to 3.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        found = _cut_alone(name, parameter, optimizer) if stage == 3 else _cut_in_a_row(name, parameter, optimizer)
        if found is not None:
            yield found


def _cut_in_a_row(name: str, parameter: Any, optimizer: Any) -> Piece | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None  # the weight lies in other ranks' parts
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    inside, place = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Piece(name, inside.start, inside.numel, flat, place.start)


def _cut_alone(name: str, parameter: Any, optimizer: Any) -> Piece | None:
    group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank() * length
    count = min(length, parameter.ds_numel - start)  # the last parts are filled up with zeros
    return Piece(name, start, count, optimizer.fp32_partitioned_groups_flat[group], offset) if count > 0 else None


def read_pieces(found: Iterator[Piece], optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return the optimizer state of this rank's pieces: {"name@start": {key: elements, or a value for all}}.

    They are those that training goes on with, not copies. Tensors as long as the part are cut to the piece [count];
    anything else, as a step count, is kept whole.
    """
    state: dict[str, dict[str, Any]] = {}
    for piece in found:
        whole = optimizer.state.get(piece.flat, {})
        state[f"{piece.name}@{piece.start}"] = {key: _cut(value, piece) for key, value in whole.items()}
    return state


def _cut(value: Any, piece: Piece) -> Any:
    if isinstance(value, torch.Tensor) and value.shape == piece.flat.shape:
        return value.detach().narrow(0, piece.offset, piece.count)
    return value


def write_pieces(
    found: Iterator[Piece], optimizer: torch.optim.Optimizer, saved: dict[str, dict[str, Any]], shapes: dict[str, int]
) -> None:
    """Set the optimizer state of this rank's pieces from those of all ranks of the run that wrote them.

    Args:
        found: this rank's pieces.
        optimizer: the torch optimizer over the flat parts.
        saved: as read_pieces() gave it, of all ranks together.
        shapes: elements of every weight.
    """
    wholes = _joined(saved, shapes)
    fused = any(group.get("fused") for group in optimizer.param_groups)  # such kernels count steps on the device
    for piece in found:
        state = optimizer.state[piece.flat]
        for key, value in wholes.get(piece.name, {}).items():
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                state[key] = value.to(piece.flat.device) if fused and isinstance(value, torch.Tensor) else value
                continue
            if key not in state:
                state[key] = torch.zeros_like(piece.flat)
            state[key].narrow(0, piece.offset, piece.count).copy_(value.narrow(0, piece.start, piece.count))


def _joined(saved: dict[str, dict[str, Any]], shapes: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Return {name: {key: the whole weight's elements, flat, or a value for all of them}}."""
    wholes: dict[str, dict[str, Any]] = {}
    for label, state in saved.items():
        name, _, start = label.rpartition("@")
        for key, value in state.items():
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                wholes.setdefault(name, {})[key] = value
                continue
            whole = wholes.setdefault(name, {}).setdefault(key, torch.zeros(shapes[name], dtype=value.dtype))
            whole.narrow(0, int(start), len(value)).copy_(value)
    return wholes
