"""A person decides in the report of a scan, in a browser, and packs what was decided."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.pack import pack
from shards.scan import ScanOptions, scan
from tests.shards.packing import ONE, fill, noise, plain, rejects

EVIL = "</script><img src=x onerror=alert(1)>.png".replace("/", "\u2215")
TWINS = ('a/one, "two"; three.png', f"b/{EVIL}")


@pytest.fixture
def scanned(tmp_path: Path) -> Path:
    """The folder of a scan of pictures, two of which are one picture under two labels."""
    folder = fill(tmp_path / "in", plain(12) | dict.fromkeys(TWINS, noise(99)) | {"b/z.png": noise(1000)})
    scan(folder, tmp_path / "scan", ScanOptions(workers=1))
    return tmp_path / "scan"


def test_what_is_ticked_is_saved_and_packed(scanned: Path, chromium: Any, tmp_path: Path) -> None:
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"file://{scanned}/report.html")
    boxes = {box.get_attribute("data-path"): box for box in page.locator("input[data-path]").all()}
    assert {name for name, box in boxes.items() if box.is_checked()} == {*TWINS, "b/z.png"}
    boxes[TWINS[0]].uncheck()
    boxes["b/000.png"].check()
    assert page.inner_text("#decide output") == "3 to drop, 2 changed"
    with page.expect_download() as download:
        page.click("#decide button")
    download.value.save_as(tmp_path / "saved.csv")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not wrong
    page.close()
    pack(tmp_path / "in", tmp_path / "set", replace(ONE, decisions=str(tmp_path / "saved.csv")))
    left = {name: reason for name, (reason, _) in rejects(tmp_path / "set").items()}
    assert left == dict.fromkeys([TWINS[1], "b/z.png", "b/000.png"], "decision")


def test_without_a_change_the_page_saves_what_the_scan_wrote(scanned: Path, chromium: Any, tmp_path: Path) -> None:
    page = chromium.new_page()
    page.goto(f"file://{shutil.copy(scanned / 'report.html', tmp_path)}")
    with page.expect_download() as download:
        page.click("#decide button")
    download.value.save_as(tmp_path / "saved.csv")
    page.close()
    assert (tmp_path / "saved.csv").read_bytes() == (scanned / "decisions.csv").read_bytes()
