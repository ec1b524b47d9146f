"""State dicts as other programs write them find their place in the zoo's models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bloodcell.models import zoo
from bloodcell.models.recognise import recognise
from bloodcell.models.weights import load_weights
from shards.errors import BadInput


def dino(state: dict[str, torch.Tensor], chunked: bool = False) -> dict[str, torch.Tensor]:
    """Write the state of a ViT as DINOv2's training does: a mask token, no classifier, blocks perhaps in chunks."""
    renamed = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        number = rest.partition(".")[0]
        name = f"blocks.{int(number) // 6}.{rest}" if chunked and first == "blocks" else key
        if not key.startswith("head."):
            renamed[name] = value
    return {"mask_token": torch.zeros(1, 384), **renamed}


@pytest.fixture(scope="module")
def vit() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = zoo.build("vit_s", 2, size=56)
    torch.nn.init.normal_(model.get_parameter("pos_embed"))
    return model.state_dict()


@pytest.mark.parametrize("form", ["plain", "teacher", "both", "chunked", "prefixed"])
def test_dinov2_and_dinobloom_checkpoints(form: str, vit: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = dino(vit, chunked=form == "chunked")
    student = {f"backbone.{key}": torch.zeros_like(value) for key, value in state.items()}
    teacher = {f"backbone.{key}": value for key, value in state.items()} | {"dino_head.mlp.0.weight": torch.ones(2, 2)}
    content: dict[str, Any] = {
        "plain": state,
        "chunked": {"teacher": {f"backbone.{key}": value for key, value in state.items()}},
        "teacher": {"teacher": teacher, "iteration": 7},
        "both": {"student": student, "teacher": teacher},
        "prefixed": {
            "model": {f"student.{k}": v for k, v in student.items()} | {f"teacher.{k}": v for k, v in teacher.items()}
        },
    }[form]
    torch.save(content, tmp_path / "DinoBloom-S.pth")
    model = zoo.build("dinobloom_s", 3, size=56)
    report = load_weights(model, tmp_path / "DinoBloom-S.pth")
    assert set(report.missing) == {"head.weight", "head.bias"}
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in vit.items() if not key.startswith("head."))


@pytest.mark.parametrize("size", [28, 70, 112])
def test_position_embeddings_are_interpolated_to_the_input_size(
    size: int, vit: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(dino(vit), tmp_path / "vit.pth")
    model = zoo.build("vit_s", 3, size=size)
    report = load_weights(model, tmp_path / "vit.pth")
    assert "pos_embed" in report.matched
    ours, theirs = model.get_parameter("pos_embed").detach(), vit["pos_embed"]
    side = size // 14
    assert ours.shape == (1, 1 + side**2, 384)
    assert torch.equal(ours[:, 0], theirs[:, 0])  # the class token has no place
    grid = theirs[:, 1:].reshape(1, 4, 4, 384).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    assert torch.allclose(ours[:, 1:], wanted.permute(0, 2, 3, 1).reshape(1, side**2, 384), atol=1e-6)
    assert model.eval()(torch.rand(1, 3, 42, 84)).shape == (1, 3)  # other sizes still pass, interpolated on the way


def test_densenets_of_torchvisions_first_years(tmp_path: Path) -> None:
    saved, loaded = zoo.build("torchvision:densenet121", 2), zoo.build("torchvision:densenet121", 2)
    old = {}
    for key, value in saved.state_dict().items():
        for part in ("norm", "conv"):
            if "denselayer" in key:
                key = key.replace(f".{part}1.", f".{part}.1.").replace(f".{part}2.", f".{part}.2.")
        old[key] = value
    torch.save(old, tmp_path / "densenet.pth")
    assert load_weights(loaded, tmp_path / "densenet.pth").complete
    assert torch.equal(
        loaded.state_dict()["features.denseblock4.denselayer16.norm2.running_var"],
        old["features.denseblock4.denselayer16.norm.2.running_var"],
    )


@pytest.mark.parametrize("name", ["resnet50v2", "nasnet_mobile", "handcrafted_resnet"])
def test_the_model_that_a_file_belongs_to_is_named(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {f"module.{key}": value for key, value in zoo.build(name, 7).state_dict().items()}
    found = recognise(state)
    assert found is not None
    assert found[0] == name
    assert found[1] == found[2]
    torch.save(state, tmp_path / "some.pth")
    with pytest.raises(BadInput, match=f"of another architecture.*choose --model.name {name}") as caught:
        load_weights(zoo.build("cnn5", 7), tmp_path / "some.pth")
    assert "\n" not in str(caught.value)


def test_a_file_of_no_model_of_the_zoo(tmp_path: Path) -> None:
    torch.save({"encoder.embedding": torch.ones(3), "decoder.weight": torch.ones(3)}, tmp_path / "some.pth")
    with pytest.raises(BadInput, match=r"encoder.embedding, decoder.weight.*choose the model that these weights"):
        load_weights(zoo.build("cnn5", 7), tmp_path / "some.pth")
