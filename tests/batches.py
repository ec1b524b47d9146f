"""What tests of loaders compare."""

from __future__ import annotations

import numpy as np
import torch

from bloodcell.data.loader import Batch


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    """Pixels, labels and ids are the same, bit for bit, batch by batch."""
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert np.array_equal(one.request.ids, other.request.ids)
