"""What one batch shall hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Request:
    """What one batch shall hold: ids, occurrences (int64 [n]), the epoch for the draws, and which rows count.

    `left_out` says which samples should have been in it and could not be read: (row, id, problem) each; others stand
    in these rows. `window`: sequential readers read requests in a row with the same number together; -1 is alone.
    """

    ids: np.ndarray
    occurrences: np.ndarray
    epoch: int
    valid: np.ndarray
    left_out: tuple[tuple[int, int, str], ...] = ()
    window: int = -1
