"""Every registered model works, costs what zoo.toml says, and agrees with its paper and its library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bloodcell.models import library, zoo
from bloodcell.models.check import STEPS, examine
from bloodcell.models.costs import measure
from shards.errors import BadInput

HEAVY = {"alexnet", "vgg16", "vgg19", "vit_b", "dinobloom_b"}  # seconds each: more than 50 million weights

PUBLISHED = {
    # Millions of parameters with 1,000 classes, from the papers, or the libraries' tables of their public weights.
    "alexnet": 61.1,
    "convnextv2_atto": 3.7,
    "convnextv2_tiny": 28.6,
    "densenet201": 20.0,
    "efficientnet_b0": 5.3,
    "efficientnet_b1": 7.8,
    "efficientnet_b3": 12.2,
    "efficientnet_v2_s": 21.5,
    "mobilenet_v2": 3.5,
    "mobilenet_v3_large": 5.5,
    "mobilenet_v3_small": 2.5,
    "nasnet_mobile": 5.3,
    "resnet10t": 5.4,
    "resnet18": 11.7,
    "resnet50": 25.6,
    "resnet50v2": 25.6,
    "vgg16": 138.4,
    "vgg19": 143.7,
    "vit_b": 86.5,
    "vit_s": 22.0,
    "xception": 22.9,
}

MULTIPLY_ADDS = {
    # Billions at the native size, from the papers.
    "densenet201": 4.3,
    "efficientnet_b0": 0.39,
    "mobilenet_v2": 0.30,
    "mobilenet_v3_large": 0.22,
    "nasnet_mobile": 0.564,
    "resnet18": 1.8,
    "resnet50": 4.1,
    "vgg16": 15.5,
    "vgg19": 19.6,
    "xception": 8.4,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Images this small gain nothing from more threads, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in zoo.REGISTRY]
)
def test_trains_a_step_runs_in_bf16_saves_loads_and_takes_other_heads_at_its_smallest_size(name: str) -> None:
    result = examine(name)
    assert result["error"] == ""
    assert result["passed"] == list(STEPS)
    assert result["size"] == zoo.spec(name).minimum


@pytest.mark.parametrize("name", zoo.REGISTRY)
def test_what_is_written_down_is_so(name: str) -> None:
    known = zoo.spec(name)
    assert (known.parameters, known.flops) == measure(known)
    assert known.minimum is not None
    assert known.size % known.multiple == known.minimum % known.multiple == 0
    assert known.source
    assert known.notes
    zoo.check_size(name, known.size)
    zoo.check_size(name, known.minimum)
    with pytest.raises(BadInput, match=f"it takes {known.minimum} px or more"):
        zoo.check_size(name, known.minimum - known.multiple)


@pytest.mark.parametrize("name", zoo.REGISTRY)
def test_parameters_and_operations_are_those_of_the_papers(name: str) -> None:
    known = zoo.spec(name)
    assert known.parameters is not None
    assert known.flops is not None
    if name in PUBLISHED:
        assert known.parameters / 1e6 == pytest.approx(PUBLISHED[name], rel=0.02)
    else:
        assert name.startswith(("cnn5", "handcrafted", "dinobloom"))
    if name in MULTIPLY_ADDS:
        assert known.flops / 2e9 == pytest.approx(MULTIPLY_ADDS[name], rel=0.05)


def in_one_spelling(licence: str) -> str:
    return licence.upper().replace("-", "").replace(" ", "")


@pytest.mark.parametrize("name", [name for name, known in zoo.REGISTRY.items() if known.weights])
def test_size_colours_and_weights_agree_with_the_library(name: str) -> None:
    known = zoo.spec(name)
    public = known.weights
    assert public is not None
    assert public.licence
    source, _, there = public.origin.partition(":")
    if source not in ("torchvision", "timm"):
        assert name in ("nasnet_mobile", "dinobloom_s", "dinobloom_b")
        return
    theirs = library.torchvision_spec(name) if source == "torchvision" else library.timm_spec(there)
    assert theirs is not None
    assert theirs.weights is not None
    assert (public.origin, public.file) == (theirs.weights.origin, theirs.weights.file)
    assert (known.mean, known.std) == (theirs.mean, theirs.std)
    assert known.size == theirs.size or known.sized
    if source == "timm":
        assert in_one_spelling(public.licence) == in_one_spelling(theirs.weights.licence)
    kind, place = library.address(public.origin)
    assert place.rpartition("/")[2] == ("model.safetensors" if kind == "hf" else public.file)


def test_a_name_means_one_model() -> None:
    spellings = [zoo.plain(other) for known in zoo.REGISTRY.values() for other in (known.name, *known.aliases)]
    assert len(spellings) == len(set(spellings))


BROKEN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, how):
        super().__init__()
        self.how = how
        self.unused = nn.Linear(2, 2) if how == "unused" else None
        self.head = nn.Linear(3, classes)

    def forward(self, images):
        logits = self.head(images.mean((2, 3)))
        if self.how == "narrow" and not torch.is_autocast_enabled("cpu"):
            return logits[:, :1]
        if self.how == "overflow" and torch.is_autocast_enabled("cpu"):
            return logits / 0
        return logits + torch.rand(()) if self.how == "random" else logits


def narrow(classes): return Net(classes, "narrow")
def unused(classes): return Net(classes, "unused")
def overflow(classes): return Net(classes, "overflow")
def random(classes): return Net(classes, "random")
def raises(classes): raise ValueError("two\\nlines")
def fine(classes): return Net(classes, "")
"""


@pytest.mark.parametrize(
    ("how", "step"),
    [("raises", "build"), ("narrow", "train"), ("unused", "train"), ("overflow", "bf16"), ("random", "save")],
)
def test_the_check_finds_what_is_broken(how: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_nets.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    found = examine(f"broken_nets:{how}")
    assert found["failed"] == step
    assert found["error"]
    assert "\n" not in found["error"]
    assert examine("broken_nets:fine")["failed"] is None
