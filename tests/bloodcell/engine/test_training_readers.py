"""Training and evaluation with the readers `stream` and `webdataset`: one order, exact resume, no DALI if need be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.bloodcell.engine.runs import FAST, losses, same, status
from tests.bloodcell.engine.test_exact_resume import gone_on_with, killed, stepping
from tests.conftest import Done, bloodcell

pytestmark = pytest.mark.timeout(900)  # several runs in one test, perhaps on a busy machine

STREAM = ("--data.reader", "stream", "--data.window", 16, "--data.cache", "off")

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "nvidia.dali" or name.startswith("nvidia.dali."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def trained(small_set: Path, small_net: str, run: Path, *flags: object, ranks: int = 0, fresh: bool = False) -> Done:
    words = ("train", "cnn5", "--data", small_set, "--run", run, "--model.name", small_net, *FAST, *flags)
    return bloodcell(*words, ranks=ranks, fresh=fresh)


@pytest.fixture(scope="module")
def streamed(small_set: Path, small_net: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with `stream` on two ranks, not to be changed; steps end inside windows and epochs too."""
    run = tmp_path_factory.mktemp("streamed") / "whole"
    done = trained(small_set, small_net, run, *STREAM, ranks=2)
    assert done.code == 0, done.err
    assert "reader stream: windows of 16 samples, about 8 MiB held on each rank" in " ".join(done.err.split())
    return run


def predictions(run: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(run / "predictions" / "test.parquet").to_pylist()
    return rows


def test_killed_in_the_middle_of_a_window(streamed: Path, small_set: Path, small_net: str, tmp_path: Path) -> None:
    arguments = ("train", "cnn5", "--data", small_set, "--model.name", small_net, *FAST, *STREAM)
    run = tmp_path / "run"
    assert killed(arguments, run, 2, (stepping, 7, 0.01))
    gone_on_with(arguments, run, 2, streamed)


def test_one_rank_and_the_other_reader_train_on_the_same_micro_batches(
    streamed: Path, small_set: Path, small_net: str, tmp_path: Path
) -> None:
    """One rank: the same lineage. `webdataset` on two: the same weights, bit by bit. `plan`: another order."""
    done = trained(small_set, small_net, tmp_path / "alone", *STREAM)
    assert done.code == 0, done.err
    done = trained(small_set, small_net, tmp_path / "library", *STREAM, "--data.reader", "webdataset", ranks=2)
    assert done.code == 0, done.err
    done = trained(small_set, small_net, tmp_path / "plan", ranks=2)
    assert done.code == 0, done.err
    lineages = {name: status(tmp_path / name)["lineage"] for name in ("alone", "library", "plan")}
    assert lineages["alone"] == lineages["library"] == status(streamed)["lineage"] != lineages["plan"]
    assert all(status(run)["lineage_proven"] for run in (streamed, tmp_path / "alone", tmp_path / "library"))
    assert same(tmp_path / "library", streamed)
    assert losses(tmp_path / "library") == losses(streamed)
    assert [loss for _, loss in losses(tmp_path / "alone")] == pytest.approx(
        [loss for _, loss in losses(streamed)], rel=2e-3
    )


def test_an_evaluation_is_the_same_with_every_reader(streamed: Path, tmp_path: Path) -> None:
    """The same checkpoint: the same predictions bit for bit, each sample once; also on two ranks.

    Between the backends pixels differ by up to a level of 255 here, and logits by less than 0.01.
    """
    tables = {}
    for reader, backend, ranks in (
        *(("plan", "cpu", 0), ("stream", "cpu", 2), ("webdataset", "cpu", 0)),
        *(("plan", "dali", 0), ("stream", "dali", 0)),
    ):
        run = Path(shutil.copytree(streamed, tmp_path / f"{reader}-{backend}"))
        shutil.rmtree(run / "predictions")
        stored = json.loads((run / "config.json").read_text())
        stored["config"]["data"].update(reader=reader, backend=backend)
        (run / "config.json").write_text(json.dumps(stored))
        done = bloodcell("evaluate", run, "--split", "test", ranks=ranks)
        assert done.code == 0, done.err
        tables[reader, backend] = predictions(run)
    plain, dali = tables["plan", "cpu"], tables["plan", "dali"]
    assert len({row["key"] for row in plain}) == len(plain) > 20
    assert plain == tables["stream", "cpu"] == tables["webdataset", "cpu"]
    assert dali == tables["stream", "dali"]
    logits = [np.array([row["logits"] for row in rows]) for rows in (plain, dali)]
    assert 0 < np.abs(logits[0] - logits[1]).max() < 0.01


def test_webdataset_needs_no_dali(
    small_set: Path, small_net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an interpreter that cannot import it: training, resume and the evaluations of a run."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(BLOCKER)
    flags = ("--data.reader", "webdataset", "--data.window", 16)
    whole = trained(small_set, small_net, tmp_path / "whole", *flags)
    assert whole.code == 0, whole.err
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")]))
    code = "try: import nvidia.dali\nexcept ModuleNotFoundError: print('not here')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    run = tmp_path / "run"
    run.mkdir()
    (run / "stop").write_text("1\n")
    stopped = trained(small_set, small_net, run, *flags, fresh=True)
    assert stopped.code == 85, stopped.err
    (run / "stop").unlink()
    done = trained(small_set, small_net, run, *flags, fresh=True)
    assert done.code == 0, done.err
    assert same(run, tmp_path / "whole")
    assert predictions(run) == predictions(tmp_path / "whole")
    config = json.loads((run / "config.json").read_text())["config"]["data"]
    assert (config["reader"], config["backend"]) == ("webdataset", "cpu")


def test_what_does_not_go_together_is_refused_before_anything_starts(
    small_set: Path, small_net: str, tmp_path: Path
) -> None:
    cases = {
        ("--data.sampling", "balanced"): "set data.reader to plan, or data.sampling to natural",
        ("--data.window", 10**9, "--data.cache_share", 1e-7): "(data.window): set it lower",
        ("--data.reader", "webdataset", "--data.backend", "dali"): "the reader webdataset has the CPU backend",
    }
    for flags, said in cases.items():
        refused = trained(small_set, small_net, tmp_path / "run", *STREAM, *flags)
        assert refused.code == 2
        assert said in " ".join(refused.err.split())
        assert not (tmp_path / "run").exists()


def test_another_reader_is_another_run(streamed: Path, small_set: Path, small_net: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(streamed, tmp_path / "run"))
    refused = trained(small_set, small_net, run, *STREAM, "--data.reader", "plan", ranks=0)
    assert refused.code == 2
    assert "data.reader" in refused.err
