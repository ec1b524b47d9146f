"""`export --format space`: the folder's own page, in an interpreter apart, says what the run says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bloodcell as package
from shards.errors import BadInput, CheckFailed
from tests.jobs.conftest import verb

pytest.importorskip("gradio", reason="a Space needs bloodcell[app]")


@pytest.fixture(scope="module")
def made(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a Space and what the export said of it."""
    folder = tmp_path_factory.mktemp("spaces") / "space"
    return folder, verb("export", runs / "one", "--format", "space", "--output", folder)


def alone(folder: Path, *words: str) -> list[str]:
    """Return the command that runs app.py where neither this package nor PYTHONPATH is seen."""
    return [sys.executable, "-I", *(words or (str(folder / "app.py"),))]


def test_the_folder_is_a_ready_space(made: tuple[Path, dict[str, Any]], runs: Path) -> None:
    folder, found = made
    assert found["check"]["difference"] <= 1e-4
    assert found["check"]["other"] == 0
    names = {path.name for path in folder.iterdir()}
    texts = {"README.md", "requirements.txt", ".gitattributes", "model_card.md", "app.py"}
    assert names == {*texts, "examples", "model.onnx", "model.safetensors"}
    front = (folder / "README.md").read_text().split("---\n")[1].splitlines()
    said = dict(line.split(": ", 1) for line in front)
    assert (said["sdk"], said["app_file"]) == ("gradio", "app.py")
    assert said["sdk_version"].count(".") == 2
    assert said["title"] == json.dumps("Blood cells, judged_net:build")
    assert (folder / "model.safetensors").read_bytes() == (runs / "one" / "model.safetensors").read_bytes()
    assert "not a medical device" in (folder / "model_card.md").read_text()
    assert len(list((folder / "examples").glob("*.png"))) == 4


def test_its_page_answers_and_needs_little(
    made: tuple[Path, dict[str, Any]], runs: Path, drawn: Path, tmp_path: Path
) -> None:
    """The page is started as on Hugging Face and asked over the network; torch and this package stay unloaded."""
    from gradio_client import Client, handle_file

    folder, _ = made
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import runpy, sys, threading, time\n"
        "def watch():\n"
        "    while sys.stdin.readline():\n"
        "        print(sorted({'torch', 'bloodcell', 'shards', 'jobs'} & set(sys.modules)), flush=True)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        f"sys.argv = ['app.py']; runpy.run_path({str(folder / 'app.py')!r}, run_name='__main__')\n"
    )
    variables = {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen(
        alone(folder, "-c", code),
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 200
        while True:
            assert process.poll() is None
            assert time.monotonic() < end
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.2)
        client = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=False)
        classifier = package.load(runs / "one", device="cpu")
        (tmp_path / "text.png").write_text("no image")
        with pytest.raises(Exception, match="cannot identify image"):
            client.predict(handle_file(str(tmp_path / "text.png")), api_name="/classify")
        for path in sorted(drawn.rglob("*.jpg"))[:3]:
            label, _ = client.predict(handle_file(str(path)), api_name="/classify")
            told = {one["label"]: one["confidence"] for one in label["confidences"]}
            ours = classifier.predict([path])[0].probabilities
            np.testing.assert_allclose([told[name] for name in ours], list(ours.values()), atol=5e-3)
        client.close()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("loaded?\n")
        process.stdin.flush()
        assert next(line for line in process.stdout if line.startswith("[")) == "[]\n"
    finally:
        process.kill()
        process.communicate()


def test_it_answers_on_the_command_line_too(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = made
    Image.fromarray(np.zeros((30, 20, 4), np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(np.zeros((30, 20), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "text.jpg").write_text("no image")
    paths = [str(tmp_path / name) for name in ("alpha.png", "deep.png", "text.jpg", "none.jpg")]
    done = subprocess.run(
        alone(folder, str(folder / "app.py"), *paths), capture_output=True, text=True, check=True, cwd=tmp_path
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(row) for row in rows] == [{"file", "probabilities", "uncertain"}] * 2 + [{"file", "error"}] * 2
    assert rows[0]["probabilities"] == rows[1]["probabilities"]


def test_a_page_that_is_not_the_run_is_refused(made: tuple[Path, dict[str, Any]], runs: Path, tmp_path: Path) -> None:
    from bloodcell.export.check import check
    from bloodcell.predict import open_classifier

    folder, _ = made
    assert not check(open_classifier(runs / "two", "cpu"), runs / "two", "space", folder).passed
    broken = tmp_path / "space"
    broken.mkdir()
    (broken / "app.py").write_text("import nothing_of_this_name")
    with pytest.raises(CheckFailed, match="does not answer"):
        check(open_classifier(runs / "one", "cpu"), runs / "one", "space", broken)
    with pytest.raises(BadInput, match="not an empty folder"):
        verb("export", runs / "one", "--format", "space", "--output", folder)
