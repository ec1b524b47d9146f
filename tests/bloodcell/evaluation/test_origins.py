"""Where samples come from: the roots of a set, the sources that it leaves out, and sets that tell none."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloodcell.evaluation.origins import origins
from shards.format import read_dataset, read_samples
from shards.pack import PackOptions, pack
from shards.synth import SynthOptions, synthesise


@pytest.fixture(scope="module")
def clinics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the drawn images of two clinics."""
    root = tmp_path_factory.mktemp("clinics")
    for seed, name in enumerate(("north", "south")):
        synthesise(root / name, SynthOptions(images=60, size=32, patients=12, seed=seed))
    return root


@pytest.mark.parametrize("left_out", [False, True])
def test_every_sample_has_the_folder_that_it_was_packed_from(clinics: Path, tmp_path: Path, left_out: bool) -> None:
    options = PackOptions(also=(str(clinics / "south"),), near=False, workers=1)
    if left_out:
        options = PackOptions(also=options.also, split="80/20/0", leave_source_out=True, near=False, workers=1)
    pack(clinics / "north", tmp_path / "set", options)
    found = origins(tmp_path / "set", read_dataset(tmp_path / "set"))
    paths = read_samples(tmp_path / "set", ["source"]).column("source").to_pylist()
    assert found == {i: path.split("/")[0] for i, path in enumerate(paths)}
    assert set(found.values()) == {"north", "south"}


def test_a_set_of_one_folder_tells_no_source(small_set: Path) -> None:
    assert origins(small_set, read_dataset(small_set)) is None
    assert origins(None, None) is None
