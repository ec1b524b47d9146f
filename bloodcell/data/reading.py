"""How samples are read in a run."""

from __future__ import annotations

from dataclasses import dataclass

from bloodcell.data.resident import DeviceCache, HostCache


@dataclass(frozen=True)
class Reading:
    """How samples are read.

    Attributes:
        check: compare every image with its checksum.
        skip: leave samples out that cannot be read (leaving_out.py); without it they end the run.
        patience: seconds that reading one sample may take.
        depth: requests that are read ahead of the one that was taken.
        cache: where decoded images are kept, if they are.
        reader: plan (each sample by itself), stream or webdataset (windows.py).
    """

    check: bool = True
    skip: bool = False
    patience: float = 60.0
    depth: int = 2
    cache: HostCache | DeviceCache | None = None
    reader: str = "plan"
