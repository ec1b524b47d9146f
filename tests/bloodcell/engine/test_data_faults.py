"""Samples that cannot be read: known before their step, named, saved before, left out by one rule; nothing is lost."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell.data.leaving_out import STAND_IN, LeftOut, consumed_digest, stand_in
from bloodcell.data.loader import training_requests
from bloodcell.data.order import DIGEST_MASK, BatchOrder, NaturalPlan, planned_digest, step_digest
from bloodcell.data.readahead import ReadAhead
from bloodcell.data.reading import Reading
from bloodcell.data.shardset import ShardSet
from shards.errors import Fault, Unreadable
from tests.bloodcell.engine.runs import FAST, Running, kill, losses, records, same, start, status
from tests.conftest import bloodcell

pytestmark = pytest.mark.timeout(900)  # several runs in one test, perhaps on a busy machine


@pytest.fixture
def own_set(small_set: Path, tmp_path: Path) -> Path:
    """A copy of the set that may be damaged."""
    return Path(shutil.copytree(small_set, tmp_path / "set"))


def ahead(folder: Path, **how: Any) -> tuple[ReadAhead, ShardSet, BatchOrder]:
    shards = ShardSet.open(folder)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 0, 8, 2)
    return ReadAhead(shards, training_requests(order, 1, 0, 0, order.steps_per_epoch), Reading(**how)), shards, order


def requests_of(reader: ReadAhead) -> Iterator[Any]:
    while True:
        try:
            yield reader.take()
        except StopIteration:
            return


def flip(folder: Path, shards: ShardSet, sample: int) -> None:
    path = folder / shards.shard_of(sample)
    with open(path, "r+b") as file:
        file.seek(int(shards.index["offset"][sample]) + 40)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_a_place_is_taken_by_the_next_one_that_can_be_read() -> None:
    ids, occurrences = np.arange(10, 16), np.array([0, 0, 1, 0, 0, 2])
    taken, times = stand_in(ids, occurrences, [1, 2, 5])
    assert taken.tolist() == [10, 13, 13, 13, 14, 10]
    assert len(set(zip(taken.tolist(), times.tolist(), strict=True))) == 6  # each under draws of its own
    assert (times[[1, 2, 5]] >= STAND_IN).all()
    assert ids.tolist() == list(range(10, 16))
    with pytest.raises(Fault, match="not one sample"):
        stand_in(ids, occurrences, range(6))


def test_the_lineage_with_samples_left_out_is_what_was_consumed() -> None:
    order = BatchOrder(NaturalPlan(np.array([[0, 50]])), 3, 4, 2)
    bad, total, left = {7, 8, 31}, 0, []
    for step in range(20):
        for micro in range(2):
            dealt = order.micro(step, micro)
            rows = [row for row, sample in enumerate(dealt.ids.tolist()) if sample in bad]
            left += [LeftOut(step, micro, row, int(dealt.ids[row]), "gone") for row in rows]
            total += step_digest(*stand_in(dealt.ids, dealt.occurrences, rows), step)
    assert left
    assert consumed_digest(order, 20, left) == total & DIGEST_MASK
    assert consumed_digest(order, 20, []) == planned_digest(order, 0, 20) != total & DIGEST_MASK
    assert consumed_digest(order, 20, left[1:]) != total & DIGEST_MASK
    with pytest.raises(Fault, match="does not deal"):
        consumed_digest(order, 20, [LeftOut(0, 0, 0, int(order.micro(0, 0).ids[0]) + 1, "")])


@pytest.mark.parametrize("harm", ["flipped", "truncated", "gone", "eio"])
def test_what_is_wrong_is_named_before_its_turn(own_set: Path, harm: str) -> None:
    shards = ShardSet.open(own_set)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 0, 8, 2)
    victim = int(order.micro(2, 1).ids[3])  # in request 5
    path = own_set / shards.shard_of(victim)
    names = [shards.keys[victim]]
    if harm == "flipped":
        flip(own_set, shards, victim)
    elif harm == "truncated":
        os.truncate(path, int(shards.index["offset"][victim]) + 1)
        names = shards.keys
    else:
        path.unlink()
        names = shards.keys
        if harm == "eio":
            path.symlink_to("/proc/self/mem")  # reading where nothing is mapped is a real EIO
    requests = training_requests(order, 1, 0, 0, order.steps_per_epoch)
    reader = ReadAhead(shards, requests, Reading(depth=50))
    fault = reader.fault_before(6)
    assert isinstance(fault, Unreadable)
    said = str(fault)
    assert any(name in said for name in names)
    assert path.name in said
    assert ", byte " in said
    assert {"flipped": "not those that were packed", "eio": "Input/output error"}.get(harm, "") in said
    if harm == "flipped":
        assert f"byte {int(shards.index['offset'][victim]):,}" in said
        assert len([reader.take() for _ in range(5)]) == 5  # what was read before is still delivered
        with pytest.raises(Unreadable):
            reader.take()
    reader.close()


def test_a_reader_that_gets_no_answer_is_a_named_fault(own_set: Path) -> None:
    """Opening a pipe that nobody writes to blocks as a dead file server does."""
    shards = ShardSet.open(own_set)
    for path in own_set.glob("train-*.tar"):
        path.unlink()
        os.mkfifo(path)
    order = BatchOrder(NaturalPlan(shards.ranges("train")), 0, 8, 2)
    reader = ReadAhead(shards, training_requests(order, 1, 0, 0, 3), Reading(patience=0.5))
    fault = reader.fault_before(1)
    assert isinstance(fault, Unreadable)
    assert "no answer for 0.5 s" in str(fault)
    assert shards.keys[int(order.micro(0, 0).ids[0])] in str(fault)
    with pytest.raises(Unreadable):
        reader.take()
    reader.close()


def test_skipping_delivers_whole_micro_batches_of_real_images(own_set: Path) -> None:
    shards = ShardSet.open(own_set)
    for victim in (3, 17):
        flip(own_set, shards, int(shards.ranges("train")[0][0]) + victim)
    reader, _, order = ahead(own_set, skip=True)
    left = []
    for number, (request, images) in enumerate(requests_of(reader)):
        assert len(images) == len(request.ids) == 8
        for sample, image in zip(request.ids.tolist(), images, strict=True):
            assert len(image) == shards.index["size"][sample]
        left += [(number, *one) for one in request.left_out]
        dealt = order.micro(number // 2, number % 2)
        rows = [row for row, *_ in request.left_out]
        assert request.ids.tolist() == stand_in(dealt.ids, dealt.occurrences, rows)[0].tolist()
    reader.close()
    assert 1 <= len(left) <= 2


def damage_all(folder: Path) -> dict[Path, bytes]:
    """Cut every training shard to a few bytes, in place: whoever has it open sees it too."""
    kept = {path: path.read_bytes() for path in folder.glob("train-*.tar")}
    for path in kept:
        os.truncate(path, 512)
    return kept


def test_a_shard_that_dies_in_mid_run_stops_all_ranks_at_one_step_and_nothing_is_lost(
    own_set: Path, undisturbed_run: Path, small_net: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("train", "cnn5", "--data", own_set, "--run", run, "--model.name", small_net, *FAST)
    process = start(*arguments, ranks=2)
    wait_for_losses(process, run, 2)
    kept = damage_all(own_set)
    error = process.communicate(timeout=240)[1]
    assert process.returncode == 3, error
    said = status(run)
    assert said["outcome"]["code"] == 3
    assert "a sample cannot be read" in said["outcome"]["what"]
    assert any(path.name in said["outcome"]["what"] for path in kept)
    newest = (run / "checkpoints" / "last").resolve()
    assert int(newest.name) == said["step"]
    for path, data in kept.items():
        path.write_bytes(data)
    done = bloodcell(*arguments, ranks=2)
    assert done.code == 0, done.err
    assert same(run, undisturbed_run)
    assert losses(run) == losses(undisturbed_run)
    assert status(run)["lineage"] == status(undisturbed_run)["lineage"]


def wait_for_losses(process: Running, run: Path, count: int) -> None:
    deadline = time.monotonic() + 240
    while len(losses(run)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.slow
def test_a_file_server_that_hangs_in_an_evaluation_is_waited_for_then_saved_and_gone_on_with(
    own_set: Path, undisturbed_run: Path, small_net: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("train", "cnn5", "--data", own_set, "--run", run, "--model.name", small_net, *FAST)
    process = start(*arguments, "--data.timeout", 3, ranks=2)
    wait_for_losses(process, run, 1)
    (shard,) = own_set.glob("val-*.tar")
    shard.rename(own_set / "kept")
    os.mkfifo(shard)
    error = process.communicate(timeout=240)[1]
    assert process.returncode == 3, error
    assert "no answer for 3 s" in status(run)["outcome"]["what"]
    assert shard.name in status(run)["outcome"]["what"]
    (own_set / "kept").rename(shard)
    done = bloodcell(*arguments, ranks=2)
    assert done.code == 0, done.err
    assert same(run, undisturbed_run)
    assert [(r["step"], r["val/macro_f1"]) for r in validated(run)] == [
        (r["step"], r["val/macro_f1"]) for r in validated(undisturbed_run)
    ]


def validated(run: Path) -> list[dict[str, Any]]:
    return [record for record in records(run) if "val/macro_f1" in record]


def test_samples_are_left_out_alike_on_any_number_of_ranks_and_listed(
    own_set: Path, small_net: str, tmp_path: Path
) -> None:
    shards = ShardSet.open(own_set)
    victims = [int(shards.ranges("train")[0][0]) + place for place in (2, 30, 31)]
    for victim in victims:
        flip(own_set, shards, victim)
    said = {}
    for ranks in (2, 0):
        run = tmp_path / f"run{ranks}"
        arguments = ("train", "cnn5", "--data", own_set, "--run", run, "--model.name", small_net, *FAST)
        done = bloodcell(*arguments, "--data.on_error", "skip", ranks=ranks)
        assert done.code == 0, done.err
        assert "left out of training" in " ".join(done.err.split())
        said[ranks] = status(run)
        assert said[ranks]["lineage_proven"] is True
        with open(run / "skipped.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["key"] for row in rows} == {shards.keys[victim] for victim in victims}
        assert all(row["shard"] == shards.shard_of(shards.keys.index(row["key"])) for row in rows)
        assert said[ranks]["left_out"]["times"] == len(rows)
        assert sorted(said[ranks]["left_out"]["keys"]) == sorted({row["key"] for row in rows})
        assert json.loads((run / "report.json").read_text())["left_out"]["samples"] == 3
    page = (tmp_path / "run0" / "report.html").read_text()
    assert f"could not be read; others stood in for them, {said[0]['left_out']['times']} times in all" in page
    assert all(f">{shards.keys[victim]}</th>" in page for victim in victims)
    (told,) = bloodcell("status", tmp_path / "run0", "--json").json["runs"]
    assert told["left_out"] == 3
    judged = bloodcell("evaluate", tmp_path / "run0", "--split", "test", "--json")
    assert judged.json["left_out_of_training"] == said[0]["left_out"]
    assert said[2]["lineage"] == said[0]["lineage"]
    assert (tmp_path / "run2" / "skipped.csv").read_bytes() == (tmp_path / "run0" / "skipped.csv").read_bytes()
    done = bloodcell("evaluate", tmp_path / "run0", "--split", "train", "--predict")
    assert done.code == 3  # an evaluation never leaves one out
    assert "a sample cannot be read" in done.err


@pytest.mark.slow
def test_leaving_out_resumes_exactly(own_set: Path, small_net: str, tmp_path: Path) -> None:
    shards = ShardSet.open(own_set)
    for place in range(0, 60, 7):
        flip(own_set, shards, int(shards.ranges("train")[0][0]) + place)
    arguments = ("train", "cnn5", "--data", own_set, "--model.name", small_net, *FAST, "--data.on_error", "skip")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert bloodcell(*arguments, "--run", whole, ranks=2).code == 0
    process = start(*arguments, "--run", run, ranks=2)
    wait_for_losses(process, run, 5)
    kill(process)
    assert bloodcell(*arguments, "--run", run, ranks=2).code == 0
    assert same(run, whole)
    assert (run / "skipped.csv").read_bytes() == (whole / "skipped.csv").read_bytes()


def test_skipping_without_checking_is_refused(small_set: Path, tmp_path: Path) -> None:
    arguments = ("--data", small_set, "--run", tmp_path / "run", "--data.on_error", "skip", "--data.check", "false")
    done = bloodcell("train", "cnn5", *arguments)
    assert done.code == 2
    assert "data.check" in done.err
