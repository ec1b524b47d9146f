"""The doctor on this machine: what it says of a healthy one, and that it finds what is planted."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import run_verb
from jobs.doctor import data, decode, folders, network, queue, steps, versions, words
from jobs.doctor.findings import Finding, as_json, bad, good, page, unknown
from jobs.doctor.gather import Told
from jobs.doctor.page import Asked, settle
from jobs.slurm.description import JobDescription
from shards.errors import BadInput
from tests.conftest import bloodcell

FLAGS = ("--data.size", 32, "--data.micro_batch", 8, "--engine.threads", 1, "--tracking.wandb", "auto")
CANARY = "canary0123456789canary0123456789canary01"
HEALTHY = {
    "python": "3.12.1",
    "executable": "/env/bin/python",
    "packages": {"torch": "2.14.1", "deepspeed": "0.19.8"},
    "missing": [],
    "broken": [],
    "gpus": ["H200, 141 GiB"],
    "driver": "580.1",
    "visible": 1,
    "torch_cuda": "13.0",
    "driver_cuda": "13.0",
    "dali_cuda": "13",
}


def node(number: int, **other: Any) -> dict[str, Any]:
    return {"node": f"n{number + 1}", "number": number, "versions": {**HEALTHY, **other}}


def test_this_machine_is_fit(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.delenv("WANDB_MODE")
    done = bloodcell("doctor", "cnn5", "--data", small_set, "--run", tmp_path / "runs", *FLAGS, "--json")
    assert done.code == 0, done.out + done.err
    told = done.json
    assert (told["schema"], told["exit"], told["red"], told["ranks"]) == ("bloodcell/1/doctor", 0, 0, 2)
    states = {check["name"]: check["state"] for check in told["checks"]}
    looked_at = ("Python and packages", "CUDA versions", "renames are whole", "shards", "dry steps", "memory")
    assert {states[name] for name in (*looked_at, "network", "slowest pair", "Weights & Biases")} == {"green"}
    assert not list((tmp_path / "runs").iterdir()), "nothing is left behind"
    assert told["facts"]["steps"]["1"]["save"] > 0
    assert told["facts"]["nodes"][told["nodes"][0]]["wandb"] == {"mode": "online", "why": "there is an API key"}
    assert CANARY not in done.out + done.err


@pytest.mark.slow
def test_a_recipe_that_does_not_run_is_found(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one rank only: the other one ends with it, and the page says which it was."""
    lines = ["import os", "import torch", "", "class Net(torch.nn.Linear):", "    def forward(self, images):"]
    lines += ["        if os.environ.get('RANK') == '1' and images.shape[1] == 3 and self.training:"]
    lines += ["            raise RuntimeError('the layers do not fit')"]
    lines += ["        return super().forward(images.mean((2, 3)))", ""]
    lines += ["def build(classes):", "    return Net(3, classes)", ""]
    (tmp_path / "broken_net.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ("cnn5", "--data", small_set, "--run", tmp_path / "runs", *FLAGS, "--model.name", "broken_net:build")
    done = bloodcell("doctor", *words, "--json")
    assert done.code == 1, done.out + done.err
    states = {check["name"]: check for check in done.json["checks"]}
    assert states["dry steps"]["state"] == "red"
    assert "rank 1: RuntimeError: the layers do not fit" in states["dry steps"]["what"]
    assert states["network"]["state"] == "green"


def test_a_rank_that_was_killed_is_told_from_steps_that_nobody_asked_for() -> None:
    node = {"node": "n1", "number": 0, "versions": HEALTHY}
    seen = {"backend": "gloo", "hosts": ["n1", "n1"], "bus_gb_s": 1.0, "pairs": [[0, 1, 1.0]], "skew": 0.0}
    heard = {("versions", 0): node, ("network", 0): seen}
    told = Told(heard, "log", "0: slurmstepd: error: Detected 1 oom-kill event(s)\n1: MemoryError: too much")
    job = JobDescription(name="x")
    for steps_asked, state in ((True, "red"), (False, "not checked")):
        value, _ = settle(told, job, None, Asked(2, "cpu", steps_asked, 0))
        found = {check["name"]: check for check in value["checks"]}
        assert found["dry steps"]["state"] == state
        assert ("MemoryError: too much" in found["dry steps"]["what"]) == steps_asked


def test_bad_input_is_one_line_before_anything_is_looked_at(small_set: Path, tmp_path: Path) -> None:
    for given, said in (
        (("resnet10", "--data", small_set), "did you mean"),
        (("cnn5",), "add --data SET"),
        (("--data", tmp_path), "no shard set here"),
        (("--nodes", 2), "this machine is one node"),
        (("cnn5", "--data", small_set, "--ranks", 3), "3 ranks"),
        (("--cluster", "juwels"), "no cluster 'juwels'"),
    ):
        with pytest.raises(BadInput, match=said):
            run_verb("doctor", [str(word) for word in (*given, "--run", tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_words_come_through_a_log_that_many_write_to() -> None:
    import random

    values = {("node", n): {"packages": {f"p{i}": f"{i}.{n}" for i in range(300)}} for n in range(3)}
    told = [(n, line) for (kind, n), value in values.items() for line in words.told(kind, n, value).splitlines()]
    random.Random(0).shuffle(told)
    log = "\n".join(f" {n}: {line}\n{n}: a library says something" for n, line in told)
    assert words.heard(log) == values
    assert words.last_line(log + "\n1: ImportError: no dali\n2: bye", 1) == "ImportError: no dali"
    cut = "\n".join(line for _, line in told[1:])
    assert len(words.heard(cut)) == 2, "what was not told whole is not taken"


def test_versions_that_differ_are_named() -> None:
    same = [node(0), node(1)]
    assert versions.judge_packages(same).state == "green"
    lacks = node(1, packages={"torch": "2.14.1"}, missing=["deepspeed"])
    found = versions.judge_packages([node(0), lacks])
    assert found.state == "red"
    assert "deepspeed is missing on n2, else 0.19.8" in found.what
    assert "python is 3.11.2 on n2, else 3.12.1" in versions.judge_packages([*same, node(1, python="3.11.2")]).what
    assert [versions.judge_driver(same, "cuda").state, versions.judge_cuda(same, "cuda").state] == ["green", "green"]
    assert (
        "n2 torch is for CUDA 13, DALI for 12" in versions.judge_cuda([node(0), node(1, dali_cuda="12")], "cuda").what
    )
    assert "knows CUDA 12.8" in versions.judge_cuda([node(0, driver_cuda="12.8")], "cuda").what
    assert "n1 has no NVIDIA driver" in versions.judge_driver([node(0, driver="", gpus=[])], "cuda").what
    assert "sees none of the 1 GPUs" in versions.judge_driver([node(0, visible=0)], "cuda").what


def test_a_module_that_is_not_there_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "MODULES", ("json", "no_such_module", "no.such.part"))
    assert versions.look()["missing"] == ["no_such_module", "no.such.part"]


def visit(places: list[Path]) -> list[dict[str, Any]]:
    """Let as many nodes look at once, each at its own folder; the submitter sees the first."""
    folders.leave_token(places[0], "submitter", "now")
    seen: list[dict[str, Any]] = [{} for _ in places]

    def look(number: int) -> None:
        facts = folders.look(places[number], "now", number, len(places))
        seen[number] = {"node": f"n{number + 1}", "number": number, "folders": facts}

    threads = [threading.Thread(target=look, args=(number,)) for number in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def test_a_folder_that_is_not_shared_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "PATIENCE", 2.0)
    monkeypatch.delenv("BLOODCELL_SCRATCH", raising=False)
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    here = lambda count: {str(n) for n in range(count) if folders.sees(one, str(n), "now")}  # noqa: E731
    nodes = visit([one, one, one])
    assert folders.judge_shared(nodes, here(3)).state == "green"
    assert folders.judge_renames(nodes).state == "green"
    assert [finding.state for finding in folders.judge_room(nodes, 0, "cpu")] == ["green", "green"]
    assert sorted(path.name for path in one.iterdir()) == ["token-0", "token-1", "token-2", "token-submitter"]
    for file in one.iterdir():
        file.write_text(json.dumps({"secret": "an earlier visit"}))
    nodes = visit([one, other, tmp_path / "nowhere"])
    found = folders.judge_shared(nodes, here(3))
    assert found.state == "red"
    assert "n2 has another folder under this path" in found.what
    assert "n3 has no such folder" in found.what
    assert "n1 does not see the files of n2, n3" in found.what


def test_a_full_scratch_is_found(tmp_path: Path, tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOODCELL_SCRATCH", str(tmpfs / "user" / "bloodcell-17"))
    facts = {"node": "n1", "folders": {"scratch": folders.look(tmp_path / "none", "now", 0, 1)["scratch"]}}
    assert not list(tmpfs.iterdir()), "folders that were made are removed"
    found = folders.judge_scratch([facts], 10**6)
    assert found.state == "red", "2 MB do not take the trial of 4 MB"
    assert "No space left on device" in found.what


def test_a_wrong_byte_in_a_shard_is_found(small_set: Path, tmp_path: Path) -> None:
    broken = tmp_path / "set"
    shutil.copytree(small_set, broken)
    shard = sorted(broken.glob("train-*.tar"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    nodes = [{"node": "n1", "data": data.look(small_set, 0, 2)}, {"node": "n2", "data": data.look(broken, 1, 2)}]
    first, second = data.judge(nodes)
    assert (first.state, second.state) == ("red", "not checked")
    assert shard.name in first.what
    assert "seen on n2" in first.what
    assert [finding.state for finding in data.judge(nodes[:1])] == ["green", "green"]
    shard.unlink()
    assert "a shard is missing" in data.look(broken, 0, 1)["problem"]


def test_decoding_is_compared_with_another_decoder(small_set: Path) -> None:
    images = data.sample_images(small_set, 4)
    seen = decode.look(images, "cpu")
    assert decode.judge([{"node": "n1", "decode": seen}], "cpu").state == "green"
    assert decode.judge([{"node": "n1", "decode": {**seen, "far": 9.0}}], "cpu").state == "red"


@pytest.mark.parametrize("count", range(2, 12))
def test_in_the_tournament_every_two_meet_once(count: int) -> None:
    rounds = network.tournament(count)
    assert sorted(itertools.chain(*rounds)) == list(itertools.combinations(range(count), 2))
    assert all(len(set(itertools.chain(*pairs))) == 2 * len(pairs) for pairs in rounds), "one meeting at a time"


def test_the_slowest_pair_is_named() -> None:
    hosts = ["n1", "n1", "n2", "n2", "n3", "n3"]
    seen = {"backend": "NCCL", "hosts": hosts, "bus_gb_s": 20.0, "skew": 0.01}
    pairs = [[0, 2, 20.0], [0, 4, 19.0], [2, 4, 21.0]]
    assert [finding.state for finding in network.judge({**seen, "pairs": pairs})] == ["green", "green", "green"]
    pairs[1][2] = 2.0
    found = network.judge({**seen, "pairs": pairs, "skew": 40.0})
    assert [finding.state for finding in found] == ["green", "red", "red"]
    assert "n1 and n3: 2 GB/s" in found[1].what


def test_a_signal_that_comes_too_late_to_save_is_found() -> None:
    job = JobDescription(name="x", signal_lead=60)
    slurm = {
        "partition": {"PartitionName": "gpu", "MaxTime": "1-00:00:00", "PreemptMode": "OFF"},
        "job": {"Requeue": "1"},
    }
    assert [finding.state for finding in queue.judge(job, slurm, 1.0, 20.0)] == ["green"] * 4
    found = queue.judge(job, slurm, 1.0, 50.0)
    assert found[2].state == "red"
    assert "--signal-lead 97" in found[2].fix
    assert [finding.state for finding in queue.judge(job, slurm, None, None)][2:] == ["not checked"] * 2
    slurm["partition"].update(PreemptMode="REQUEUE", GraceTime="30")
    assert queue.judge(job, slurm, 1.0, 20.0)[3].state == "red"
    slurm["job"]["Requeue"] = "0"
    assert queue.judge(job, slurm, 1.0, 1.0)[1].state == "red"


def test_memory_that_is_too_small_is_found() -> None:
    one = {"step": 0.1, "save": 0.2, "bytes": 10**6, "memory": 3 * 10**9, "gpu_memory": 0, "gpu_total": 0}
    seen = dict.fromkeys(range(4), one)
    hosts = ["n1", "n1", "n2", "n2"]
    roomy = steps.judge(seen, hosts, {"n1": 10**10, "n2": 10**10})
    assert [finding.state for finding in roomy] == ["green", "green"]
    tight = steps.judge(seen, hosts, {"n1": 10**10, "n2": 6 * 10**9})
    assert tight[1].state == "red"
    assert "n2: 6 GB of 6 GB" in tight[1].what
    assert "n1" not in tight[1].what


def test_the_page_says_what_to_do() -> None:
    found: list[Finding] = [good("a", "fine"), bad("b", "broken " * 40, "mend it"), unknown("c", "no set")]
    lines = page("doctor: n1", found)
    assert lines[-1] == "1 of 2 red: b, 1 not checked"
    assert any(line.strip() == "do: mend it" for line in lines)
    assert max(map(len, lines)) <= 120
    assert as_json(found)["exit"] == 1
    assert as_json(found[:1])["exit"] == 0
