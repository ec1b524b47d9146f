"""Heads of dense layers: what they replace, where their dropout acts, how they load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bloodcell.models import heads, zoo
from bloodcell.models.weights import load_weights, save_weights
from shards.errors import BadInput


@pytest.mark.parametrize(
    ("name", "place", "inputs"),
    [
        ("vgg19", "classifier", 25088),
        ("alexnet", "classifier", 9216),
        ("mobilenet_v3_small", "classifier", 576),
        ("mobilenet_v2", "classifier", 1280),
        ("resnet50", "fc", 2048),
        ("resnet50v2", "head.fc", 2048),
        ("convnextv2_atto", "head.fc", 320),
        ("vit_s", "head", 384),
        ("nasnet_mobile", "last_linear", 1056),
        ("cnn5", "head", 128),
    ],
)
def test_the_whole_top_is_replaced(name: str, place: str, inputs: int) -> None:
    model = zoo.outline(name, "head3x512")
    head = model.get_submodule(place)
    assert isinstance(head, heads.DenseHead)
    assert [tuple(p.shape[:2]) for key, p in head.named_parameters() if key.endswith("weight")] == [
        (512, inputs),
        (512, 512),
        (512, 512),
        (2, 512),
    ]
    assert heads.head_of(model) == (place, head)
    assert heads.head_parameters(model) == {f"{place}.{key}" for key, _ in head.named_parameters()}


def test_dropout_acts_behind_each_dense_layer_and_only_in_training() -> None:
    model = zoo.build("resnet10t", 4, dropout=0.5, head="head512").eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    head = heads.head_of(model)[1]
    head.train()
    assert not torch.equal(model(images), model(images))
    heads.set_dropout(model, 0.0)
    assert torch.equal(model(images), model(images))
    torch.manual_seed(1)
    plain = zoo.build("resnet10t", 4, head="head512")
    assert heads.head_of(plain)[1].rate == 0  # type: ignore[union-attr]


def test_other_classes_keep_the_form_of_the_head() -> None:
    model = heads.replace_head(zoo.build("cnn5", 4, dropout=0.2, head="head3x512").double(), 9)
    head = model.get_submodule("head")
    assert isinstance(head, heads.DenseHead)
    assert (head.widths, head.rate, head.out.out_features) == ((512, 512, 512), 0.2, 9)
    assert head.out.weight.dtype == torch.float64


def test_a_run_with_a_head_loads_again_and_starts_from_weights_without_it(tmp_path: Path) -> None:
    plain, first, second = (zoo.build("mobilenet_v2", 4, head=head) for head in ("linear", "head512", "head512"))
    save_weights(plain.state_dict(), tmp_path / "plain.safetensors", {})
    report = load_weights(first, tmp_path / "plain.safetensors")
    assert set(report.missing) == heads.head_parameters(first)
    assert set(report.unexpected) == {"classifier.1.weight", "classifier.1.bias"}
    save_weights(first.state_dict(), tmp_path / "first.safetensors", {})
    assert load_weights(second, tmp_path / "first.safetensors", head="strict").complete
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(first.eval()(images), second.eval()(images))
    with pytest.raises(BadInput, match="not hold this model's weights in full"):
        load_weights(plain, tmp_path / "first.safetensors", head="strict")


def test_the_features_of_a_network_without_its_top_are_enough_to_load(tmp_path: Path) -> None:
    """The dense layers go with the head: a file of the convolutions alone is a file of this architecture."""
    file = tmp_path / "convolutions.pth"
    state = zoo.build("mobilenet_v3_small", 2, head="head512").state_dict()
    torch.save({key: value for key, value in state.items() if key.startswith("features")}, file)
    model = zoo.build("mobilenet_v3_small", 3, head="head3x512")
    assert all(name.startswith("classifier") for name in load_weights(model, file).missing)
    assert torch.equal(model.get_parameter("features.0.0.weight"), state["features.0.0.weight"])


def test_a_chain_that_flattens_maps_keeps_doing_so() -> None:
    top = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    model = heads.attach_head(nn.Sequential(nn.ReLU(), top), "head512", 4, 0.0)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 4)


def test_heads_that_there_are_not() -> None:
    with pytest.raises(BadInput, match="did you mean 'head512'"):
        zoo.build("cnn5", 2, head="head521")
    with pytest.raises(BadInput, match="2 classifiers"):
        zoo.build("timm:deit_tiny_distilled_patch16_224", 2, head="head512")
