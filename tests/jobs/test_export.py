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
