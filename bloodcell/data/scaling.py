"""The readers' resize as plain algebra: a row of weights for each output pixel. For graphs that leave this program.

An antialiased linear resize gives output pixel i of a window the mean of the source pixels j under a triangle around
its centre, as wide as an output pixel where it shrinks. The backends differ in two things. DALI repeats the border
beyond the image; torchvision's and PIL's kernels leave out what is beyond, and round to whole values after the first
axis too, and their weights are integers: of 16 bits in torchvision (ATen's UpSampleKernelAVXAntialias.h), of 22 bits
behind the point in PIL, which takes the windows whose edges lie between pixels. Measured on the CPU: those pixels
exactly, DALI's but for a level of 255 in few pixels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

UP = 1e-6
"""Added before rounding, so that exact ties are rounded alike by every program: their sums differ by about 1e-12."""

_BELOW = 2.0**15 - 0.5
_PIL_BITS = 22.0


class Window(nn.Module):
    """The largest central square of images, scaled to size x size pixels.

    In double precision: in single precision two programs that sum in another order round some pixels differently.

    Args:
        size: of the result, pixels.
        backend: whose pixels are wanted, "dali" or "cpu".
    """

    def __init__(self, size: int, backend: str) -> None:
        super().__init__()
        self.size, self.repeats = size, backend == "dali"

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 [n, 3, size, size], whole numbers from 0 to 255, of uint8 [n, height, width, 3]."""
        height, width = images.shape[1], images.shape[2]
        side = cast(int, torch.sym_min(height, width))  # the largest square, also while a graph is traced
        lengths = (height, width)
        if self.repeats:
            rows, columns = (self._repeated(length, side, images.device) for length in lengths)
            return whole(rows @ (_planes(images) @ columns.T)).to(torch.float32)
        between = (height - side) % 2 + (width - side) % 2
        rows, columns = (_integers(self._inside(length, side, images.device), between) for length in lengths)
        # These sums are exact, so their ties need no help.
        return (rows @ (_planes(images) @ columns.T + 0.5).floor() + 0.5).floor().to(torch.float32)

    def _repeated(self, length: int, side: int, device: torch.device) -> Tensor:
        """Return the weights of one axis, float64 [size, length], where the border goes on beyond the image."""
        places = torch.arange(-length, 2 * length, dtype=torch.float64, device=device) + 0.5
        shares = self._triangles(places, length, side)
        before, inside, behind = shares[:, :length], shares[:, length : 2 * length], shares[:, 2 * length :]
        first = inside[:, :1] + before.sum(1, keepdim=True)
        last = inside[:, -1:] + behind.sum(1, keepdim=True)
        return torch.cat([first, inside[:, 1:-1], last], 1)

    def _inside(self, length: int, side: int, device: torch.device) -> Tensor:
        """Return the same where only pixels of the image count; of the window, where its edges lie between pixels."""
        places = torch.arange(0, length, dtype=torch.float64, device=device) + 0.5
        start = (length - side) // 2 * (1 - (length - side) % 2)
        return self._triangles(places, length, side, ((places > start) & (places < length - start)).to(torch.float64))

    def _triangles(self, places: Tensor, length: int, side: int, counts: Tensor | float = 1.0) -> Tensor:
        """Return each place's share in each output pixel; the window is `side` pixels in the middle of the axis."""
        outputs = torch.arange(self.size, dtype=torch.float64, device=places.device) + 0.5
        step = torch.ones_like(outputs[:1]) * side / self.size
        centres = (length - side) / 2 + outputs * step
        shares = (1 - (places[None] - centres[:, None]).abs() / step.clamp(min=1.0)).clamp(min=0) * counts
        return shares / shares.sum(1, keepdim=True)


def _planes(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).to(torch.float64)


def _integers(weights: Tensor, between: int) -> Tensor:
    """Return the weights of an axis as the kernels keep them: of PIL where edges lie `between` pixels, else ATen's."""
    # ATen takes the most bits with which the largest weight stays below 2^15.
    bits = ((_BELOW / weights.max()).log2().ceil() - 1).clamp(max=_PIL_BITS)
    bits = bits + (_PIL_BITS - bits) * between
    return (weights * 2.0**bits + 0.5).floor() / 2.0**bits


def whole(values: Tensor) -> Tensor:
    """Return values rounded to whole levels of 0 to 255."""
    return (values + UP).round().clamp(0, 255)
