"""Shards that are written while their samples are still audited: the same set, or nothing, whatever the audit says."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from shards.ahead import Ahead
from shards.chunks import cut, listing_digest
from shards.errors import BadInput
from shards.examine import KEPT
from shards.pack import pack
from shards.samples import Samples
from shards.seen import Images
from shards.sources import list_folder
from shards.synth import SynthOptions, synthesise
from tests.shards.packing import ONE, fill, hashes, noise, plain

NOTHING = Samples(Images.of([]), pa.array([], pa.large_string()), np.zeros(0, np.int64), [], [])


def nothing() -> Samples:
    """Return samples that are none, others each time."""
    return NOTHING[:0]


def test_what_was_begun_is_given_for_those_samples_only() -> None:
    one, other, written = nothing(), nothing(), list[Samples]()

    def write(samples: Samples, stop: threading.Event) -> int:
        written.append(samples)
        return len(written)

    with Ahead(write) as ahead:
        assert ahead.result(one) == 1
        ahead.begin(one)
        assert ahead.result(one) == 2
        ahead.begin(one)
        assert ahead.result(other) == 4
        ahead.begin(one)
        ahead.begin(other)
        assert ahead.result(other) == 6
    assert [samples is one for samples in written] == [True, True, True, False, True, False]


def test_what_was_given_up_is_told_to_stop_and_has_ended_before_anything_else_begins() -> None:
    ends: list[bool] = []

    def write(samples: Samples, stop: threading.Event) -> None:
        ends.append(stop.wait(60))
        raise BadInput("nobody asks for this any more")

    with Ahead(write) as ahead:
        ahead.begin(nothing())
        ahead.begin(nothing())
        assert ends == [True]
    assert ends == [True, True]

    def fail(samples: Samples, stop: threading.Event) -> None:
        raise BadInput("an image changed")

    with Ahead(fail) as other:
        other.begin(NOTHING)
        with pytest.raises(BadInput, match="an image changed"):
            other.result(NOTHING)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many samples are begun to be written ahead."""
    counts: list[int] = []
    begin = Ahead.begin

    def counted(ahead: Ahead[object], samples: Samples) -> None:
        counts.append(len(samples))
        begin(ahead, samples)

    monkeypatch.setattr(Ahead, "begin", counted)
    return counts


def test_a_set_written_ahead_is_the_set(tmp_path: Path, begun: list[int]) -> None:
    images = fill(tmp_path / "in", plain())
    pack(images, tmp_path / "one", replace(ONE, shard_samples=9))
    assert begun == []
    pack(images, tmp_path / "two", replace(ONE, shard_samples=9, workers=2))
    assert begun == [40]
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_a_split_that_its_audit_mends_is_written_again(
    tmp_path: Path, begun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near-duplicates that the search before the split does not find, as it happens in large sets."""
    options = SynthOptions(images=60, size=64, near_duplicates=20, seed=2)
    synthesise(tmp_path / "in", options)
    monkeypatch.setattr("shards.clean.near_pairs", lambda *_, **__: np.empty((0, 2), np.int64))
    for workers in (1, 2):
        result = pack(tmp_path / "in", tmp_path / str(workers), replace(ONE, workers=workers, split="50/25/25"))
        assert result["duplicates"]["joined_by_audit"]
        assert not result["leaks"]
    assert len(begun) >= 2
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


def test_a_refused_split_leaves_nothing_that_was_written_ahead(drawn: Path, tmp_path: Path, begun: list[int]) -> None:
    names = [f"{part}/{name}" for part in ("train", "test") for name in plain(10)]
    images = fill(tmp_path / "in", {name: noise(number) for number, name in enumerate(names)})
    with Image.open(sorted(drawn.glob("*/*.jpg"))[0]) as picture:
        picture.save(images / "train" / "a" / "picture.png")
        picture.transpose(Image.Transpose.ROTATE_90).save(images / "test" / "a" / "turned.png")
    with pytest.raises(BadInput, match="the split leaks"):
        pack(images, tmp_path / "set", replace(ONE, workers=2, keep_splits=True))
    assert begun == [42]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_the_digests_of_chunks_do_not_depend_on_how_the_files_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list_folder(fill(tmp_path / "in", plain(150))).items
    at_once = cut(tmp_path, items, KEPT)
    monkeypatch.setattr("shards.chunks.SLOW", -1)
    aside = cut(tmp_path, items, KEPT)
    assert [len(chunk.items) for chunk in aside] == [64, 64, 64, 64, 44]
    assert [(c.number, c.digest) for c in at_once] == [(c.number, c.digest) for c in aside]
    (tmp_path / "in" / "b" / "149.png").unlink()
    assert listing_digest(cut(tmp_path, items, KEPT)) != listing_digest(aside)


PROBE = """
import sys
from jobs.cli import main
assert main(sys.argv[1:]) == 0
assert "pandas" not in sys.modules
import pyarrow
assert len(pyarrow.table({"a": [1, 2]}).to_pandas()) == 2
"""


def test_packing_loads_no_pandas_and_what_asks_for_it_still_gets_it(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    images = fill(tmp_path / "in", plain())
    command = [sys.executable, "-c", PROBE, "pack", str(images), str(tmp_path / "set"), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
