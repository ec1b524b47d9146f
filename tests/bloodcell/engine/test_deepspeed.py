"""ZeRO-0/1/2/3 on real gloo ranks: the same weights as DDP to the bit, and states that any number of ranks takes up."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bloodcell.config import Config, override
from bloodcell.engine.strategies import check_strategy
from bloodcell.engine.zero_pieces import Piece, read_pieces, write_pieces
from shards.errors import BadInput
from tests.bloodcell.engine.zero_worker import kept, micro_batch, network
from tests.conftest import on_ranks

ROOT = Path(__file__).resolve().parents[3]
ZERO = ("zero0", "zero1", "zero2", "zero3")
OTHER_ORDER = 2e-4
"""How far 20 steps of AdamW may part if the same micro-batches' gradients are summed in another order."""


def carry_out(orders: list[dict[str, Any]], out: Path, ranks: int) -> None:
    """Run zero_worker.py on so many ranks."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "orders.json").write_text(json.dumps(orders))
    done = on_ranks(ranks, Path(__file__).with_name("zero_worker.py"), out / "orders.json", out, timeout=900)
    assert done.code == 0, done.err


def order(strategy: str, name: str = "", K: int = 4, begin: int = 0, end: int = 20, **more: Any) -> dict[str, Any]:  # noqa: N803
    """What the worker shall do."""
    return {"name": name or strategy, "strategy": strategy, "K": K, "begin": begin, "end": end, **more}


def model(folder: Path) -> dict[str, torch.Tensor]:
    """The weights and averaged statistics that a strategy left."""
    return load_file(folder / "model.safetensors")


def apart(a: Path, b: Path) -> float:
    """The largest difference between any two weights or statistics."""
    ours, theirs = model(a), model(b)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def moments(folder: Path) -> dict[str, torch.Tensor]:
    """AdamW's moments of every weight, put together from the pieces of all ranks."""
    whole: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for label, state in kept(folder)["pieces"].items():
        name, _, start = label.rpartition("@")
        for key in ("exp_avg", "exp_avg_sq"):
            whole.setdefault(f"{name}/{key}", []).append((int(start), state[key]))
    return {key: torch.cat([part for _, part in sorted(parts, key=lambda p: p[0])]) for key, parts in whole.items()}


@pytest.fixture(scope="module")
def trained(deepspeed_op: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, two slots each: 20 steps under DDP, ZeRO-2 and ZeRO-3; the latter two also made anew in between."""
    out = tmp_path_factory.mktemp("two")
    orders = [order("ddp"), order("zero2"), order("zero2", "zero2-again", again=7), order("zero3", again=11)]
    carry_out([*orders, order("zero2", "zero2-half", end=9)], out, ranks=2)
    return out


@pytest.mark.parametrize("name", ["zero2", "zero2-again", "zero3"])
def test_weights_are_those_of_ddp_to_the_bit(trained: Path, name: str) -> None:
    """Weights in channels_last, BatchNorm statistics over ranks and slots, and (again) after a resume."""
    assert apart(trained / name, trained / "ddp") == 0.0
    norms = [json.loads((trained / who / "seen.json").read_text())["norms"] for who in (name, "ddp")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_a_plain_network_takes_the_weights_and_predicts_the_same(trained: Path, name: str) -> None:
    plain = network()
    plain.load_state_dict(model(trained / name))
    with torch.inference_mode():
        logits = plain.eval()(micro_batch(0, 0)[0])
    seen = torch.tensor(json.loads((trained / name / "seen.json").read_text())["logits"])
    torch.testing.assert_close(logits, seen, rtol=0, atol=1e-5)


def test_every_rank_keeps_its_own_part_of_the_optimizer_state(trained: Path) -> None:
    sizes = [(trained / "zero2" / f"rank{rank}.safetensors").stat().st_size for rank in (0, 1)]
    assert max(sizes) < 1.2 * min(sizes)
    whole = moments(trained / "zero2")
    assert {key: len(value) for key, value in whole.items() if key.endswith("exp_avg")} == {
        f"{name}/exp_avg": parameter.numel() for name, parameter in network().named_parameters()
    }


def test_one_rank_goes_on_where_two_stopped(trained: Path, tmp_path: Path) -> None:
    half = trained / "zero2-half"
    orders = [
        order("zero2", "taken", begin=9, end=9, load=str(half)),
        order("zero2", "rest", begin=9, load=str(half)),
        order("zero2", "alone"),
    ]
    carry_out(orders, tmp_path, ranks=1)
    before, after = moments(half), moments(tmp_path / "taken")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert apart(tmp_path / "taken", half) == 0.0
    assert apart(tmp_path / "rest", trained / "zero2") <= OTHER_ORDER
    assert apart(tmp_path / "alone", trained / "zero2") <= OTHER_ORDER


FLAGS: dict[str, dict[str, object]] = {
    "one slot": {},
    "clipped": {"optim.clip": 0.5},
    "sgd, L1, smaller steps for earlier layers": {"optim.name": "sgd", "optim.l1": 1e-3, "optim.layer_decay": 0.7},
    "offload": {"engine.offload": True},
    "bf16": {"engine.precision": "bf16"},
    "rmsprop": {"optim.name": "rmsprop"},
}
ROUNDING = {"clipped": 1e-4, "sgd, L1, smaller steps for earlier layers": 1e-6}
"""Above stage 0 DeepSpeed clips by a norm that it sums in its own order (AdamW, which divides by the gradients' own
size, shows it most), and L1 is added before ranks are summed."""


@pytest.mark.slow
@pytest.mark.parametrize("case", FLAGS)
def test_every_stage_is_ddp_to_the_bit(deepspeed_op: None, tmp_path: Path, case: str) -> None:
    flags, micro_batches = FLAGS[case], 2 if case == "one slot" else 4
    own = {key: value for key, value in flags.items() if key != "engine.offload"}
    stages = ZERO[1:] if "engine.offload" in flags else ZERO
    orders = [order(name, K=micro_batches, flags=flags, again=5) for name in stages]
    carry_out([order("ddp", K=micro_batches, flags=own), *orders], tmp_path, ranks=2)
    for name in stages:
        bound = 0.0 if name == "zero0" else ROUNDING.get(case, 0.0)
        assert apart(tmp_path / name, tmp_path / "ddp") <= bound, name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", *ZERO])
def test_two_then_one_then_three_ranks(deepspeed_op: None, tmp_path: Path, strategy: str) -> None:
    """K = 6: the same micro-batches go on, with the state that the ranks before left."""
    carry_out([order(strategy, "whole", K=6), order(strategy, "a", K=6, end=7)], tmp_path, ranks=2)
    for name, before, begin, end, ranks in (("b", "a", 7, 13, 1), ("c", "b", 13, 20, 3)):
        load = str(tmp_path / before)
        orders = [
            order(strategy, f"{name}0", 6, begin, begin, load=load),
            order(strategy, name, 6, begin, end, load=load),
        ]
        carry_out(orders, tmp_path, ranks)
        assert apart(tmp_path / f"{name}0", tmp_path / before) == 0.0
        if strategy in ZERO[1:]:
            old, new = moments(tmp_path / before), moments(tmp_path / f"{name}0")
            assert all(torch.equal(old[key], new[key]) for key in old)
    assert apart(tmp_path / "c", tmp_path / "whole") <= OTHER_ORDER


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", *ZERO])
@pytest.mark.parametrize("ranks", [3, 4])
def test_other_processes_of_the_same_number_go_on_to_the_bit(
    deepspeed_op: None, tmp_path: Path, strategy: str, ranks: int
) -> None:
    K = 2 * ranks  # noqa: N806
    carry_out([order(strategy, "whole", K=K), order(strategy, "half", K=K, end=8)], tmp_path, ranks)
    carry_out([order(strategy, "rest", K, 8, 20, load=str(tmp_path / "half"))], tmp_path, ranks)
    assert apart(tmp_path / "rest", tmp_path / "whole") == 0.0


def test_pieces_come_together_however_they_were_cut() -> None:
    """Five elements of one weight and three of another, in a row cut in two, taken up in one."""
    optimizers = []
    for flat in (torch.zeros(4), torch.zeros(4)):
        optimizers.append(torch.optim.AdamW([flat]))
        optimizers[-1].state[flat] = {"step": torch.tensor(3.0), "exp_avg": torch.arange(4.0) + 4 * len(optimizers)}
    flats = [optimizer.param_groups[0]["params"][0] for optimizer in optimizers]
    first = read_pieces(iter([Piece("a", 0, 4, flats[0], 0)]), optimizers[0])
    second = read_pieces(iter([Piece("a", 4, 1, flats[1], 0), Piece("b", 0, 3, flats[1], 1)]), optimizers[1])
    row = torch.zeros(10)
    target = torch.optim.AdamW([row])
    found = iter([Piece("b", 0, 3, row, 0), Piece("a", 0, 5, row, 4)])
    write_pieces(found, target, {**first, **second}, {"a": 5, "b": 3})
    assert target.state[row]["exp_avg"].tolist() == [9, 10, 11, 0, 4, 5, 6, 7, 8, 0]
    assert float(target.state[row]["step"]) == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"engine.strategy": "zero2", "engine.precision": "fp16"}, "no fp16"),
        ({"engine.strategy": "zero1", "optim.name": "timm:lamb"}, "needs them whole"),
        ({"engine.strategy": "zero2", "model.unfreeze_after": 2}, "mid-run"),
        ({"engine.strategy": "zero3", "train.average": "ema"}, "average"),
        ({"engine.strategy": "zero0", "engine.offload": True}, "use zero1"),
        ({"engine.offload": True}, "zero1, zero2 or zero3"),
        ({"engine.sync_norm": True}, "needs a GPU"),
        ({"engine.compress": "bf16"}, "between GPUs"),
        ({"engine.strategy": "zero2", "engine.compress": "bf16"}, "between GPUs"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_made(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        check_strategy(override(Config(), {"engine.device": "cpu", "engine.precision": "fp32", **flags}))
    assert "\n" not in str(caught.value)


def test_without_a_compiler_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = override(Config(), {"engine.strategy": "zero2", "engine.device": "cpu", "engine.precision": "fp32"})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BadInput, match=r"there is no c\+\+.*install g\+\+, or use the strategy ddp"):
        check_strategy(config)
    (tmp_path / "c++").write_text("#!/bin/sh\n")
    (tmp_path / "c++").chmod(0o755)
    check_strategy(config)  # ninja lies beside this interpreter
    assert os.environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_the_state_of_another_strategy_is_refused_in_one_line(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(AssertionError, match="holds the optimizer state of zero2"):
        carry_out([order("zero3", begin=9, load=str(trained / "zero2-half"))], out, ranks=1)
