"""The registry builds every kind of name, without a network, and says clearly what it cannot build."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from bloodcell.models import heads, zoo
from shards.errors import BadInput

MODELS = ["cnn5", "mobilenet_v2", "timm:mobilenetv3_small_050", "torchvision:resnet18", "torchvision:squeezenet1_1"]

OWN_MODULE = """
from torch import nn
from bloodcell.models.zoo import ModelSpec


def tiny(classes, **options):
    rate = options.get("dropout", 0.0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(rate), nn.Linear(12, classes))


def rigid(classes):
    return tiny(classes)


def wrong(classes, **options):
    return "no network"


SPEC = ModelSpec(name="mine", builder=tiny, size=16, minimum=2, mean=(0.1, 0.2, 0.3))
number = 7
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Nets this small gain nothing from more threads, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working directory."""
    (tmp_path / "own_zoo_module.py").write_text(OWN_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_zoo_module", raising=False)
    return "own_zoo_module"


@pytest.mark.parametrize("name", MODELS)
def test_forward_backward_and_head_swap(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.build(name, classes=4, dropout=0.1)
    images = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    logits = model(images)
    assert logits.shape == (2, 4)
    torch.autograd.backward(logits.logsumexp(1).sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    before = heads.head_parameters(model)
    assert before <= {key for key, _ in model.named_parameters()}
    model = heads.replace_head(model, 7)
    assert heads.head_parameters(model) == before
    assert model.eval()(images).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_bf16_autocast(name: str) -> None:
    model = zoo.build(name, classes=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.rand(2, 3, 64, 64))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_the_smallest_size_and_an_odd_one_work(name: str) -> None:
    smallest = zoo.spec(name).minimum or 32
    model = zoo.build(name, classes=4).train()
    for height, width in ((smallest, smallest), (smallest + 1, smallest + 13)):
        zoo.check_size(name, height)
        assert model(torch.rand(2, 3, height, width)).shape == (2, 4)


def test_building_is_reproducible_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(zoo.build("mobilenet_v2", classes=4).state_dict())
        zoo.build("torchvision:googlenet", classes=2)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert capfd.readouterr() == ("", "")


def test_channels_last_is_a_choice() -> None:
    last = zoo.build("cnn5", 2)
    first = zoo.build("cnn5", 2, channels_last=False)
    weight = "features.1.0.weight"
    assert last.get_parameter(weight).is_contiguous(memory_format=torch.channels_last)
    assert first.get_parameter(weight).is_contiguous()


def test_cnn5_learns_from_scratch() -> None:
    """Three classes that differ in shape only: a disc, a ring, a bar, in any place and colour."""
    torch.manual_seed(0)
    grid = torch.arange(32.0)
    labels = torch.arange(48) % 3
    centre = 11 + 10 * torch.rand(48, 2)
    down, right = (grid.view(1, 32, 1) - centre[:, :1, None]), (grid.view(1, 1, 32) - centre[:, 1:, None])
    radius = (down**2 + right**2).sqrt()
    shapes = torch.stack([(radius < 6), (radius < 8) & (radius > 5), (down.abs() < 2) & (right.abs() < 9)])
    inside = shapes[labels, torch.arange(48)].float()[:, None]
    images = inside * torch.rand(48, 3, 1, 1) + (1 - inside) * torch.rand(48, 3, 1, 1) - 0.5
    model = zoo.build("cnn5", classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
    accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.9


def test_dropout_reaches_the_classifier() -> None:
    for name in ("cnn5", "mobilenet_v2", "torchvision:resnet18", "timm:mobilenetv3_small_050"):
        model = zoo.build(name, classes=50, dropout=0.9)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()  # so that only dropout can make two passes differ
        plain = zoo.build(name, classes=50)
        assert model.state_dict().keys() == plain.state_dict().keys()
        images = torch.rand(1, 3, 32, 32)
        assert not torch.equal(model(images), model(images)), name
        model.eval()
        assert torch.equal(model(images), model(images)), name


def test_what_is_known_of_models_of_the_libraries() -> None:
    registered = zoo.spec("mobilenet_v2")
    assert (registered.size, registered.mean) == (224, zoo.IMAGENET_MEAN)
    for spelling in ("MobileNetV2", "mobilenetv2", "mobilenet-v2", "MOBILENET_V2"):
        assert zoo.spec(spelling) is registered
    for spelling, name in (
        *(("ResNet50V2", "resnet50v2"), ("resnetv2_50", "resnet50v2"), ("EfficientNetV2S", "efficientnet_v2_s")),
        *(("NASNetMobile", "nasnet_mobile"), ("MobileNetV3", "mobilenet_v3_large"), ("Xception", "xception")),
        *(("VGG19", "vgg19"), ("DenseNet201", "densenet201"), ("DinoBloom-S", "dinobloom_s"), ("AlexNet", "alexnet")),
    ):
        assert zoo.spec(spelling).name == name
    assert zoo.spec("torchvision:inception_v3").size == 299
    assert zoo.spec("torchvision:efficientnet_v2_l").mean == (0.5, 0.5, 0.5)
    assert zoo.spec("timm:vit_small_patch16_224").std == (0.5, 0.5, 0.5)
    public = zoo.spec("timm:mobilenetv3_small_050").weights
    assert public is not None
    assert public.licence == "apache-2.0"


def test_models_that_return_tuples_by_default_do_not() -> None:
    model = zoo.build("torchvision:googlenet", classes=4)
    assert model.train()(torch.rand(2, 3, 64, 64)).shape == (2, 4)


def test_every_head_of_a_network_with_two_is_replaced() -> None:
    model = zoo.build("timm:deit_tiny_distilled_patch16_224", classes=4)
    assert heads.head_parameters(model) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    heads.replace_head(model, 6)
    assert model.eval()(torch.rand(1, 3, 224, 224)).shape == (1, 6)


def test_a_model_that_is_only_a_head_or_has_none() -> None:
    assert heads.head_of(nn.Linear(3, 2))[0] == ""
    assert heads.replace_head(nn.Linear(3, 2), 5)(torch.rand(1, 3)).shape == (1, 5)
    with pytest.raises(BadInput, match="no classifier layer"):
        heads.head_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def test_module_and_function(own_module: str) -> None:
    model = zoo.build(f"{own_module}:tiny", classes=5, dropout=0.5)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)
    assert zoo.spec(f"{own_module}:SPEC").mean == (0.1, 0.2, 0.3)
    assert zoo.build(f"{own_module}:SPEC", classes=2)(torch.rand(2, 3, 8, 8)).shape == (2, 2)


def test_entry_points_of_other_packages(own_module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "other_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[bloodcell.models]\nother_net = {own_module}:tiny\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "other_net" in zoo.names()
    assert zoo.build("other_net", classes=3)(torch.rand(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mobilnet_v2", "mobilenet_v2"),
        ("resnet34", "torchvision:resnet34"),
        ("DenseNet210", "densenet201"),
        ("vit-small-14", "vit_small"),
        ("torchvision:resnet19", "torchvision:resnet18"),
        ("timm:mobilenetv3_smal_050", "timm:mobilenetv3_small_050"),
        ("timm:mobilenetv3_small_050.nonsense", "invalid pretrained tag"),
        ("timm:hf-hub:timm/resnet18", "no such model"),
        ("torchvision:zz", "registered are"),
        ("nothing_like_it", "alexnet, cnn5"),
        ("", "alexnet, cnn5"),
        ("no_such_module:function", "no_such_module"),
        ("../module:function", "expected NAME"),
        ("os:getcwd", "cannot be built"),
        ("own_zoo_module:tinny", "own_zoo_module:tiny"),
        ("own_zoo_module:number", "not a function"),
        ("own_zoo_module:wrong", "not an nn.Module"),
    ],
)
def test_unknown_names_are_told_with_the_nearest(own_module: str, name: str, told: str) -> None:
    with pytest.raises(BadInput) as caught:
        zoo.build(name, classes=2)
    assert told.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_numbers_out_of_range(own_module: str) -> None:
    with pytest.raises(BadInput, match="at least two classes"):
        zoo.build("cnn5", classes=1)
    with pytest.raises(BadInput, match="dropout"):
        zoo.build("cnn5", classes=2, dropout=1.0)
    with pytest.raises(BadInput, match="dropout"):
        zoo.build(f"{own_module}:rigid", classes=2, dropout=0.2)
    assert zoo.build(f"{own_module}:rigid", classes=2)(torch.rand(1, 3, 4, 4)).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "size"),
    [("cnn5", 31), ("mobilenet_v2", 16), ("torchvision:alexnet", 48), ("timm:deit_tiny_patch16_224", 128), ("cnn5", 0)],
)
def test_sizes_that_a_model_cannot_take(name: str, size: int) -> None:
    with pytest.raises(BadInput, match=f"{size} px"):
        zoo.check_size(name, size)


def test_the_smallest_size_is_told() -> None:
    for name, size, told in (
        ("cnn5", 31, "it takes 32 px or more"),
        ("vit_s", 27, "it takes 28 px or more"),
        ("vit_s", 100, "a multiple of 14, such as 98 or 112"),
        ("vit_s", 29, "a multiple of 14, such as 28 or 42"),
        ("torchvision:alexnet", 20, "the smallest it takes is 63 px"),
        ("timm:deit_tiny_patch16_224", 128, "the smallest it takes is 224 px"),
        ("timm:deit_tiny_patch16_224", 256, "its own size is 224 px"),
    ):
        with pytest.raises(BadInput, match=told):
            zoo.check_size(name, size)


def test_sizes_that_a_model_can_take_cost_no_random_numbers() -> None:
    state = torch.get_rng_state()
    for name, size in (
        ("torchvision:alexnet", 64),
        ("torchvision:regnet_x_400mf", 32),
        ("timm:mobilenetv3_small_050", 28),
    ):
        zoo.check_size(name, size)
    assert torch.equal(state, torch.get_rng_state())
