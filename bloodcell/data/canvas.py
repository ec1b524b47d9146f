"""What the images are while they are augmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Canvas:
    """The side of the square images in pixels, and the device ("cpu" or "gpu") on which DALI holds them."""

    size: int
    device: str

    def beside(self, argument: Any) -> Any:
        """Return the node of an argument where it can be calculated with the images."""
        return argument.gpu() if self.device == "gpu" else argument
