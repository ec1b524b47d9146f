"""`bloodcell download`: without kagglehub or credentials it says precisely what to do by hand; what comes is whole."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from jobs.cli import Parser
from jobs.data import add_arguments
from jobs.download import download, instructions, pack_command, place
from shards.definitions import names, read_definition
from shards.errors import BadInput, EnvironmentFault
from tests.conftest import bloodcell


@pytest.mark.parametrize("name", names())
def test_by_hand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    definition = read_definition(name)
    with pytest.raises(EnvironmentFault, match=f"{name} cannot be downloaded from here"):
        download(definition, name, tmp_path / name)
    said = capsys.readouterr().err
    assert all(line in said for line in instructions(definition, name, tmp_path / name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", names())
def test_the_command_that_follows_is_one(name: str) -> None:
    program, verb, *rest = shlex.split(pack_command(read_definition(name), name, Path("a b")))
    assert (program, verb) == ("bloodcell", "pack")
    parser = Parser()
    add_arguments(verb, parser)
    parsed = parser.parse_args(rest)
    assert (parsed.source, parsed.dataset) == (Path("a b"), name)


def test_the_verb_ends_with_one_line_and_code_3(tmp_path: Path) -> None:
    done = bloodcell("download", "pbc8", "--to", tmp_path / "images", "--json")
    assert done.code == done.json["exit"] == 3
    lines = [line for line in done.err.splitlines() if line.startswith("bloodcell: ")]
    assert len(lines) == 1
    assert "10.17632/snkd93bnjr.1" in done.json["error"]["fix"]
    assert f"bloodcell pack {tmp_path / 'images'} images-set --dataset pbc8" in done.err
    assert bloodcell("download", "pbc9").code == 2


def test_what_was_fetched_is_copied_whole_and_never_over_something(tmp_path: Path) -> None:
    (tmp_path / "cache" / "a").mkdir(parents=True)
    (tmp_path / "cache" / "a" / "1.png").write_bytes(b"x")
    assert place(tmp_path / "cache", tmp_path / "to") == 1
    assert (tmp_path / "to" / "a" / "1.png").read_bytes() == b"x"
    with pytest.raises(BadInput, match="exists already"):
        download(read_definition("all4"), "all4", tmp_path / "to")
