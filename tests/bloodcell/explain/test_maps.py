"""Maps, regions and checks on networks and images whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from scipy.stats import spearmanr
from torch import nn

from bloodcell.explain import embeddings, regions, sanity
from bloodcell.explain.gradcam import GradCAM, last_feature_map
from bloodcell.explain.occlusion import Occlusion
from bloodcell.explain.rollout import Rollout, has_attention
from bloodcell.models import zoo
from shards.errors import BadInput

SIZE = 48


class Reddest(nn.Module):
    """Two classes: how much red there is, and how much blue."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[0, 0, 1, 1] = self.conv.weight[1, 2, 1, 1] = 1.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, 2]."""
        return 40 * self.conv(images).relu().mean(dim=(2, 3))


def _squares() -> torch.Tensor:
    """Two images: a red square in the upper left and a blue one in the lower right."""
    images = torch.zeros(2, 3, SIZE, SIZE)
    images[:, 0, 4:16, 4:16] = 1.0
    images[:, 2, 30:42, 30:42] = 1.0
    return images


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_maps_lie_on_what_the_class_depends_on(method: str) -> None:
    images, model = _squares(), Reddest().eval()
    mapper = GradCAM(model, images[:1]) if method == "gradcam" else Occlusion(model)
    maps = mapper(images, torch.tensor([0, 1]))
    assert maps.shape == (2, SIZE, SIZE)
    assert float(maps.min()) >= 0
    assert float(maps.max()) == 1
    for heat, inside in ((maps[0], maps[0, :20, :20]), (maps[1], maps[1, 26:, 26:])):
        assert float(inside.sum() / heat.sum()) > 0.9


def test_a_frozen_network_has_maps_too() -> None:
    model = Reddest().eval().requires_grad_(False)
    images = _squares()
    assert GradCAM(model, images[:1])(images, torch.tensor([0, 1])).amax() == 1
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["cnn5", "mobilenet_v2", "timm:resnet10t", "torchvision:densenet121"])
def test_the_layer_is_the_last_one_with_places(name: str) -> None:
    model = zoo.build(name, 3).eval()
    image = torch.randn(1, 3, 64, 64)
    layer, _ = last_feature_map(model, image)
    assert layer
    maps = GradCAM(model, image)(torch.randn(2, 3, 64, 64), torch.tensor([0, 2]))
    assert maps.shape == (2, 64, 64)
    assert torch.isfinite(maps).all()


def test_a_network_without_places_is_refused() -> None:
    with pytest.raises(BadInput, match="occlusion"):
        last_feature_map(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))


def _transformer(library: str) -> nn.Module:
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=3).eval()
    return torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=3).eval()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_rollout_of_uniform_attention_is_uniform(library: str) -> None:
    """With queries and keys of zero every token attends to all alike, and so does the class token in the end."""
    model = _transformer(library)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv" in name or "in_proj" in name:
                parameter[: 2 * parameter.shape[0] // 3] = 0
    assert has_attention(model)
    before = model(images := torch.randn(2, 3, 64, 64))
    maps = Rollout(model)(images, torch.tensor([0, 1]))
    torch.testing.assert_close(maps, torch.ones(2, 64, 64))
    torch.testing.assert_close(model(images), before)  # nothing stays switched


def test_rollout_follows_the_attention() -> None:
    """A network that attends to its brightest patch alone: the map lies there."""
    maps = Rollout(_transformer("timm"))(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert maps.std() > 0


def test_rollout_refuses_networks_without_attention() -> None:
    assert not has_attention(zoo.build("cnn5", 3))
    with pytest.raises(BadInput, match="no attention"):
        Rollout(zoo.build("cnn5", 3))


def test_rank_correlation_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, (3, 6, 7)).astype(float), rng.random((3, 6, 7))
    second[2] = 4.0  # flat
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first[:2], second[:2], strict=True)]
    assert sanity.rank_correlation(first, second) == pytest.approx([*expected, 0.0])


def test_alike_maps_do_not_pass() -> None:
    maps = np.random.default_rng(0).random((4, 8, 8))
    assert sanity.compare_with_random(maps, maps + 0.01)["passed"] is False
    assert sanity.compare_with_random(maps, np.random.default_rng(1).random((4, 8, 8)))["passed"] is True


def test_regions_cover_what_they_say() -> None:
    pixels = np.full((2, 100, 100, 3), 230, np.uint8)
    pixels[:, 30:70, 30:70] = (120, 40, 150)  # a cell on an unstained ground
    found = regions.masks(pixels)
    assert set(found) == set(regions.NAMES)
    assert found["lower right"][0, 84:, 70:].all()
    assert found["lower right"][0].sum() == 16 * 30
    assert found["border"][0].mean() == pytest.approx(1 - 0.84**2)
    np.testing.assert_array_equal(~found["background"][1], pixels[1, :, :, 1] == 40)


def test_one_colour_alone_has_no_background() -> None:
    assert not regions.masks(np.full((1, 20, 20, 3), 90, np.uint8))["background"].any()


def test_a_corner_is_flagged_only_beyond_the_others() -> None:
    labels = np.zeros(200, dtype=np.int64)
    before = labels.copy()
    turned = np.where(np.arange(200) < 60, 1, 0)
    quiet, loud = before.tolist(), turned.tolist()

    def judged(**after: list[int]) -> set[str]:
        tallies = {
            name: regions.Tally([0.05], [0.05], after.get(name.replace(" ", "_"), quiet)) for name in regions.NAMES
        }
        return {name for name, figures in regions.judge(tallies, before, labels).items() if figures["flagged"]}

    assert judged() == set()
    assert judged(lower_right=loud) == {"lower right"}
    corners = dict.fromkeys(("upper_left", "upper_right", "lower_left", "lower_right"), loud)
    assert judged(**corners) == set()
    assert judged(border=loud) == {"border"}


def test_neighbours_tell_what_the_features_hold() -> None:
    rng = np.random.default_rng(0)
    codes = np.arange(90) % 3
    vectors = np.eye(3)[codes] + 0.05 * rng.standard_normal((90, 3))
    names = [f"source {code}" for code in codes]
    assert embeddings.neighbourhood(vectors, names)["accuracy"] == 1.0  # type: ignore[index]
    mixed = embeddings.neighbourhood(rng.standard_normal((300, 5)), [str(i % 2) for i in range(300)])
    assert mixed is not None
    assert mixed["accuracy"] == pytest.approx(0.5, abs=0.12)
    assert embeddings.neighbourhood(vectors, ["a"] * 90) is None
    assert embeddings.neighbourhood(vectors, [""] * 90) is None


def test_the_picture_of_the_features_is_the_same_every_time() -> None:
    vectors = np.random.default_rng(0).random((30, 8)).astype(np.float32)
    np.testing.assert_array_equal(embeddings.picture(vectors), embeddings.picture(vectors))


def test_features_are_what_the_classifier_is_given() -> None:
    model = zoo.build("mobilenet_v2", 3).eval()
    images = torch.randn(3, 3, 64, 64)
    vectors = embeddings.features(model, [images[:2], images[2:]])
    logits = model(images).detach().numpy()
    assert vectors.shape == (3, 1280)
    head = model.classifier[1]  # type: ignore[index]
    torch.testing.assert_close(head(torch.from_numpy(vectors)).detach(), torch.from_numpy(logits), atol=1e-4, rtol=1e-4)
