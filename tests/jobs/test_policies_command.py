"""`bloodcell policies` and `bloodcell bench data --policy`, as a user meets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bloodcell.data.policies import OPERATIONS, POLICIES
from bloodcell.data.shardset import Reader, ShardSet
from jobs.cli import main, run_verb
from jobs.policies import COSTS
from shards.errors import BadInput
from shards.images import decode
from tests.jobs.conftest import verb


def test_the_list_names_every_policy_with_its_operations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(POLICIES)]] == list(POLICIES)
    assert next(line for line in lines if line.startswith("hybrid ")).endswith("crop, flip, rotate, brightness, hybrid")
    assert set(COSTS) == set(OPERATIONS)


def test_what_is_said_of_a_policy_can_be_written_as_a_file(tmp_path: Path) -> None:
    _, lines = run_verb("policies", ["strong"])
    assert any("blur: sigma = [0.3, 2.0], probability = 0.3" in line for line in lines)
    path = tmp_path / "mine.toml"
    path.write_text('[[operation]]\nname = "blur"\nsigma = [0.3, 2.0]\nprobability = 0.3\n')
    (mine,) = verb("policies", path)["policies"]
    assert mine["operations"] == [{"name": "blur", "values": {"sigma": (0.3, 2.0), "probability": 0.3}}]
    assert mine["microseconds"] == round(0.3 * COSTS["blur"])


def test_a_sheet_shows_the_images_and_their_draws(small_set: Path, tmp_path: Path) -> None:
    """The first column is the image itself; the same seed gives the same bytes, another one others."""
    out = tmp_path / "sheet.png"
    flags = ("--data", small_set, "--images", 3, "--columns", 4, "--size", 48)
    verb("policies", "light", *flags, "--out", out)
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (3 * 50 - 2, 4 * 50 - 2, 3)
    shards = ShardSet.open(small_set)
    first = decode(Reader(shards).read(0).tobytes())[0]
    assert np.abs(sheet[:48, :48].astype(int) - first).max() <= 1
    assert (sheet[:48, 50:98] != first).any()
    before = out.read_bytes()
    verb("policies", "light", *flags, "--out", out)
    assert out.read_bytes() == before
    verb("policies", "light", *flags, "--out", out, "--seed", 1)
    assert out.read_bytes() != before


def test_a_sheet_of_a_folder_of_images(drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.jpg"
    verb("policies", "stain", "--data", drawn, "--images", 2, "--columns", 3, "--size", 32, "--out", out)
    assert Image.open(out).size == (3 * 34 - 2, 2 * 34 - 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hybird"], "did you mean 'hybrid'"),
        (["light", "--data", "set"], "belong together"),
        (["--data", "set", "--out", "a.png"], "no policy is named"),
        (["light", "--data", "set", "--out", "a.gif"], "no format '.gif'"),
        (["light", "--data", "set", "--out", "a.png", "--columns", "1"], "too small"),
        (["light", "--data", "set", "--out", "nowhere/a.png"], "the folder is missing"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        run_verb("policies", words)
    assert list(tmp_path.iterdir()) == []


def test_policies_can_be_timed(small_set: Path) -> None:
    flags = ("--size", 24, "--images", 512, "--workers", 1, "--repeats", 1)
    result = verb("bench", "data", small_set, "--policy", "none", "light", *flags)
    kinds = [f"{name} ({backend})" for name in ("none", "light") for backend in ("dali", "cpu")]
    assert [row["name"] for row in result["rows"]] == [f"{kind}, {unit}" for unit in ("wall", "cpu") for kind in kinds]
    assert all(row["value"] > 0 for row in result["rows"])
    kept = verb("bench", "data", small_set, "--policy", "light", "--resident", *flags)
    assert [row["name"] for row in kept["rows"]] == [
        f"{kind}, {unit}" for unit in ("wall", "cpu") for kind in kinds[2:]
    ]
    assert kept["command"].endswith(" --resident")
    with pytest.raises(BadInput, match="did you mean 'light'"):
        verb("bench", "data", small_set, "--policy", "lihgt", *flags)
