"""Mixed images and labels: mixup and CutMix inside a micro-batch, drawn per sample, computed on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from bloodcell.data.draws import Draws
from bloodcell.data.request import Request


@dataclass(frozen=True)
class Mixing:
    """How images of a micro-batch are mixed with each other; no mixing with both at 0.

    Attributes:
        mixup: alpha of the Beta distribution of the share that an image keeps (Zhang et al., mixup, 2018).
        cutmix: the same for the area that it keeps when a box of its partner is pasted (Yun et al., CutMix, 2019).
        seed: of the draws.
    """

    mixup: float
    cutmix: float
    seed: int

    def __call__(
        self, request: Request, images: torch.Tensor, labels: torch.Tensor, classes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mixed images, same shape, and probabilities float32 [n, classes]; without mixing, what was given.

        Args:
            request: what the batch holds: the draws depend on its ids, occurrences and epoch alone.
            images: float [n, 3, height, width].
            labels: int64 [n].
            classes: how many there are.
        """
        if not self.mixup and not self.cutmix:
            return images, labels
        keep, box, partner = self._drawn(request, images.shape[2], images.shape[3])
        device = images.device
        others, kept = torch.from_numpy(partner).to(device), torch.from_numpy(keep).to(device, images.dtype)
        inside = _inside(torch.from_numpy(box).to(device), images.shape[2], images.shape[3])
        blend = kept[:, None, None, None]
        whole = (box[:, 2] <= box[:, 0]) | (box[:, 3] <= box[:, 1])  # no box: the whole image is blended
        flat = torch.from_numpy(whole).to(device)[:, None, None, None]
        other = images[others]
        mixed = torch.where(flat, blend * images + (1 - blend) * other, torch.where(inside, other, images))
        target = functional.one_hot(labels, classes).float()
        share = kept.float()[:, None]
        layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        mixed = mixed.contiguous(memory_format=layout or torch.contiguous_format)
        return mixed, share * target + (1 - share) * target[others]

    def _drawn(self, request: Request, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the shares that images keep float64 [n], boxes int64 [n, 4] (top, left, bottom, right), partners."""
        from scipy.special import betaincinv  # slow to load, and most runs do not mix

        draws = Draws(self.seed, request.epoch, request.ids, request.occurrences)
        cuts = draws.coin("mix.kind", self.cutmix / (self.mixup + self.cutmix) if not self.mixup else 0.5)
        if not self.cutmix:
            cuts = np.zeros_like(cuts)
        alpha = np.where(cuts, self.cutmix or 1.0, self.mixup or 1.0)
        keep = betaincinv(alpha, alpha, draws.uniform("mix.lambda"))
        # A partner is any other image of the micro-batch.
        rows = np.arange(len(request.ids))
        partner = (rows + 1 + draws.choice("mix.partner", max(len(rows) - 1, 1))) % len(rows)
        box = np.zeros((len(rows), 4), dtype=np.int64)
        tall, wide = np.sqrt(1 - keep) * height, np.sqrt(1 - keep) * width
        middle_y, middle_x = draws.uniform("mix.y") * height, draws.uniform("mix.x") * width
        edges = [middle_y - tall / 2, middle_x - wide / 2, middle_y + tall / 2, middle_x + wide / 2]
        limits = (height, width, height, width)
        for place, (edge, limit) in enumerate(zip(edges, limits, strict=True)):
            box[cuts, place] = np.clip(np.rint(edge), 0, limit).astype(np.int64)[cuts]
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        # What the edge of the image cut off the box still belongs to the image; an empty box leaves it whole.
        return np.where(cuts, 1 - area / (height * width), keep), box, partner


def _inside(box: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return which pixels lie in the boxes, bool [n, 1, height, width]."""
    rows, columns = torch.arange(height, device=box.device), torch.arange(width, device=box.device)
    tall = (rows >= box[:, :1]) & (rows < box[:, 2:3])
    wide = (columns >= box[:, 1:2]) & (columns < box[:, 3:4])
    return (tall[:, :, None] & wide[:, None, :])[:, None]
