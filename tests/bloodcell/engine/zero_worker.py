"""Started under torchrun by test_deepspeed.py: trains a small CNN under several strategies, one after the other.

    zero_worker.py ORDERS.json OUT

Each order is {name, strategy, flags, K, begin, end, load, again}: steps [begin, end) of K micro-batches, from the state
in the folder `load` if there is one; `again` is a step at which the state is handed to a strategy made anew. Left in
OUT/name: model.safetensors, state.json with common.safetensors and rankN.safetensors, seen.json (norms, logits).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from bloodcell.config import Config, override
from bloodcell.engine.optim import build_optimizer
from bloodcell.engine.strategies import make_strategy
from bloodcell.engine.strategy import Strategy
from bloodcell.engine.tree import merge, pack_tree, unpack_tree
from bloodcell.ranks import Ranks, discover, process_group

CPU = torch.device("cpu")


def network() -> nn.Module:
    """BatchNorm, a 1x1 filter (contiguous in every layout, whatever its strides), and weights that ZeRO-3 cuts up."""
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    second = [nn.Conv2d(16, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 1)]
    last = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 801), nn.ReLU(), nn.Linear(801, 4)]
    return nn.Sequential(*first, *second, *last)


def micro_batch(step: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels that depend on nothing else."""
    draws = torch.Generator().manual_seed(step * 1000 + number)
    images = torch.randn(8, 3, 24, 24, generator=draws).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 4, (8,), generator=draws)


def build(config: Config, slots: int) -> Strategy:
    """A strategy around a fresh network."""
    model = network().to(memory_format=torch.channels_last)
    strategy = make_strategy(model, build_optimizer(model, config.optim, CPU), CPU, config, slots)
    strategy.warm_up(*micro_batch(0, 0))
    return strategy


def keep(strategy: Strategy, folder: Path, ranks: Ranks) -> None:
    """Write the state as the checkpoints do: what is common once, the rest by each rank."""
    common, mine = strategy.state_dict()
    for name, part in {"common": common, f"rank{ranks.rank}": mine}.items():
        if name != "common" or ranks.first:
            tensors: dict[str, torch.Tensor] = {}
            tree = pack_tree(part, tensors)
            save_file(
                {key: value.contiguous().clone() for key, value in tensors.items()}, folder / f"{name}.safetensors"
            )
            (folder / f"{name}.json").write_text(json.dumps(tree))
    if ranks.first:
        save_file({key: value.contiguous() for key, value in common["model"].items()}, folder / "model.safetensors")
    dist.barrier()


def kept(folder: Path) -> dict[str, Any]:
    """The state of all ranks in one."""
    state: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem != "seen":
            tree = json.loads(path.read_text())
            state = merge(state, unpack_tree(tree, load_file(path.with_suffix(".safetensors"))))
    return state


def run(order: dict[str, Any], out: Path, ranks: Ranks) -> None:
    """Carry out one order. Collective."""
    flags = {"engine.strategy": order["strategy"], "engine.device": "cpu", "train.micro_batches": order["K"]}
    defaults = {"engine.precision": "fp32", "data.micro_batch": 8, "optim.lr": 0.01}
    config = override(Config(), {**defaults, **flags, **order.get("flags", {})})
    slots = order["K"] // ranks.world
    folder = out / order["name"]
    folder.mkdir(parents=True, exist_ok=True)
    strategy = build(config, slots)
    if order.get("load"):
        strategy.load_state_dict(kept(Path(order["load"])))
    norms = []
    for step in range(order["begin"], order["end"]):
        if step == order.get("again"):
            keep(strategy, folder, ranks)
            strategy = build(config, slots)
            strategy.load_state_dict(kept(folder))
        for slot in range(slots):
            images, labels = micro_batch(step, ranks.rank * slots + slot)
            with strategy.slot(slot, slots):
                strategy.backward(nn.functional.cross_entropy(strategy.forward(images), labels) / slots)
        norms.append(float(strategy.step(0.01)))
    keep(strategy, folder, ranks)
    with strategy.averaged(), torch.inference_mode():
        strategy.model.eval()
        logits = strategy.model(micro_batch(0, 0)[0]).tolist()
    if ranks.first:
        (folder / "seen.json").write_text(json.dumps({"norms": norms, "logits": logits}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = discover()
    with process_group(here, CPU, 300):
        for wanted in json.loads(Path(sys.argv[1]).read_text()):
            run(wanted, Path(sys.argv[2]), here)
