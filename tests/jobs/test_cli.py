"""The command line: help, one clear line for every mistake, exit codes, and one object on stdout with --json."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.cli import VERBS, main
from shards.format import read_dataset, read_samples
from tests.conftest import Done, bloodcell, command

ROOT = Path(__file__).resolve().parents[2]


def images(root: Path, counts: dict[str, int]) -> Path:
    """Make `root` with so many small pictures of noise in each class folder."""
    noise = np.random.default_rng(0)
    root.mkdir()
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def clear_line(done: Done) -> str:
    """Return the one line on stderr that says what is wrong; the others may only tell of progress."""
    said = [line for line in done.err.splitlines() if line.startswith("bloodcell: ")]
    assert len(said) == 1, done.err
    assert done.err.rstrip().endswith(said[0])
    assert "Traceback" not in done.err
    return said[0]


def test_help_names_every_verb() -> None:
    done = bloodcell("--help")
    assert done.code == 0
    assert done.err == ""
    assert all(f"\n  {verb}" in done.out for verb in VERBS)
    bare = bloodcell()
    assert (bare.code, bare.out) == (2, done.out)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: bloodcell {verb}" in said
    assert "--json" in said
    assert " ()" not in said


def test_the_console_script_is_this_command() -> None:
    script = Path(sys.executable).with_name("bloodcell")
    if not script.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("bloodcell ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pak"], "no verb 'pak' (command line): did you mean 'pack'?"),
        (["zzzzzz"], "no verb 'zzzzzz' (command line): see `bloodcell --help`"),
        (["verify", "SET", "--worker", "3"], "unknown argument '--worker' (command line): did you mean '--workers'?"),
        (["pack", "DIR", "SET", "--shard-byte=9"], "'--shard-byte=9' (command line): did you mean '--shard-bytes'?"),
        (["pack", "DIR", "SET", "more"], "unknown argument 'more'"),
        (["pack", "DIR"], "the following arguments are required: SET"),
        (["pack", "DIR", "SET", "--workers", "two"], "argument --workers: invalid int value: 'two'"),
        (["pack", "DIR", "SET", "--workers", "-2"], "-2 processes (--workers)"),
        (["verify", "SET", "--workers", "-2"], "-2 processes (--workers)"),
        (["pack", "DIR", "SET", "--split", "80/30"], "not a split: '80/30' (--split)"),
        (["pack", "DIR", "SET", "--shard-samples", "0"], "a shard holds at least one sample"),
        (["synth", "OUT", "--images", "-5"], "images"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(words)
    captured = capsys.readouterr()
    assert code == 2
    assert said in clear_line(Done(code, captured.out, captured.err))
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Done]]:
    """A place with `drawn` and `set`, and what synth, pack and verify said with --json while they were made."""
    place = tmp_path_factory.mktemp("tiny")
    said = {
        "synth": bloodcell("synth", "drawn", "--images", 40, "--size", 32, "--patients", 8, "--json", cwd=place),
        "pack": bloodcell("pack", "drawn", "set", "--shard-samples", 9, "--workers", 1, "--json", cwd=place),
        "verify": bloodcell("verify", "set", "--json", cwd=place),
    }
    return place, said


KEYS = {
    "synth": {"images", "files", "classes"},
    "pack": {"packed", "rejected", "splits", "shards", "images", "duplicates", "leaks", "report"},
    "verify": {"ok", "samples", "shards", "problems"},
    "zoo": {"models"},
}


@pytest.mark.parametrize("verb", KEYS)
def test_json_is_one_object_and_nothing_else(tiny: tuple[Path, dict[str, Done]], verb: str) -> None:
    done = tiny[1].get(verb) or bloodcell(verb, "--json")
    assert done.code == 0, done.err
    assert done.out.count("\n") == 1
    assert done.json["schema"] == f"bloodcell/1/{verb}"
    assert done.json["exit"] == 0
    assert done.json.keys() >= KEYS[verb]
    assert verb != "zoo" or {"cnn5", "mobilenet_v2"} <= {model["name"] for model in done.json["models"]}


def test_what_pack_says_is_what_lies_there(tiny: tuple[Path, dict[str, Done]]) -> None:
    place, said = tiny
    info, packed = read_dataset(place / "set"), said["pack"].json
    assert packed["splits"] == info.samples
    assert [s["file"] for s in packed["shards"]] == [s.file for s in info.shards]
    assert all((place / "set" / s["file"]).stat().st_size == s["bytes"] for s in packed["shards"])
    assert packed["packed"] == sum(s["samples"] for s in packed["shards"]) == said["verify"].json["samples"]
    assert packed["packed"] + packed["rejected"] == packed["images"] == said["synth"].json["images"] == 40


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["synth", ".", "--size", "1"], 2),
        (["pack", "nowhere", "SET"], 2),
        (["verify", "nowhere"], 2),
        (["pak"], 2),
        (["pack"], 2),
    ],
)
def test_errors_are_json_too(words: list[str], code: int, tmp_path: Path) -> None:
    done = bloodcell(*words, "--json", cwd=tmp_path)
    line = clear_line(done)
    assert done.code == code
    assert done.out.count("\n") == 1
    assert done.json.keys() == {"schema", "exit", "error"}
    assert done.json["exit"] == code
    error = done.json["error"]
    assert error.keys() == {"what", "where", "fix"}
    assert error["what"]
    assert error["what"] in line
    assert error["fix"] in line


NOISY = """
import os, subprocess, sys

def add_arguments(verb, parser):
    parser.add_argument("how")

def run(verb, parsed):
    print("python prints")
    sys.stdout.flush()
    os.write(1, b"a library writes\\n")
    subprocess.run(["echo", "a child echoes"])
    if parsed.how == "fails":
        raise ValueError("not\\nplanned")
    return {"value": 7}, ["seven"]
"""


def noisy(place: Path, *words: str, **environment: str) -> Done:
    """Run a verb that writes to stdout in every way there is."""
    (place / "noisy.py").write_text(NOISY)
    code = f"from jobs import cli\ncli.VERBS['noisy'] = ('noisy', '')\nraise SystemExit(cli.main({['noisy', *words]}))"
    path = os.pathsep.join([str(ROOT), str(place)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_stdout_belongs_to_the_result(tmp_path: Path) -> None:
    done = noisy(tmp_path, "works", "--json")
    assert done.code == 0
    assert done.json == {"schema": "bloodcell/1/noisy", "exit": 0, "value": 7}
    assert all(text in done.err for text in ("python prints", "a library writes", "a child echoes"))
    assert noisy(tmp_path, "works").out.endswith("seven\n")


def test_a_fault_inside_is_loud_and_exit_70(tmp_path: Path) -> None:
    done = noisy(tmp_path, "fails", "--json")
    assert done.code == 70
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("bloodcell: ValueError: not planned (noisy)")
    assert done.json["exit"] == 70
    assert done.json["error"]["what"].startswith("ValueError")


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_only_the_first_rank_speaks(tmp_path: Path, variable: str) -> None:
    done = noisy(tmp_path, "works", "--json", **{variable: "1"})
    assert (done.code, done.out) == (0, "")
    bad = noisy(tmp_path, "--json", **{variable: "1"})
    assert (bad.code, bad.out, bad.err) == (2, "", "")
    fault = noisy(tmp_path, "fails", **{variable: "3"})
    assert fault.code == 70
    assert "bloodcell (rank 3): ValueError" in fault.err


FOLDERS: dict[str, tuple[dict[str, int], str]] = {
    "empty": ({}, "no images here"),
    "empty class folders": ({"a": 0, "b": 0}, "no images here"),
    "one class": ({"a": 3}, "only one class ('a')"),
    "one class and an empty folder": ({"a": 3, "b": 0}, "only one class ('a')"),
    "beside the folders": ({"a": 3, "b": 3, ".": 2}, "2 images lie beside the class folders"),
    "too deep": ({"x/a": 3, "x/b": 3}, "the images lie two or more folders deep"),
    "too few": ({"a": 40, "b": 2}, "class 'b' has 2 images in 2 groups, too few for 3 parts"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_will_not_do_is_one_line(name: str, tmp_path: Path) -> None:
    counts, said = FOLDERS[name]
    images(tmp_path / "in", {k: n for k, n in counts.items() if k != "."})
    for i in range(counts.get(".", 0)):
        shutil.copy(tmp_path / "in" / "a" / f"{i}.png", tmp_path / "in" / f"{i}.png")
    done = bloodcell("pack", "in", "SET", "--workers", 1, cwd=tmp_path)
    assert done.code == 2
    assert said in clear_line(done)
    assert done.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
"""Before a command that root starts: permissions count for it as for anybody."""


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder with images below `in`, whose permissions are mended afterwards."""
    images(tmp_path / "in", {"a": 6, "b": 6, "c": 6})
    yield tmp_path
    for folder in (tmp_path, tmp_path / "in" / "b"):
        folder.chmod(0o755)


def without_rights(*words: object, cwd: Path) -> Done:
    """Run `bloodcell ...` as a process for which permissions count, which they do not for root."""
    prefix = WITHOUT_RIGHTS if os.geteuid() == 0 else []
    if prefix and (not shutil.which("setpriv") or subprocess.run([*prefix, "true"], check=False).returncode):
        pytest.skip("root cannot give up its rights here")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*prefix, *command(*words)], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_an_unreadable_folder_is_one_line(locked: Path) -> None:
    (locked / "in" / "b").chmod(0)
    done = without_rights("pack", "in", "SET", "--workers", 1, cwd=locked)
    assert done.code == 2, done.err
    assert clear_line(done).startswith("bloodcell: the folder cannot be read: Permission denied (in/b)")
    assert [path.name for path in locked.iterdir()] == ["in"]


def test_an_unreadable_image_is_rejected(locked: Path) -> None:
    (locked / "in" / "b" / "4.png").chmod(0)
    done = without_rights("pack", "in", "SET", "--workers", 1, "--json", cwd=locked)
    assert done.code == 0, done.err
    assert done.json["rejected"] == 1
    assert "b/4.png,b,unreadable,Permission denied" in (locked / "SET" / "rejected.csv").read_text()


def test_a_place_that_may_not_be_written_to_is_refused_before_any_work(locked: Path) -> None:
    locked.chmod(0o555)
    done = without_rights("pack", "in", "SET", "--workers", 1, cwd=locked)
    assert done.code == 2, done.err
    assert "nothing can be written here: Permission denied" in clear_line(done)
    assert "examining" not in done.err


@pytest.mark.parametrize("place", ["SET", "."])
def test_a_set_that_may_not_be_written_to_takes_no_more_images(locked: Path, place: str) -> None:
    assert bloodcell("pack", "in", "SET", "--workers", 1, cwd=locked).code == 0
    images(locked / "more", {"a": 2})
    (locked / place).chmod(0o555)
    done = without_rights("pack", "more", "SET", "--append", "--workers", 1, cwd=locked)
    (locked / place).chmod(0o755)
    assert done.code == 2, done.err
    assert "mend its permissions" in clear_line(done)
    assert sorted(path.name for path in locked.iterdir()) == ["SET", "in", "more"]


@pytest.fixture
def damaged(tiny: tuple[Path, dict[str, Done]], tmp_path: Path) -> Path:
    """A copy of the packed set."""
    return Path(shutil.copytree(tiny[0] / "set", tmp_path / "set"))


def victim(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return a sample in the middle of the set and its shard."""
    row = read_samples(folder).to_pylist()[17]
    return row, folder / read_dataset(folder).shards[row["shard"]].file


@pytest.mark.parametrize("damage", ["flipped byte", "missing shard", "truncated shard"])
def test_verify_names_what_is_damaged(damaged: Path, damage: str) -> None:
    row, path = victim(damaged)
    data = bytearray(path.read_bytes())
    if damage == "flipped byte":
        data[row["offset"] + row["size"] // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncated shard":
        path.write_bytes(data[: row["offset"] + 5])
    else:
        path.unlink()
    done = bloodcell("verify", damaged)
    assert done.code == 1
    assert "Traceback" not in done.err
    line = next(line for line in done.out.splitlines() if path.name in line)
    assert row["key"] in line or damage == "missing shard"
    assert damage != "missing shard" or "missing" in line


def test_verify_tells_the_same_as_json(damaged: Path) -> None:
    row, path = victim(damaged)
    path.write_bytes(path.read_bytes()[: row["offset"] + 5])
    told = bloodcell("verify", damaged, "--json")
    assert (told.code, told.json["exit"], told.json["ok"]) == (1, 1, False)
    assert [(bad["file"], bad["key"]) for bad in told.json["bad_shards"]] == [(path.name, row["key"])]


@pytest.mark.parametrize("words", [["verify", "set"], ["train", "cnn5", "--data", "set", "--run", "run"]])
def test_a_set_of_a_newer_version_is_refused(damaged: Path, words: list[str]) -> None:
    path = damaged / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2, "news": "unknown"}))
    done = bloodcell(*words, cwd=damaged.parent)
    assert done.code == 2
    assert "format version 2, this program reads up to 1" in clear_line(done)
    assert [path.name for path in damaged.parent.iterdir()] == ["set"]


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_training_on_a_set_without_all_its_bytes_is_refused(damaged: Path, damage: str) -> None:
    _, path = victim(damaged)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10_240])
    done = bloodcell("train", "cnn5", "--data", "set", "--run", "run", cwd=damaged.parent)
    assert done.code == 2
    assert path.name in clear_line(done)
    assert [path.name for path in damaged.parent.iterdir()] == ["set"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "bloodcell-shards", "version": 1}'])
def test_a_dataset_json_that_cannot_be_used_is_one_line(damaged: Path, text: str) -> None:
    (damaged / "dataset.json").write_text(text)
    done = bloodcell("verify", damaged)
    assert done.code == 2
    assert "dataset.json" in clear_line(done)
