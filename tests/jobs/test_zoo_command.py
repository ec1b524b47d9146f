"""`bloodcell zoo`, `bloodcell weights` and what `train` says of models, heads and weights, as a user meets them."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bloodcell.models import zoo
from bloodcell.models.weights import save_weights
from jobs.cli import main
from tests.conftest import bloodcell

FAST = ("--data.size", 32, "--data.micro_batch", 8, "--train.epochs", 1, "--tracking.wandb", "off")


def test_the_list_names_every_model_and_needs_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(zoo.REGISTRY)]] == list(zoo.REGISTRY)
    assert len(zoo.REGISTRY) >= 25
    row = next(line for line in lines if line.startswith("nasnet_mobile "))
    assert row.split()[1:5] == ["5.29", "1.13", "224", "≥32"]


def test_details_of_models_of_the_zoo_and_of_the_libraries() -> None:
    done = bloodcell("zoo", "NASNetMobile", "timm:resnet14t", "--json")
    assert done.code == 0, done.err
    ours, theirs = done.json["models"]
    assert ours["name"] == "nasnet_mobile"
    assert ours["parameters"] == 5_289_978
    assert "nasnetamobile-7e03cead.pth" in ours["weights"]
    assert theirs["parameters"] / 1e6 == pytest.approx(10.08, abs=0.005)  # as timm states it
    assert theirs["flops"] > 1e9
    wrong = bloodcell("zoo", "NASNetMobil")
    assert wrong.code == 2
    assert "did you mean nasnet_mobile" in wrong.err


def test_the_check_fails_where_a_model_does(tmp_path: Path) -> None:
    (tmp_path / "bad_net.py").write_text("def build(classes):\n    raise ValueError('no luck')\n")
    done = bloodcell("zoo", "--check", "cnn5", "handcrafted_resnet", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "2 of 2 models work" in done.out
    done = bloodcell("zoo", "cnn5", "bad_net:build", "--check", "--json", cwd=tmp_path)
    assert done.code == 1
    assert [model["failed"] for model in done.json["models"]] == [None, "build"]
    assert done.json["models"][1]["error"] == "ValueError: no luck"


def test_weights_are_fetched_found_and_listed(tmp_path: Path) -> None:
    """The hub is a server of our own, at the address that HF_ENDPOINT names."""
    torch.manual_seed(0)
    save_weights(zoo.build("resnet10t", 1000).state_dict(), tmp_path / "there.safetensors", {})
    body, asked = (tmp_path / "there.safetensors").read_bytes(), []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Be silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_address[1]}")
        patch.setenv("HF_HUB_OFFLINE", "0")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("BLOODCELL_WEIGHTS", str(tmp_path / "shared"))
        done = bloodcell("weights", "fetch", "ResNet10T", "--json")
        hub.shutdown()
        assert done.code == 0, done.err
        assert asked == ["/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"]
        (fetched,) = done.json["fetched"]
        assert fetched["file"] == str(tmp_path / "shared" / "resnet10t.safetensors")
        assert fetched["sha256"] == hashlib.sha256(body).hexdigest()
        assert fetched["licence"] == "Apache-2.0"
        listed = bloodcell("weights", "list", "resnet10t", "vgg16", "cnn5", "--json").json["weights"]
        assert [row["path"] for row in listed] == [fetched["file"], None, None]


def test_without_a_network_it_is_said_what_to_get_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    done = bloodcell("weights", "fetch", "vgg16", "--to", tmp_path / "weights")
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert "vgg16-397923af.pth" in line
    assert "Simonyan" in line
    assert f"put it into {tmp_path / 'weights'}" in line
    assert list((tmp_path / "weights").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["weights", "fetch"], "no model is named"),
        (["weights", "fetch", "cnn5"], "no public weights"),
        (["weights", "get", "vgg16"], "fetch"),
        (["weights", "list", "--to", "x"], "--to belongs to fetch"),
        (["weights", "fetch", "vgg61"], "did you mean"),
        (["zoo", "--chekc"], "--check"),
    ],
)
def test_mistakes_are_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


class Canary:
    """An object whose pickle, if it is run, makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of another model, and a file with a pickle in it."""
    folder = tmp_path_factory.mktemp("files")
    save_weights(zoo.build("resnet10t", 3).state_dict(), folder / "resnet.safetensors", {})
    torch.save({"state_dict": zoo.build("cnn5", 3).state_dict(), "x": Canary(folder / "canary")}, folder / "bad.pth")
    return folder


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--model.name", "NASNetMobil"], "did you mean nasnet_mobile"),
        (["--model.weights", "{files}/resnet.safetensors"], "choose --model.name resnet10t"),
        (["--model.weights", "{files}/bad.pth"], "was not run"),
        (["--model.name", "alexnet", "--data.size", "62"], "it takes 63 px or more"),
        (["--model.name", "vit_s", "--data.size", "64"], "a multiple of 14, such as 56 or 70"),
        (["--model.head", "head521"], "choose one of linear, head512, head3x512"),
        (["--model.name", "vgg16", "--model.weights", "pretrained"], "get vgg16-397923af.pth"),
    ],
)
def test_train_refuses_before_anything_is_made(
    flags: list[str],
    told: str,
    files: Path,
    small_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = [flag.format(files=files) for flag in flags]
    code = main(["train", "cnn5", "--data", str(small_set), "--run", str(tmp_path / "run"), *given])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert told in line
    assert list(tmp_path.iterdir()) == []
    assert not (files / "canary").exists()


def test_a_run_from_pretrained_weights_with_a_dense_head_reloads(small_set: Path, tmp_path: Path) -> None:
    shared, run = tmp_path / "shared", tmp_path / "run"
    shared.mkdir()
    save_weights(zoo.build("cnn5", 7).state_dict(), shared / "cnn5.safetensors", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOODCELL_WEIGHTS", str(shared))
        start = ("--model.weights", "pretrained", "--model.head", "head512", "--model.dropout", 0.2)
        done = bloodcell("train", "cnn5", "--data", small_set, "--run", run, *start, *FAST)
        assert done.code == 0, done.err
    assert "12 of 16 tensors loaded" in done.err
    assert json.loads((run / "environment.json").read_text())["weights"] == {
        "file": str(shared / "cnn5.safetensors"),
        "sha256": hashlib.sha256((shared / "cnn5.safetensors").read_bytes()).hexdigest(),
    }
    with safe_open(run / "model.safetensors", framework="pt") as file:
        assert {"head.dense.dense0.weight", "head.out.weight"} <= set(file.keys())
        assert file.metadata()["head"] == "head512"
    before = json.loads((run / "evaluation.json").read_text())["splits"]
    again = bloodcell("evaluate", run, "--split", "val", "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"]["accuracy"] == before["val"]["metrics"]["accuracy"]
