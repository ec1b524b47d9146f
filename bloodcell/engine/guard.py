"""What all ranks agree on after every step: is all finite, the loss, which samples, was one signalled, can each go on.

One small sum over ranks per step carries it all. Its result is looked at one step later, so that the host never waits
for the device; nothing is saved before it was looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bloodcell.data.leaving_out import LeftOut
from bloodcell.data.order import DIGEST_MASK, step_digest
from bloodcell.data.request import Request
from bloodcell.engine.agree import gather_texts
from bloodcell.engine.preemption import asked
from shards.errors import Fault

LIMB = 21
"""Bits of the digest carried by each float64: sums over 2**32 ranks stay exact."""


@dataclass
class StepRecord:
    """One step under way: its number, this rank's requests and losses, and the sum over ranks."""

    step: int
    requests: list[Request] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    total: torch.Tensor | None = None
    ready: torch.cuda.Event | None = None


@dataclass(frozen=True)
class StepReport:
    """A finished step: its number, the mean loss over all its micro-batches, its gradient norm, its lineage digest."""

    step: int
    loss: float
    grad_norm: float
    digest: int
    left_out: tuple[dict[str, Any], ...] = ()
    """Samples that others stood in for, over all ranks (leaving_out.LeftOut)."""


class Guard:
    """Watches every micro-batch of this rank.

    Args:
        device: of this rank.
        describe: names a sample id for the message.
        check_norm: whether a gradient norm that is not finite is a fault (under fp16 the scaler skips such steps).
    """

    def __init__(self, device: torch.device, describe: Callable[[int], str], check_norm: bool = True) -> None:
        self.device, self.describe, self.check_norm = device, describe, check_norm
        self._current: StepRecord | None = None
        self._last: StepRecord | None = None
        self.stop = False
        """Whether a signal asked any rank to stop, as far as the reports that were read say: alike on all ranks."""
        self.unreadable = False
        """Whether any rank cannot read a sample of a coming step; in the same way."""

    @property
    def leave(self) -> bool:
        """Whether all ranks shall save and leave; alike on all."""
        return self.stop or self.unreadable

    def begin(self, step: int) -> None:
        """Start a step."""
        self._current = StepRecord(step)

    def watch(self, request: Request, loss: torch.Tensor) -> None:
        """Note a micro-batch and its mean loss (a scalar on the device)."""
        assert self._current is not None
        self._current.requests.append(request)
        self._current.losses.append(loss.detach())

    def end(self, norm: torch.Tensor, unreadable: bool = False) -> StepReport | None:
        """End the step; return the report of the step before it. Collective.

        Args:
            norm: of the gradient.
            unreadable: whether this rank cannot read a sample of the next two steps.

        Raises:
            Fault: a loss or gradient of that step is not finite; names its samples. On all ranks alike.
        """
        assert self._current is not None
        record, before = self._current, self._last
        losses = torch.stack(record.losses).double()
        bad = (~torch.isfinite(losses)).sum().double()
        if self.check_norm:
            bad = bad + (~torch.isfinite(norm)).double()
        digest = sum(step_digest(r.ids, r.occurrences, record.step) for r in record.requests) & DIGEST_MASK
        limbs = [float(digest >> (LIMB * i) & ((1 << LIMB) - 1)) for i in range(3)]
        left_out = sum(len(r.left_out) for r in record.requests)
        told = [float(asked()), float(unreadable), float(left_out), *limbs]
        sums = torch.cat(
            [
                torch.stack([bad, losses.sum(), torch.full_like(bad, len(losses)), norm.detach().double()]),
                torch.tensor(told, dtype=torch.float64).to(self.device, non_blocking=True),
            ]
        )
        report = self._read(before)
        dist.all_reduce(sums)
        record.total, record.ready = to_host(sums)
        self._last, self._current = record, None
        return report

    def flush(self) -> StepReport | None:
        """Return the report of the last step; call it before saving. Raises Fault like end()."""
        report, self._last = self._read(self._last), None
        return report

    def _read(self, record: StepRecord | None) -> StepReport | None:
        if record is None or record.total is None:
            return None
        if record.ready is not None:
            record.ready.synchronize()
        bad, loss, count, norm, signalled, unreadable, left_out, *limbs = record.total.tolist()
        self.stop = self.stop or signalled > 0
        self.unreadable = self.unreadable or unreadable > 0
        if bad:
            self._fail(record)
        digest = sum(int(limb) << (LIMB * i) for i, limb in enumerate(limbs)) & DIGEST_MASK
        told = self._left_out(record) if left_out else ()
        return StepReport(record.step, loss / count, norm / dist.get_world_size(), digest, told)

    def _left_out(self, record: StepRecord) -> tuple[dict[str, Any], ...]:
        """Gather which samples were left out of a step, on all ranks, in the order of micro-batches and rows."""
        first = dist.get_rank() * len(record.requests)
        mine = [
            asdict(LeftOut(record.step, first + slot, *one))
            for slot, request in enumerate(record.requests)
            for one in sorted(request.left_out)
        ]
        return tuple(one for text in gather_texts(json.dumps(mine)) for one in json.loads(text))

    def _fail(self, record: StepRecord) -> None:
        """Gather the ids of the bad micro-batches of all ranks and raise on every rank."""
        rows = np.stack([r.ids for r in record.requests]).astype(np.int64)
        fine = torch.isfinite(torch.stack(record.losses)).cpu().numpy()
        rows[fine] = -1
        mine = torch.from_numpy(rows).to(self.device)
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine)
        found = [(rank, int(i)) for rank, ids in enumerate(gathered) for i in ids.reshape(-1).tolist() if i >= 0]
        ranks = sorted({rank for rank, _ in found})
        keys = ", ".join(self.describe(i) for _, i in found) or "every loss was finite, the gradient was not"
        where = f"step {record.step}" + (f", ranks {ranks}" if ranks else "")
        raise Fault(
            f"the loss or its gradient is not finite; samples: {keys}",
            where,
            "lower the learning rate or look at the images",
        )


def to_host(values: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Start copying `values` to the host; the event, where there is one, says when the copy may be read."""
    if values.device.type != "cuda":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return host, ready
