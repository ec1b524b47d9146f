"""Pretrained weights are found by name in folders and caches, downloaded whole or not at all, and never made up."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from bloodcell.models import fetch, sources, zoo
from bloodcell.models.weights import load_weights
from shards.errors import BadInput, EnvironmentFault

MOBILENET = zoo.spec("mobilenet_v2")


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two folders of weights, and empty caches."""
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        folder.mkdir()
    monkeypatch.setenv(sources.VARIABLE, os.pathsep.join(map(str, folders)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folders


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("mobilenet_v2", "mobilenet_v2.safetensors"),
        ("MobileNetV2", "mobilenet_v2.pth"),
        ("mobilenet_v2", "MobileNetV2.pt"),
        ("mobilenet_v2", "mobilenet_v2-7ebf99e0.pth"),
        ("mobilenet_v2", "mobilenet_v2_imagenet1k.safetensors"),
        ("resnet50v2", "resnetv2_50.a1h_in1k.safetensors"),
        ("resnet50v2", "resnetv2_50.bin"),
        ("dinobloom_s", "DinoBloom-S.pth"),
        ("xception", "xception-43020ad28.pth"),
        ("timm:resnet14t", "resnet14t.safetensors"),
        ("cnn5", "cnn5.safetensors"),
    ],
)
def test_a_file_is_found_by_its_name(model: str, file: str, places: tuple[Path, Path]) -> None:
    (places[1] / file).touch()
    assert sources.find(model, "pretrained") == places[1] / file


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("mobilenet_v2", "mobilenet_v2.txt"),
        ("mobilenet_v2", "mobilenet_v22.pth"),
        ("resnet50", "resnet50v2.pth"),
        ("vit_s", "DinoBloom-S.pth"),
        ("handcrafted_resnet", "handcrafted_resnet_tanh.pth"),
        ("handcrafted_resnet", "handcrafted_resnet_tanh-best.pth"),
    ],
)
def test_a_file_of_another_model_is_not_taken(model: str, file: str, places: tuple[Path, Path]) -> None:
    (places[0] / file).touch()
    assert sources.locate(zoo.spec(model)) is None


def test_the_exact_name_the_safer_form_and_the_first_folder_win(places: tuple[Path, Path]) -> None:
    first, second = places
    wanted = ["mobilenet_v2-mine.pth", "mobilenet_v2.pth", "mobilenet_v2.safetensors"]
    for name in wanted:
        (second / name).touch()
        assert sources.locate(MOBILENET) == second / name
    (first / "mobilenet_v2.pth").touch()
    assert sources.locate(MOBILENET) == first / "mobilenet_v2.pth"


def test_two_files_that_could_be_meant_are_not_guessed_at(places: tuple[Path, Path]) -> None:
    for name in ("mobilenet_v2-a.pth", "mobilenet_v2_b.pth"):
        (places[0] / name).touch()
    with pytest.raises(BadInput, match=r"mobilenet_v2-a\.pth, mobilenet_v2_b\.pth.*mobilenet_v2\.safetensors"):
        sources.find("mobilenet_v2", "pretrained")


def test_torch_hubs_cache_comes_last(places: tuple[Path, Path], tmp_path: Path) -> None:
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "mobilenet_v2-7ebf99e0.pth"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert sources.locate(MOBILENET) == cached
    own = fetch.own_folder() / "mobilenet_v2.pth"
    own.parent.mkdir(parents=True)
    own.touch()
    assert sources.locate(MOBILENET) == own


def test_nothing_is_made_up(places: tuple[Path, Path], tmp_path: Path) -> None:
    assert sources.find("mobilenet_v2", "none") is None
    with pytest.raises(BadInput) as caught:
        sources.find("mobilenet_v2", "pretrained")
    said = str(caught.value)
    for part in ("mobilenet_v2-7ebf99e0.pth", "Sandler", f"put it into {places[0]}", "--model.weights none", "OFFLINE"):
        assert part in said
    with pytest.raises(BadInput, match=r"no public weights.*cnn5\.safetensors"):
        sources.find("cnn5", "pretrained")
    with pytest.raises(BadInput, match="Zenodo record 10908163"):
        sources.find("dinobloom_b", "pretrained")
    with pytest.raises(BadInput, match="did you mean 'pretrained'"):
        sources.find("mobilenet_v2", "pretraind")
    with pytest.raises(BadInput, match="a file, 'pretrained' or 'none'"):
        sources.find("mobilenet_v2", "weights/mobilenet.pth")
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web server with files by path; one that is called short ends before its time."""
    content: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = content.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"") + 100 * self.path.endswith("short.pth")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *words: object) -> None:
            """Be silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}", content
        web.shutdown()


def test_a_download_is_what_was_published(server: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    address, content = server
    body = os.urandom(3_000_000)
    published = f"net-{hashlib.sha256(body).hexdigest()[:8]}.pth"
    content["/net.pth"] = content["/short.pth"] = body
    fetch.download(f"{address}/net.pth", tmp_path / "net.pth", published)
    assert (tmp_path / "net.pth").read_bytes() == body
    for path, name, told in (
        ("net.pth", "net-0123abcd.pth", "not net-0123abcd.pth"),
        ("short.pth", "plain.pth", "ended after 3,000,000 of 3,000,100 bytes"),
    ):
        with pytest.raises(EnvironmentFault, match=told):
            fetch.download(f"{address}/{path}", tmp_path / "other.pth", name)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["net.pth"]


@pytest.mark.realdata
def test_the_given_weights_are_found_and_load(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sources.VARIABLE, str(real_data / "weights"))
    file = sources.find("MobileNetV2", "pretrained")
    assert file == real_data / "weights" / "mobilenet_v2_imagenet1k_from_qat.safetensors"
    torch.manual_seed(0)
    report = load_weights(zoo.build("mobilenet_v2", 4, head="head512"), file)
    assert len(report.matched) == 312
    assert all(name.startswith("classifier.") for name in report.missing)
