"""The set's report: complete, self-contained, small, the same bytes every time, and safe against names from files."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from shards.document import duration, interval, percent, plain, shorten, size
from shards.errors import BadInput
from shards.format import REJECTED_COLUMNS, SAMPLES_SCHEMA, DatasetInfo, ShardInfo, write_dataset, write_samples
from shards.images import decode
from shards.pictures import thumbnail
from shards.plots import Line, line_chart, smooth, thin, ticks
from shards.report import command, write_set_report
from shards.tar import ShardWriter

PARTS = ("train", "val", "test")
EVIL = '<script>alert("class")</script>'


def cell(number: int, side: int = 72) -> bytes:
    """Draw a cell: a disc with a nucleus, another for every number."""
    image = Image.new("RGB", (side, side), (242, 226, 214))
    draw, shift = ImageDraw.Draw(image), number % 7
    draw.ellipse((8 + shift, 8, side - 12 + shift, side - 12), fill=(214, 190 - number % 50, 220))
    draw.ellipse((20 + shift, 20, side - 24, side - 28 + shift), fill=(96, 60, 140 + number % 90))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if number % 3 == 0 else "JPEG")
    return buffer.getvalue()


def write_set(folder: Path, classes: list[str], per_class: int = 6, **changes: Any) -> DatasetInfo:
    """Write a shard set of drawn cells, the first four of each class and part in two clusters of near-duplicates.

    `changes` are fields of DatasetInfo, and `group`, a function of part, label and number.
    """
    folder.mkdir(parents=True)
    group = changes.pop("group", lambda part, label, i: f"near:{part}/{label}/{i // 2}" if i < 4 else "")
    rows: list[dict[str, Any]] = []
    shards = []
    samples: dict[str, dict[str, int]] = {}
    for place, part in enumerate(PARTS):
        first = len(rows)
        with ShardWriter(folder / f"{part}-000000.tar") as writer:
            for label, name in enumerate(classes):
                for i in range(per_class):
                    data = cell(100 * label + 10 * place + i)
                    pixels, mode, kind = decode(data)
                    key = f"{part}_{label}_{i}"
                    extension = "png" if kind == "PNG" else "jpg"
                    member = writer.add(key, [(extension, data), ("cls", str(label).encode())])[0]
                    row = {
                        "key": key,
                        "split": part,
                        "label": label,
                        "class": name,
                        "group": group(part, label, i),
                        "source": f"{name}/{key}.{extension}",
                        "sha256": hashlib.sha256(data).hexdigest(),
                        "crc32": zlib.crc32(data),
                        "width": pixels.shape[1],
                        "height": pixels.shape[0],
                        "mode": mode,
                        "format": kind,
                        "shard": place,
                        "offset": member.offset,
                        "size": len(data),
                    }
                    rows.append(row)
            summary = writer.close()
        shards.append(ShardInfo(f"{part}-000000.tar", part, summary.samples, summary.bytes, summary.sha256, first))
        samples[part] = dict.fromkeys(classes, per_class)
    write_samples(folder, [pa.RecordBatch.from_pylist(rows, schema=SAMPLES_SCHEMA)], len(rows))
    values: dict[str, Any] = {
        "classes": classes,
        "shards": shards,
        "splits": {part: [f"{part}-000000.tar"] for part in PARTS},
        "samples": samples,
        "split": {
            "method": "stratified, grouped",
            "fractions": {"train": 0.8, "val": 0.1, "test": 0.1},
            "deviation": 0.47,
        },
        "audit": {"leaks": 0, "method": "aligned pixel correlation", "threshold": 0.95, "coverage": 1.0},
        "options": {"source": "cells", "split": "80/10/10", "folds": 0, "seed": 3, "near": False, "table": ""},
        "images_in": len(rows),
        "rejected": 0,
        "fingerprint": "f" * 64,
        "extra": {"duplicates": {"exact_duplicates": 2, "near_clusters": 5, "largest_cluster": 2}},
    }
    info = DatasetInfo(**{**values, **changes})
    write_dataset(folder, info)
    return info


def write_rejected(folder: Path, rows: list[tuple[str, str, str, str]]) -> None:
    """Write rejected.csv."""
    with open(folder / "rejected.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([REJECTED_COLUMNS, *rows])


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of one kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def assert_self_contained(text: str) -> None:
    """Nothing in the page is fetched or run."""
    page = Page(text)
    assert not re.search(r"https?:|//\w", re.sub(r'src="data:[^"]*"', "", text))
    assert "url(" not in text
    assert "@import" not in text
    assert not page.all("script")
    assert not page.all("link")
    for name, attributes in page.tags:
        assert not any(attribute.startswith("on") for attribute in attributes), name
        assert str(attributes.get("src", "data:image/jpeg;")).startswith("data:image/jpeg;")
        assert str(attributes.get("href", "#")).startswith("#")


def test_shows_every_section(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_set(folder, ["blast", "lymphocyte"], rejected=2, images_in=38)
    write_rejected(
        folder,
        [
            ("blast/a.jpg", "blast", "not an image", "6148 bytes"),
            ("blast/b.jpg", "blast", "exact duplicate", "same bytes as blast/c.jpg"),
        ],
    )
    path = write_set_report(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for anchor in ("counts", "examples", "images", "duplicates", "rejected", "audit", "packing"):
        assert {"id": anchor} in page.all("section")
    for said in ("36 images of 2 classes", "not an image", "same bytes as blast/c.jpg", "72 × 72 px", "f" * 64):
        assert said in page.text
    assert "aligned pixel correlation" in page.text
    assert "names no patients" in page.text
    assert "80\u202f% asked" in page.text
    # Six examples of each class (there are 18, eight are shown) and four clusters of two.
    assert len(page.all("img")) == 2 * 8 + 4 * 2
    assert all(image["alt"] for image in page.all("img"))
    assert all(header.get("scope") for header in page.all("th"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert_self_contained(text)


def test_escapes_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_set(folder, [EVIL, 'a" onerror="alert(1)'], options={"source": "<img src=x onerror=alert(2)>", "seed": 0})
    write_rejected(folder, [("<script>alert(3)</script>.jpg", EVIL, "<b>odd</b>", "</td><script>alert(4)</script>")])
    text = write_set_report(folder).read_text(encoding="utf-8")
    assert_self_contained(text)
    assert "<b>odd" not in text
    assert EVIL in Page(text).text


def test_a_leak_stands_on_the_first_line(tmp_path: Path) -> None:
    write_set(tmp_path / "clean", ["a", "b"])
    write_set(tmp_path / "leaking", ["a", "b"], audit={"leaks": 3, "method": "pixels"})
    assert "leaks:" not in write_set_report(tmp_path / "clean").read_text(encoding="utf-8")
    text = write_set_report(tmp_path / "leaking").read_text(encoding="utf-8")
    body = Page(text[text.index("<main>") :]).text.strip()
    assert body.startswith("This set leaks: the audit found 3 links")
    assert "found nothing that is shared" not in text
    assert "never crosses" not in text


def test_says_what_is_known_of_patients(tmp_path: Path) -> None:
    write_set(tmp_path / "all", ["a", "b"], group=lambda part, label, i: f"{part} {i}")
    write_set(tmp_path / "some", ["a", "b"], group=lambda part, label, i: part if i == 0 else "")
    assert "none of them crosses parts" in Page(write_set_report(tmp_path / "all").read_text(encoding="utf-8")).text
    text = Page(write_set_report(tmp_path / "some").read_text(encoding="utf-8")).text
    assert "known for 6 of 36 images" in text


def test_is_the_same_every_time_and_everywhere(tmp_path: Path) -> None:
    write_set(tmp_path / "one", ["a", "b"])
    write_set(tmp_path / "two.partial", ["a", "b"])
    first, second = (write_set_report(tmp_path / name).read_bytes() for name in ("one", "two.partial"))
    assert first == second
    assert write_set_report(tmp_path / "one").read_bytes() == first


def test_stays_small_with_many_classes_shards_and_long_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    classes = [f"class {i} " + "x" * 200 for i in range(260)]
    info = write_set(folder, classes, per_class=1)
    many = [*info.shards, *(ShardInfo(f"x-{i:06d}.tar", "train", 0, 10, "0" * 64, 780) for i in range(5000))]
    write_dataset(folder, DatasetInfo(**{**vars(info), "shards": many}))
    reasons = [("d/" * 500 + f"{i}.jpg", "a", "undecodable", "e" * 3000) for i in range(3000)]
    write_rejected(folder, reasons)
    path = write_set_report(folder)
    assert path.stat().st_size < 2_000_000
    text = Page(path.read_text(encoding="utf-8")).text
    assert "3,000" in text
    assert "5,003 shards" in text


def test_a_noisy_thumbnail_is_kept_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    uri = thumbnail(buffer.getvalue(), 128, 6_000)
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 8_100


def test_bears_a_missing_shard_and_no_list_of_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_set(folder, ["a", "b"], extra={})
    (folder / "train-000000.tar").unlink()
    text = Page(write_set_report(folder).read_text(encoding="utf-8")).text
    assert "not readable" in text
    assert "every image that was found is in the set" in text


def test_refuses_what_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no shard set here"):
        write_set_report(tmp_path)
    write_set(tmp_path / "set", ["a", "b"])
    (tmp_path / "set" / "samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="sample table"):
        write_set_report(tmp_path / "set")
    assert not (tmp_path / "set" / "report.html").exists()


def test_the_command_repeats_the_options(tmp_path: Path) -> None:
    info = write_set(
        tmp_path / "set",
        ["a", "b"],
        options={"source": "my cells", "split": "80/10/10", "folds": 0, "seed": 0, "near": False, "allow_leaks": True},
    )
    assert command(info) == "bloodcell pack 'my cells' SET --split 80/10/10 --seed 0 --no-near --allow-leaks"


def test_numbers_read_well() -> None:
    assert percent(0.98765) == "98.8\u202f%"
    assert percent(0.9999) == ">\u202f99.9\u202f%"
    assert percent(1.0) == "100.0\u202f%"
    assert percent(0.0001) == "<\u202f0.1\u202f%"
    assert percent(float("nan")) == "–"
    assert interval(0.9, 1.0) == "90.0–100.0\u202f%"
    assert interval(None, 1.0) == ""
    assert interval(-0.25, 0.5) == "-25.0 to 50.0\u202f%"
    assert interval(-0.25, 0.5, as_percent=False) == "-0.250 to 0.500"
    assert [duration(3.21), duration(192), duration(7500)] == [
        "3.2\u202fs",
        "3\u202fmin 12\u202fs",
        "2\u202fh 05\u202fmin",
    ]
    assert [size(12), size(5.2e7)] == ["12\u202fbytes", "52.0\u202fMB"]
    assert plain([True, None, 0.1, "x"]) == "yes, –, 0.1, x"
    assert len(shorten("x" * 1000, 100)) <= 104


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0.9, 1.0) == [0.9, 0.92, 0.94, 0.96, 0.98, 1.0]
    assert ticks(2, 2) == [2]
    for low, high in ((0, 0.00071), (3, 1234567), (-2.5, 0.1)):
        found = ticks(low, high)
        assert 3 <= len(found) <= 8
        assert low <= min(found)
        assert max(found) <= high


def test_lines_are_thinned_and_stay_in_the_picture() -> None:
    x = np.arange(10_000, dtype=np.float64)
    y = np.where(x == 17, 1e9, np.sin(x / 900))
    assert np.allclose(smooth(np.ones(9), 4), 1)
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) == len(thin_y) == 400
    assert np.isclose(thin_x.mean(), x.mean())
    svg = line_chart([Line("a<b", "main", x, y)], "a<b", "step", (-1.0, 1.0))
    assert len(svg) < 12_000
    assert 'aria-label="a&lt;b"' in svg
    for points in re.findall(r'points="([^"]*)"', svg):
        assert all(abs(float(number)) <= 1000 for pair in points.split() for number in pair.split(","))
