"""What the page takes at once. It loads no torch, so that the command line can read it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from shards.errors import BadInput

AT_ONCE = 8
"""Images of the largest allowed size that may be decoded at the same time; bounds the memory of one request."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    Attributes:
        images: that are answered; those behind them are rows with a reason.
        megabytes: of one file (10^6 bytes).
        total_megabytes: of one upload; a larger one is refused as a whole.
        megapixels: of one image (10^6 pixels), told by its header before it is decoded.
        waiting: requests that may wait for their turn; the next one is asked to come again.
    """

    images: int = 100
    megabytes: float = 20.0
    total_megabytes: float = 200.0
    megapixels: float = 25.0
    waiting: int = 100

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise BadInput(
                    f"{getattr(self, field.name)} will not do", f"--max-{field.name}", "give a positive number"
                )
