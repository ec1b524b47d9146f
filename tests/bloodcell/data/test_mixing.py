"""Mixed images: shares that add up, boxes that are what the label says, the same on any device order and batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bloodcell.data.mixing import Mixing
from bloodcell.data.request import Request


def _request(n: int = 64, first: int = 0) -> Request:
    ids = np.arange(first, first + n, dtype=np.int64)
    return Request(ids, np.zeros(n, dtype=np.int64), 3, np.ones(n, dtype=bool))


def _plain(n: int = 64, size: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose every pixel is the image's number, and labels that are the number modulo 4."""
    numbers = torch.arange(n, dtype=torch.float32)
    images = numbers[:, None, None, None].expand(n, 3, size, size).contiguous(memory_format=torch.channels_last)
    return images, torch.arange(n) % 4


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.3, 0.7)])
def test_labels_say_how_much_of_which_image_is_there(mixup: float, cutmix: float) -> None:
    images, labels = _plain()
    mixed, target = Mixing(mixup, cutmix, 1)(_request(), images, labels, 4)
    assert mixed.shape == images.shape
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(target.sum(1), torch.ones(64))
    kinds = set()
    for row in range(64):
        values = mixed[row, 0].unique()
        if len(values) == 2:  # a box of the partner
            kinds.add("cutmix")
            share = (mixed[row, 0] == row).float().mean()
            partner = int(values[values != row])
        elif float(values[0]) != row:
            kinds.add("mixup")
            continue
        else:
            continue
        expected = torch.zeros(4)
        expected[row % 4] += share
        expected[partner % 4] += 1 - share
        torch.testing.assert_close(target[row], expected)
    assert kinds == ({"mixup"} if mixup else set()) | ({"cutmix"} if cutmix else set())


def test_blended_pixels_have_the_share_of_the_label() -> None:
    images, _ = _plain(2)
    mixed, target = Mixing(1.0, 0.0, 5)(_request(2), images, torch.tensor([0, 1]), 2)
    torch.testing.assert_close(mixed[:, 0, 0, 0], target[:, 1])


def test_what_an_image_draws_depends_on_its_id_alone() -> None:
    mixing = Mixing(0.3, 1.0, 1)
    whole, later = (mixing._drawn(request, 20, 20) for request in (_request(64), _request(32, 32)))
    np.testing.assert_array_equal(whole[0][32:], later[0])
    np.testing.assert_array_equal(whole[1][32:], later[1])


def test_the_shares_follow_the_beta_distribution() -> None:
    keep, _, partner = Mixing(0.4, 0.0, 2)._drawn(_request(20_000), 8, 8)
    assert keep.mean() == pytest.approx(0.5, abs=0.01)
    assert keep.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.005)
    assert (partner != np.arange(20_000)).all()


def test_without_mixing_nothing_is_touched() -> None:
    images, labels = _plain(4)
    mixed, target = Mixing(0.0, 0.0, 0)(_request(4), images, labels, 4)
    assert mixed is images
    assert target is labels
