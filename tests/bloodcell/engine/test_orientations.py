"""Test-time augmentation and averaged weights on small networks, without a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bloodcell.engine.inference import as_ranges
from bloodcell.engine.orientations import ORIENTATIONS, orient, oriented_logits
from bloodcell.engine.soup import average
from shards.errors import BadInput


def images(layout: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 3, 8, 8).contiguous(memory_format=layout)


def test_there_are_eight_different_orientations_and_each_keeps_the_layout() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        shown = [orient(images(layout), number) for number in range(ORIENTATIONS)]
        assert torch.equal(shown[0], images())
        assert all(one.is_contiguous(memory_format=layout) for one in shown)
        assert not any(torch.equal(a, b) for i, a in enumerate(shown) for b in shown[:i])


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_orientations_that_are_offered_are_closed(count: int) -> None:
    known = [orient(images(), number) for number in range(count)]
    for number in range(count):
        for shown in known:
            assert any(torch.equal(orient(shown, number), other) for other in known)


def test_probabilities_are_averaged_so_that_the_turn_does_not_matter() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    with torch.inference_mode():
        assert torch.equal(oriented_logits(model, images(), 1), model(images()))
        eight = oriented_logits(model, images(), 8)
        mean = torch.stack([model(orient(images(), n)).softmax(1) for n in range(8)]).mean(0)
        torch.testing.assert_close(eight.softmax(1), mean)
        torch.testing.assert_close(oriented_logits(model, orient(images(), 5), 8), eight)
        assert not torch.allclose(model(images()).softmax(1), mean)


def test_weights_are_averaged_and_other_shapes_refused() -> None:
    one = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    two = {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor(9)}
    found = average([one, two])
    assert found["w"].tolist() == [2.0, 4.0]
    assert found["n"].item() == 3
    assert found["w"].dtype == torch.float32
    with pytest.raises(BadInput, match="same tensors"):
        average([one, {"w": torch.zeros(3), "n": torch.tensor(1)}])
    with pytest.raises(BadInput, match="same tensors"):
        average([one, {"w": torch.zeros(2)}])


def test_ids_become_ranges() -> None:
    assert as_ranges(np.array([3, 4, 5, 9, 11, 12])).tolist() == [[3, 6], [9, 10], [11, 13]]
    assert as_ranges(np.array([7])).tolist() == [[7, 8]]
    assert as_ranges(np.empty(0, dtype=np.int64)).shape == (0, 2)
