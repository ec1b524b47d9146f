"""Weights files: what matches is loaded and told, what does not is refused, and code in a file never runs."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from bloodcell.models import zoo
from bloodcell.models.weights import load_weights, read_metadata, save_weights
from shards.errors import BadInput, EnvironmentFault

ROOT = Path(__file__).parents[3]
MOBILENET = "weights/mobilenet_v2_imagenet1k_from_qat.safetensors"


class Canary:
    """An object whose pickle, if it is run, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "name", ["cnn5", "mobilenet_v2", "timm:mobilenetv3_small_050", "torchvision:squeezenet1_0", "torchvision:resnet18"]
)
def test_round_trip(name: str, tmp_path: Path) -> None:
    saved, loaded = zoo.build(name, classes=4), zoo.build(name, classes=4, dropout=0.2)
    path = tmp_path / "model.safetensors"
    save_weights(saved.state_dict(), path, {"classes": "[]", "size": "64"})
    report = load_weights(loaded, path, head="strict")
    assert same(saved, loaded)
    assert report.complete
    assert set(report.matched) == set(saved.state_dict())
    assert not report.unexpected
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(report.lines()) == 1
    assert read_metadata(path) == {"classes": "[]", "size": "64", "format": "pt"}
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_the_same_weights_give_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from pathlib import Path; from bloodcell.models.weights import save_weights;"
        "metadata = {str(i): 'é' * i for i in range(20)};"
        "save_weights({'b': torch.ones(3), 'a': torch.zeros(2)}, Path(sys.argv[1]), metadata)"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], check=True, cwd=ROOT)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert safetensors.torch.load_file(tmp_path / "one")["b"].tolist() == [1, 1, 1]


def test_shared_views_and_other_layouts_are_saved(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    state = {
        "a": base,
        "same": base,
        "view": base[1:],
        "last": base.to(memory_format=torch.channels_last),
        "empty": base[:0],
    }
    state |= {"turned": base.transpose(0, 1), "half": base.bfloat16(), "count": torch.tensor(3)}
    save_weights(state, tmp_path / "x.safetensors", {})
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) and read[key].dtype == state[key].dtype for key in state)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights({"a": torch.ones(2)}, path, {})
    before = path.read_bytes()
    program = (
        "import resource, signal, sys, torch; from pathlib import Path;"
        "from bloodcell.models.weights import save_weights; from shards.errors import EnvironmentFault;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: save_weights({'a': torch.ones(100_000)}, Path(sys.argv[1]), {})\n"
        "except EnvironmentFault as error: sys.exit(error.code)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT).returncode == EnvironmentFault.code
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", ["plain", "nested", "ddp", "compiled", "lightning"])
def test_state_dicts_of_other_programs(form: str, legacy: bool, tmp_path: Path) -> None:
    saved, loaded = zoo.build("mobilenet_v2", classes=3), zoo.build("mobilenet_v2", classes=3)
    state: dict[str, Any] = dict(saved.state_dict())
    content: dict[str, Any] = {
        "plain": state,
        "nested": {"epoch": 3, "model": state, "optimizer": {"state": {}}},
        "ddp": {f"module.{key}": value for key, value in state.items()},
        "compiled": {"state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}},
        "lightning": {"state_dict": {f"model.{key}": v for key, v in state.items()} | {"loss.weight": torch.ones(3)}},
    }[form]
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    report = load_weights(loaded, path)
    assert same(saved, loaded)
    assert report.unexpected == (("loss.weight",) if form == "lightning" else ())


def test_a_head_of_other_classes_is_left_fresh_and_told(tmp_path: Path) -> None:
    saved, loaded = zoo.build("mobilenet_v2", classes=10), zoo.build("mobilenet_v2", classes=4)
    path = tmp_path / "model.safetensors"
    save_weights(saved.state_dict(), path, {})
    fresh = loaded.get_parameter("classifier.1.weight").detach().clone()
    report = load_weights(loaded, path)
    assert set(report.reinitialised) == {"classifier.1.weight", "classifier.1.bias"}
    assert "classifier.1.weight (10x1280 in the file, 4x1280 in the model)" in "\n".join(report.lines())
    assert torch.equal(loaded.get_parameter("classifier.1.weight"), fresh)
    assert torch.equal(loaded.state_dict()["features.0.0.weight"], saved.state_dict()["features.0.0.weight"])
    with pytest.raises(BadInput, match="not hold this model's weights in full"):
        load_weights(loaded, path, head="strict")


def test_keeping_the_head_although_it_fits(tmp_path: Path) -> None:
    saved, loaded = zoo.build("cnn5", classes=4), zoo.build("cnn5", classes=4)
    save_weights(saved.state_dict(), tmp_path / "model.safetensors", {})
    report = load_weights(loaded, tmp_path / "model.safetensors", head="keep")
    assert set(report.reinitialised) == {"head.weight", "head.bias"}
    assert not torch.equal(loaded.get_parameter("head.weight"), saved.get_parameter("head.weight"))


def test_a_partial_match_is_told(tmp_path: Path) -> None:
    saved = zoo.build("mobilenet_v2", classes=4).state_dict()
    saved = {key: value for key, value in saved.items() if not key.endswith("num_batches_tracked")}
    del saved["features.18.1.running_mean"], saved["classifier.1.weight"], saved["classifier.1.bias"]
    saved["projector.weight"] = torch.ones(2, 2)
    save_weights(saved, tmp_path / "model.safetensors", {})
    report = load_weights(zoo.build("mobilenet_v2", classes=4), tmp_path / "model.safetensors")
    assert {"features.18.1.running_mean", "classifier.1.weight", "classifier.1.bias"} <= set(report.missing)
    assert report.unexpected == ("projector.weight",)
    assert not report.complete
    assert len(report.lines()) == 3


def test_half_precision_files_load_into_float32(tmp_path: Path) -> None:
    saved, loaded = zoo.build("cnn5", classes=2), zoo.build("cnn5", classes=2)
    save_weights({key: value.half() for key, value in saved.state_dict().items()}, tmp_path / "m.safetensors", {})
    load_weights(loaded, tmp_path / "m.safetensors")
    assert loaded.get_parameter("head.weight").dtype == torch.float32
    assert torch.allclose(loaded.get_parameter("head.weight"), saved.get_parameter("head.weight"), atol=1e-3)


def test_another_architecture_is_refused_and_the_model_untouched(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_weights(zoo.build("torchvision:resnet18", classes=4).state_dict(), path, {})
    model = zoo.build("mobilenet_v2", classes=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(BadInput) as caught:
        load_weights(model, path)
    assert "0 of the model's 260 tensors" in str(caught.value)
    assert "layer1.0." in str(caught.value) or "bn1." in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "bare4", "renamed"])
def test_a_pickle_in_a_file_is_refused_and_never_run(form: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / ("weights.safetensors" if form == "renamed" else "weights.pt")
    content = {"state_dict": zoo.build("cnn5", classes=2).state_dict(), "extra": Canary(canary)}
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps({"extra": Canary(canary)}, protocol=4 if form == "bare4" else 2))
    with pytest.raises(BadInput) as caught:
        load_weights(zoo.build("cnn5", classes=2), path)
    assert not canary.exists()
    assert "\n" not in str(caught.value)
    if form != "renamed":
        assert "was not run" in str(caught.value)


def test_the_canary_would_sing(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kept", [0, 1, 9, 400, 0.5, 0.999])
def test_truncated_files_are_refused(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = zoo.build("cnn5", classes=2).state_dict()
    save_weights(state, path, {}) if suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(BadInput) as caught:
        load_weights(zoo.build("cnn5", classes=2), path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_other_bad_files(tmp_path: Path) -> None:
    model = zoo.build("cnn5", classes=2)
    (tmp_path / "weights.h5").write_bytes(b"x")
    (tmp_path / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    torch.save({"epoch": 3, "classes": ["a"]}, tmp_path / "empty.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    broken = {key: torch.full_like(value, float("nan")) for key, value in model.state_dict().items()}
    save_weights(broken, tmp_path / "nan.safetensors", {})
    archive = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))  # type: ignore[no-untyped-call]
    torch.jit.save(archive, tmp_path / "script.pt")
    for name, told in (
        ("none.safetensors", "no such file"),
        (".", "not a file"),
        ("weights.h5", "ends in .safetensors"),
        ("text.safetensors", "damaged"),
        ("empty.pt", "holds no weights"),
        ("list.pt", "holds no weights"),
        ("nan.safetensors", "not finite"),
        ("script.pt", "holds a program"),
    ):
        with pytest.raises(BadInput, match=told):
            load_weights(model, tmp_path / name)
    with pytest.raises(BadInput, match="damaged"):
        read_metadata(tmp_path / "text.safetensors")
    with pytest.raises(BadInput, match="no such file"):
        read_metadata(tmp_path / "none.safetensors")


@pytest.fixture(scope="module")
def real_data() -> Path:
    root = os.environ.get("BLOODCELL_DATA")
    if not root:
        pytest.skip("BLOODCELL_DATA is not set")
    return Path(root)


@pytest.mark.realdata
def test_the_dog_is_a_samoyed(real_data: Path) -> None:
    from PIL import Image
    from torchvision.transforms.v2 import functional as transform

    model = zoo.build("mobilenet_v2", classes=1000)
    report = load_weights(model, real_data / MOBILENET, head="strict")
    assert report.complete
    assert not report.unexpected
    assert report.sha256 == "850f410ed487391aa696eca18f493e2369545f6af1cd3b15d645301a140c7450"
    known = zoo.spec("mobilenet_v2")
    with Image.open(real_data / "weights/check/dog.jpg") as photo:
        picture = transform.center_crop(transform.resize(photo.convert("RGB"), [256]), [known.size])
    pixels = transform.normalize(transform.pil_to_tensor(picture) / 255, list(known.mean), list(known.std))
    with torch.inference_mode():
        probabilities = model.eval()(pixels[None]).softmax(1)[0]
    assert probabilities.argmax() == 258
    assert probabilities[258] > 0.7


@pytest.mark.realdata
def test_real_weights_with_four_classes_name_the_head(real_data: Path) -> None:
    report = load_weights(zoo.build("mobilenet_v2", classes=4), real_data / MOBILENET)
    assert set(report.reinitialised) == {"classifier.1.weight", "classifier.1.bias"}
    assert not report.missing
    assert not report.unexpected
    assert "re-initialised: classifier.1.weight" in report.lines()[1]
