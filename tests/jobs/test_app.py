"""`app`: what the page says is what `predict` says, for many at once; nothing is asked elsewhere, nothing is kept."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from shards.errors import BadInput
from tests.conftest import command
from tests.jobs.conftest import verb
from tests.jobs.served import LOGIN, START_SECONDS, Server, ask, client, visit

pytest.importorskip("gradio", reason="the page needs bloodcell[app]")


@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`bloodcell app one two`, with a login and with a proxy that leads nowhere."""
    place = tmp_path_factory.mktemp("app")
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "TMPDIR": str(place), "BLOODCELL_APP_LOGIN": ":".join(LOGIN)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ["PYTHONPATH"]])
    log = place / "log.txt"
    words = command("app", runs / "one", runs / "two", "--port", 0, "--max-images", 60, "--device", "cpu")
    with log.open("wb") as file:
        process = subprocess.Popen(words, env=environment, stderr=file, stdout=file)
    end = time.monotonic() + START_SECONDS
    while not (found := re.search(r"page: (http://\S+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    (folder,) = place.glob("bloodcell-app-*")
    yield Server(found[1], process, folder, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not folder.exists()
    assert "canary" not in log.read_text()


@pytest.fixture(scope="module")
def predicted(
    runs: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, dict[str, str]]]:
    """What `predict` says: run -> sha256 -> row."""
    place = tmp_path_factory.mktemp("predicted")
    rows = {}
    for name in ("one", "two"):
        verb("predict", runs / name, drawn, "--output", place / f"{name}.csv", "--device", "cpu")
        with (place / f"{name}.csv").open(encoding="utf-8") as file:
            rows[name] = {row["sha256"]: row for row in csv.DictReader(file)}
    return rows


def told(row: dict[str, str]) -> dict[str, str]:
    """Return a row without the name of its file."""
    return {name: value for name, value in row.items() if name != "source"}


def test_fifty_at_once_none_wrong_none_lost(
    server: Server, drawn: Path, predicted: dict[str, dict[str, dict[str, str]]]
) -> None:
    pictures = sorted(drawn.rglob("*.jpg"))
    with client(server) as made:
        status, found = ask(made, pictures[:50])
        assert status.startswith("50 images: 50 answered")
        assert sorted(found) == ["one.csv", "two.csv"]
        for name, rows in found.items():
            assert [row["source"] for row in rows] == [path.name for path in pictures[:50]]
            assert [told(row) for row in rows] == [
                told(predicted[name.removesuffix(".csv")][row["sha256"]]) for row in rows
            ]
        # One and the same image by two at a time: the answer to the first must not take the file of the second.
        asked = [pictures[number // 2] for number in range(50)]
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda path: ask(made, [path]), asked))
    for path, (_, found) in zip(asked, answers, strict=True):
        for name, (row,) in found.items():
            assert row["source"] == path.name
            assert told(row) == told(predicted[name.removesuffix(".csv")][row["sha256"]])
    assert server.files() == []


def test_what_cannot_be_used_is_answered_too(server: Server, drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    good = sorted(drawn.rglob("*.jpg"))[0]
    with client(server) as made:
        status, found = ask(made, [tmp_path / "text.jpg", good, tmp_path / "empty.png"])
        rows = found["one.csv"]
        assert "1 answered, 2 without an answer" in status
        assert [bool(row["reason"]) for row in rows] == [True, False, True]
        assert rows[0]["reason"].startswith("not an image")
        assert ask(made, [])[0].startswith("No images")
        assert "answered" in made.predict(api_name="/examples")[0]
    assert server.files() == []


def test_who_asks_for_other_files_is_refused(server: Server) -> None:
    """Gradio alone would read the file, and fetch the address."""
    token = base64.b64encode(":".join(LOGIN).encode()).decode()
    for path in ("/etc/hostname", "http://127.0.0.1:9/cell.png"):
        data = [[{"path": path, "meta": {"_type": "gradio.FileData"}}]]
        body = json.dumps({"data": data, "fn_index": 0, "session_hash": "here"}).encode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/gradio_api/queue/join", body, headers)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=60)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(server.url, timeout=60)


def test_results_and_errors_are_shown(chromium: Any, server: Server, drawn: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a ${1+1} <img src=x onerror=alert(1)> b.jpg"
    odd.write_text("no image")
    good = sorted(drawn.rglob("*.jpg"))[:2]
    with visit(chromium, server, 1200) as seen:
        page = seen.page
        page.evaluate("document.querySelector('#status').dataset.kept = 'yes'")
        page.set_input_files("#images input[type=file]", [*map(str, good), str(odd)])
        assert "3 images: 2 answered, 1 without an answer" in seen.answered("answered")
        assert page.get_attribute("#status", "data-kept") == "yes"  # the place that is announced is still the same
        assert page.locator(".cells > li").count() == 2
        pictures = page.locator(".cells > li").first.locator("img")
        assert pictures.count() == 3  # the cell and a map of each model
        assert all(pictures.nth(number).evaluate("one => one.naturalWidth") >= 48 for number in range(3))
        refused = page.inner_text(".refused li")
        assert odd.name in refused
        assert "not an image" in refused
        with page.expect_download() as loading:
            page.click("text=Download one.csv")
        assert len(Path(loading.value.path()).read_text().splitlines()) == 4
        page.set_input_files("#images input[type=file]", str(good[0]))  # the field is empty again and takes more
        seen.answered("1 image: 1 answered")
        assert seen.fits()


def test_a_folder_is_taken_on_a_phone_without_sideways_scrolling(
    chromium: Any, server: Server, drawn: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cells"
    folder.mkdir()
    for number, path in enumerate(sorted(drawn.rglob("*.jpg"))[:30]):
        shutil.copy(path, folder / f"a name without any place to break it, only_underscores_{'_' * number}{path.name}")
    (folder / "notes.txt").write_text("not named like an image")
    with visit(chromium, server, 360) as seen:
        assert seen.fits()
        seen.page.set_input_files("#folder input[type=file]", str(folder))
        assert "30 images: 30 answered" in seen.answered("passed over: 1")
        assert seen.page.locator(".cells > li").count() == 24
        assert "6 more images" in seen.page.inner_text("#results")
        assert seen.fits()
        seen.page.click("text=Model card: one")
        seen.page.wait_for_selector("text=Intended use")
        assert seen.fits()


def test_the_keyboard_is_enough(chromium: Any, server: Server, drawn: Path) -> None:
    focus = """(() => {
        const one = document.activeElement, style = getComputedStyle(one);
        const name = one.getAttribute("aria-label") || one.innerText.trim();
        return [name, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0];
    })()"""
    with visit(chromium, server, 1000) as seen:
        page = seen.page
        page.wait_for_selector("#folder [aria-label='Choose or drop a folder of images']")
        met = []
        for _ in range(5):
            page.keyboard.press("Tab")
            name, visible = page.evaluate(focus)
            assert visible, name
            met.append(name.split("\n")[0])
        wanted = ["Choose or drop images", "Choose or drop a folder of images", "Show drawn examples"]
        assert met == [*wanted, "Model card: one", "Model card: two"]
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Intended use")
        for _ in range(2):
            page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        seen.answered("answered")
        page.keyboard.press("Tab")
        assert page.evaluate(focus) == ["Download one.csv", True]
        opened: list[Any] = []
        page.on("filechooser", lambda chooser: opened.append(chooser))
        for _ in range(20):  # the answer is still being drawn: the button may be another one by the time of the key
            if opened:
                break
            page.locator("#images button").first.press("Enter")
            page.wait_for_timeout(500)
        opened[0].set_files(str(sorted(drawn.rglob("*.jpg"))[0]))
        seen.answered("1 image: 1 answered")


@pytest.mark.slow
def test_memory_is_flat_over_a_thousand_requests(server: Server, drawn: Path) -> None:
    pictures = sorted(drawn.rglob("*.jpg"))
    process = psutil.Process(server.process.pid)
    held = []
    with client(server) as made:
        for number in range(1000):
            ask(made, [pictures[number % len(pictures)]])
            if number % 200 == 199:
                held.append(process.memory_info().rss / 1e6)
    print("MB after each 200 requests:", [round(value) for value in held])
    assert held[-1] - held[0] < 20, held
    assert server.files() == []


def test_bad_input_is_one_line_before_anything_is_loaded(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="name one, or two"):
        verb("app", *[runs / "one"] * 3)
    with pytest.raises(BadInput, match="the same run twice"):
        verb("app", runs / "one", runs / "one")
    with pytest.raises(BadInput, match="passwords cannot be read"):
        verb("app", runs / "one", "--login", tmp_path / "none")
    with pytest.raises(BadInput, match="will not do"):
        verb("app", runs / "one", "--max-images", 0)
    with pytest.raises(BadInput, match="the address cannot be used"):
        verb("app", runs / "one", "--host", "192.0.2.1", "--port", 0)
    code = "import sys; sys.modules['gradio'] = None; import jobs.cli; sys.exit(jobs.cli.main(['app', 'run']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'bloodcell[app]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
