"""How samples are read in a run."""

from __future__ import annotations

from dataclasses import dataclass

from bloodcell.data.decoder import Decoder
from bloodcell.data.resident import Cache


@dataclass(frozen=True)
class Reading:
    """How samples are read.

    Attributes:
        check: compare every image with its checksum.
        skip: leave samples out that cannot be read (leaving_out.py); without it they end the run.
        patience: seconds that reading one sample may take.
        depth: requests that are read ahead of the one that was taken.
        cache: where images are kept, if they are.
        reader: plan (each sample by itself), stream or webdataset (windows.py).
        side: images with a larger shorter side are scaled down to it before anything else; 0 leaves them.
        decoder: how DALI decodes.
    """

    check: bool = True
    skip: bool = False
    patience: float = 60.0
    depth: int = 2
    cache: Cache | None = None
    reader: str = "plan"
    side: int = 0
    decoder: Decoder = Decoder()  # noqa: RUF009 - frozen
