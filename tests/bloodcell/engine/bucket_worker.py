"""Started under torchrun by test_buckets.py: does one step again and again from one state, and compares.

Three ranks sum gradients in an order that follows DDP's buckets, so the two outcomes are equal to the bit only if the
buckets were laid out for good before the first step. The network is large enough for two of them.
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import nn

from bloodcell.config import TORCHS_BUCKET, OptimConfig
from bloodcell.engine.ddp import DDP
from bloodcell.ranks import Ranks, discover, process_group

CPU = torch.device("cpu")


def main() -> None:
    """Compare the weights after a first step with those after the same step from the same state, later."""
    ranks = discover()
    with process_group(ranks, CPU, 120):
        same = [_same(ranks, bucket_mb) for bucket_mb in (TORCHS_BUCKET, 1)]
        if ranks.first:
            print("the same" if all(same) else "not the same", flush=True)


def _same(ranks: Ranks, bucket_mb: int) -> bool:
    """Whether a step has the same outcome whenever it is done, with buckets of this size."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(300, 300) for _ in range(6)), nn.Linear(300, 4))
    strategy = DDP(
        model, torch.optim.SGD(model.parameters(), lr=0.1), CPU, "fp32", OptimConfig(), ranks.world, bucket_mb=bucket_mb
    )
    strategy.warm_up(torch.linspace(-1, 1, 600).reshape(2, 300), torch.tensor([0, 1]))
    state = copy.deepcopy(strategy.state_dict()[0])
    outcomes = []
    for _ in range(4):
        strategy.load_state_dict(copy.deepcopy(state))
        torch.manual_seed(ranks.rank)
        images, labels = torch.randn(8, 300), torch.randint(0, 4, (8,))
        with strategy.slot(0, 1):
            strategy.backward(nn.functional.cross_entropy(strategy.forward(images), labels))
        strategy.step(0.1)
        outcomes.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone())
    return all(torch.equal(outcomes[0], other) for other in outcomes[1:])


if __name__ == "__main__":
    sys.exit(main())
