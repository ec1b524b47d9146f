"""Every recipe that comes with the program can start: its model, head, size and weights fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloodcell.config import difference
from bloodcell.data.policies import find_policy
from bloodcell.engine.sizes import parse_sizes
from bloodcell.models import zoo
from bloodcell.models.heads import head_of
from jobs.train import RECIPES, find_recipe

SYSTEMS = {
    # The systems that are reproduced, and the model of each.
    "handcrafted-resnet": "handcrafted_resnet",
    "handcrafted-resnet-dropout": "handcrafted_resnet",
    "handcrafted-resnet-adam": "handcrafted_resnet",
    "handcrafted-resnet-weighted": "handcrafted_resnet",
    "handcrafted-tuned": "handcrafted_resnet",
    "resnet50v2-transfer": "resnet50v2",
    "alexnet": "alexnet",
    "vgg16": "vgg16",
    "efficientnet_v2_s": "efficientnet_v2_s",
    "xception": "xception",
    "nasnet_mobile": "nasnet_mobile",
    "mobilenet_v3": "mobilenet_v3_large",
    "resnet50": "resnet50",
    "vgg19-head3x512": "vgg19",
    "mobilenet_v2-head512": "mobilenet_v2",
    "cnn5": "cnn5",
}


def test_every_system_has_its_recipe() -> None:
    assert {name: find_recipe(name)[0].model.name for name in SYSTEMS} == SYSTEMS


def test_the_systems_differ_as_published() -> None:
    """Six share balancing and augmentation; the hand-made ones differ in dropout, optimizer and class weights."""
    for name in ("efficientnet_v2_s", "xception", "nasnet_mobile", "vgg16", "mobilenet_v3", "resnet50"):
        config = find_recipe(name)[0]
        assert (config.data.policy, config.data.sampling, config.model.dropout) == ("hybrid", 3000, 0.3)
        assert (config.optim.name, config.train.patience) == ("adamw", 5)
    first = find_recipe("handcrafted-resnet")[0]
    changes = {
        "dropout": {"model.dropout": (None, 0.2)},
        "adam": {"optim.name": ("sgd", "adam"), "optim.lr": (0.01, 0.001), "optim.momentum": (0.0, 0.9)},
        "weighted": {"loss.class_weights": ("none", "balanced")},
    }
    for variant, change in changes.items():
        assert difference(first, find_recipe(f"handcrafted-resnet-{variant}")[0]) == change


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_a_recipe_can_start(name: str) -> None:
    config, short = find_recipe(name)
    model = config.model
    assert short == name
    zoo.check_size(model.name, config.data.size)
    find_policy(config.data.policy)
    known = zoo.spec(model.name)
    network = zoo.outline(model.name, model.head, config.data.size)
    assert network.eval() is network
    for size, _ in parse_sizes(config.train.sizes, config.data.size):
        zoo.check_same_network(network, model.name, size, config.data.size)
    assert head_of(network)[0]
    assert model.weights in ("none", "pretrained")
    assert model.weights == "none" or known.weights is not None
    assert Path(RECIPES / f"{name}.toml").read_text(encoding="utf-8").startswith("# ")
