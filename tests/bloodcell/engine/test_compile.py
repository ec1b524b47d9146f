"""torch.compile: when `auto` takes it, what is refused; a compiled run resumes to the bit, under the usual names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell.config import Config, override
from bloodcell.engine.collecting import Collector
from bloodcell.engine.compile_costs import known_cost, note_cost
from bloodcell.engine.compiling import COLD_SECONDS, check_compile, choose_compile, forms
from shards.errors import BadInput
from tests.bloodcell.engine.runs import SMALL_NET, same, weights
from tests.conftest import bloodcell


def config(**flat: Any) -> Config:
    base = {"engine.device": "cuda", "engine.compile": "auto", "model.name": "resnet50", "train.micro_batches": 1}
    return override(Config(), {**base, **{name.replace("__", "."): value for name, value in flat.items()}})


@pytest.fixture(autouse=True)
def no_costs_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compiled on this machine before plays no part."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


def test_auto_counts_with_what_compiling_took_here(tmp_path: Path) -> None:
    folder, images = tmp_path / "compiled", 10**6
    assert not choose_compile(config(), images, 1).on
    assert "a cautious guess" in choose_compile(config(), images, 1).why
    note_cost(folder, config(), 224, 12.0)
    note_cost(folder, config(), 224, 3.0)  # a start that found it compiled
    choice = choose_compile(config(), images, 1)
    assert (choice.on, "cost up to 12 s (by what it took here before)" in choice.why) == (True, True)
    assert known_cost(folder, config(data__micro_batch=64), 224) is None
    # Of two sizes only one is known.
    assert "192 s (a cautious guess)" in choose_compile(config(train__sizes="112x0.5,224"), images, 1).why
    (folder / "costs.json").write_text("{", encoding="utf-8")
    assert known_cost(folder, config(), 224) is None


def test_auto_compiles_only_where_the_whole_run_gains() -> None:
    assert not choose_compile(config(), 10**5, 1).on
    assert choose_compile(config(), 10**8, 1).on
    # A run that gains just the margin for one image size does not for two, nor on twice the ranks.
    images = next(n for n in range(10**5, 10**8, 10**5) if choose_compile(config(), n, 1).on)
    assert f"cost up to {COLD_SECONDS:.0f} s" in choose_compile(config(), images, 1).why
    assert not choose_compile(config(), images - 10**5, 1).on
    assert not choose_compile(config(train__sizes="112x0.5,224"), images, 1).on
    assert not choose_compile(config(train__micro_batches=2), images, 2).on
    assert forms(config(train__sizes="112x0.5,224", train__micro_batches=4), 2) == 4
    for other in (config(engine__device="cpu"), config(engine__strategy="zero1"), config(model__name="cnn5")):
        assert not choose_compile(other, 10**9, 1).on


@pytest.mark.parametrize(
    "flat",
    [
        {"engine__compile": "on", "engine__strategy": "zero1"},
        {"engine__cuda_graphs": True, "engine__compile": "off"},
        {"engine__cuda_graphs": True, "engine__compile": "on", "engine__device": "cpu"},
        {"engine__cuda_graphs": True, "engine__compile": "on", "train__sizes": "112x0.5,224"},
    ],
)
def test_what_does_not_go_together_is_refused(flat: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        check_compile(config(**flat))


def test_without_a_compiler_it_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match="no-such-compiler"):
        check_compile(config(engine__compile="on"))
    assert not choose_compile(config(), 10**9, 1).on


def test_garbage_is_collected_between_steps() -> None:
    import gc

    with Collector(2) as collector:
        assert not gc.isenabled()
        with Collector(2) as inner:
            assert not inner._ours
        assert not gc.isenabled()
        circle: list[Any] = []
        circle.append(circle)
        del circle
        before = gc.get_count()[0]
        collector.step(1)
        assert gc.get_count()[0] >= before
        collector.step(2)
        assert gc.get_count()[0] < before + 50
    assert gc.isenabled()
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_compiled_run_resumes_to_the_bit_and_keeps_its_names(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smallnet.py").write_text(SMALL_NET)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    words = ("cnn5", "--data", small_set, "--model.name", "smallnet:build", "--data.size", 32, "--data.micro_batch", 8)
    words += (
        "--train.micro_batches",
        1,
        "--train.epochs",
        2,
        "--model.dropout",
        0,
        "--tracking.wandb",
        "off",
        "--engine.threads",
        1,
    )

    def train(name: str, compile: str) -> int:
        flags = ("--run", tmp_path / name, "--engine.compile", compile)
        done = bloodcell("train", *words, *flags, fresh=True, timeout=900)
        assert done.code in (0, 85), done.err
        return done.code

    assert train("eager", "off") == 0
    assert train("whole", "on") == 0
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "stop").write_text("1")
    assert train("parts", "on") == 85
    (tmp_path / "parts" / "stop").unlink()
    assert train("parts", "on") == 0

    assert same(tmp_path / "whole", tmp_path / "parts")
    plain, compiled = weights(tmp_path / "eager"), weights(tmp_path / "whole")
    assert set(plain) == set(compiled)
    assert all(np.allclose(plain[name], compiled[name], rtol=0.05, atol=0.02) for name in plain)
    assert any((plain[name] != compiled[name]).any() for name in plain)
    assert any((tmp_path / "compiled").rglob("*.so"))
    (cost,) = json.loads((tmp_path / "compiled" / "costs.json").read_text()).values()
    assert cost > 1
