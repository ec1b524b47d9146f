"""`export`: what other programs get is the run, which is checked; a file that is not is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bloodcell as package
from shards.errors import BadInput, CheckFailed
from tests.jobs.conftest import verb


@pytest.fixture
def one(runs: Path) -> Path:
    """A finished run."""
    return runs / "one"


def export(run: Path, kind: str, output: Path, *more: object) -> dict[str, Any]:
    """Run the verb."""
    return verb("export", run, "--format", kind, "--output", output, *more)


def test_an_onnx_graph_takes_any_pictures_and_agrees(one: Path, small_set: Path, tmp_path: Path) -> None:
    import onnxruntime

    found = export(one, "onnx", tmp_path / "cells.onnx")
    assert found["check"]["difference"] <= 1e-4
    assert found["check"]["other"] == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "cells.onnx"))
    about = session.get_modelmeta().custom_metadata_map
    classifier, opened = package.load(one, device="cpu"), package.open_set(small_set)
    assert json.loads(about["classes"]) == classifier.classes
    image = opened.image(0)
    for shape in (image, image[:, 5:], image[3:]):  # square, tall, wide
        given = np.ascontiguousarray(shape)
        logits, probabilities = session.run(None, {"images": given[None].repeat(3, 0)})
        answer = classifier.predict([given])[0]
        np.testing.assert_allclose(probabilities[1], list(answer.probabilities.values()), atol=5e-3)
        assert logits.shape == (3, len(classifier.classes))


def test_a_program_and_weights_are_the_run_too(one: Path, tmp_path: Path) -> None:
    program = export(one, "torch-export", tmp_path / "cells.pt2")
    assert program["check"]["difference"] <= 1e-4
    weights = export(one, "safetensors", tmp_path / "cells.safetensors")
    assert weights["check"]["difference"] < 1e-6
    assert (tmp_path / "cells.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_compiled_program_is_the_run(one: Path, tmp_path: Path) -> None:
    assert export(one, "aot", tmp_path / "cells.pt2")["check"]["difference"] <= 1e-4


def test_a_file_that_is_not_the_run_is_refused(one: Path, runs: Path, tmp_path: Path) -> None:
    from bloodcell.export.check import check
    from bloodcell.predict import open_classifier

    export(runs / "two", "torch-export", tmp_path / "other.pt2")
    assert not check(open_classifier(one, "cpu"), one, "torch-export", tmp_path / "other.pt2").passed
    with pytest.raises(CheckFailed, match="the file is not the run"):
        export(one, "torch-export", tmp_path / "cells.pt2", "--bound", -1)


def test_without_its_set_drawn_pictures_are_compared(one: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(one / "model.safetensors", tmp_path / "model.safetensors"))
    found = export(file, "torch-export", tmp_path / "cells.pt2")
    assert found["check"]["of"] == "drawn patterns"
    assert found["check"]["images"] == 200


def test_torchvision_takes_the_weights_of_its_architecture(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2

    from bloodcell.models import zoo
    from bloodcell.models.weights import save_weights

    torch.manual_seed(0)
    ours = zoo.build("mobilenet_v2", 4, channels_last=False).eval()
    save_weights(ours.state_dict(), tmp_path / "model.safetensors", {})
    theirs = mobilenet_v2(num_classes=4).eval()
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))


def test_bad_input_is_one_line(one: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"ends in \.onnx"):
        export(one, "onnx", tmp_path / "cells.pt2")
    (tmp_path / "there.pt2").mkdir()
    with pytest.raises(BadInput, match="a folder of this name"):
        export(one, "torch-export", tmp_path / "there.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt2"]


def test_int8_is_judged_on_images_that_it_never_saw(one: Path, tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file = tmp_path / "small.onnx"
    found = export(one, "onnx", file, "--int8", "--int8-bound", 30)["check"]
    result = json.loads((one / "evaluation.json").read_text())["splits"]
    for name, share in found["splits"].items():
        assert share["images"] == result[name]["samples"]
        plain = share["float32"] / share["images"]
        assert plain == pytest.approx(result[name]["metrics"]["accuracy"]["value"], abs=1.5 / share["images"])
        assert share["alike"] >= 0.8 * share["images"]
    assert set(found["splits"]) == {"val", "test"}
    assert found["bytes"][1] == file.stat().st_size
    assert found["ratio"] > 0
    model = onnx.load(str(file))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") > 0
    first = next(place for place, kind in enumerate(kinds) if kind == "Conv")
    assert "MatMul" in kinds[:first]
    scaled = next(node for node in model.graph.node if node.op_type == "MatMul")
    assert not any(name.endswith("DequantizeLinear_Output") for name in scaled.input), "pixels are not rounded"
    about = {prop.key: prop.value for prop in model.metadata_props}
    assert "training images" in about["quantisation"]
    assert json.loads(about["classes"]) == ["benign", "early", "pre", "pro"]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    shown = np.random.default_rng(0).integers(0, 256, (2, 50, 41, 3), dtype=np.uint8)
    assert session.run(["probabilities"], {"images": shown})[0].sum(axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_int8_that_loses_too_much_or_cannot_be_judged_is_refused(one: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(CheckFailed, match="int8 costs more than"):
        export(one, "onnx", tmp_path / "small.onnx", "--int8", "--int8-bound", -100)
    with pytest.raises(BadInput, match="ONNX alone"):
        export(one, "torch-export", tmp_path / "small.pt2", "--int8")
    with pytest.raises(BadInput, match="knows no images"):
        export(one / "model.safetensors", "onnx", tmp_path / "small.onnx", "--int8")
