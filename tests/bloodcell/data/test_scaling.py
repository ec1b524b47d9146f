"""Scaling as plain algebra gives the pixels of the readers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bloodcell.data.pipeline import View
from bloodcell.data.pixels import Pixels
from bloodcell.data.policies import POLICIES
from bloodcell.data.scaling import Window


@pytest.mark.parametrize("backend", ["dali", "cpu"])
@pytest.mark.parametrize(("height", "width", "size"), [(224, 224, 96), (363, 360, 224), (61, 80, 64), (40, 90, 96)])
def test_it_is_the_cpu_backend_exactly_and_dali_to_a_level(height: int, width: int, size: int, backend: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    view = View(size, (0.0, 0.0, 0.0), (1 / 255,) * 3, POLICIES["none"], 0, backend=backend)
    theirs = Pixels(view, 4, 1, torch.device("cpu"))(list(images)).round()
    ours = Window(size, backend)(torch.from_numpy(images))
    difference = (ours - theirs).abs()
    assert difference.max() <= (1 if backend == "dali" else 0)
    assert (difference > 0).float().mean() < 0.01
