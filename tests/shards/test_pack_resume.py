"""A packing that ends early, killed, interrupted or on a full disk: started again it goes on to the same set."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from shards.assemble import assemble
from shards.errors import BadInput, EnvironmentFault
from shards.features import FEATURES_DTYPE
from shards.pack import PackOptions, examine_chunks, pack, prepared
from shards.work import Work, alone
from tests.conftest import bloodcell, command
from tests.shards.packing import ONE, fill, hashes, noise, plain, rows

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = replace(ONE, shard_samples=10)
FLAGS = ("--shard-samples", 10)


@pytest.fixture(scope="module")
def undisturbed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of the drawn images packed at one go."""
    target = tmp_path_factory.mktemp("undisturbed") / "set"
    pack(drawn, target, OPTIONS)
    return hashes(target)


@contextmanager
def started(*words: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command in a process group of its own; whatever is left of it at the end is killed."""
    with open(log, "ab") as file:
        process = subprocess.Popen(command(*words), cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Kill a process as a scheduler or a lack of memory does, and wait for its helpers to end; return them."""
    helpers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    wait(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in helpers))
    return helpers


def wait(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def left_of(target: Path) -> list[str]:
    """Return what lies beside a set that has to do with packing it."""
    return sorted(path.name for path in target.parent.glob(f"{target.name}.partial*"))


def kills(images: Path, target: Path, workers: int, seed: int, most: int) -> int:
    """Start packing and kill it after a random while, again and again until it is done; return how often it died."""
    rng = random.Random(seed)
    for count in range(most + 1):
        with started("pack", images, target, *FLAGS, "--workers", workers, log=target.with_name("log")) as process:
            wait(lambda: (target.with_name("set.partial") / "work").exists() or process.poll() is not None)
            if count < most:
                time.sleep(rng.uniform(0, 0.6))
                kill(process)
            assert process.wait() in (0, -signal.SIGKILL), target.with_name("log").read_text()
        if target.exists():
            return count
    raise AssertionError("never done")


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments_the_set_is_the_same(
    drawn: Path, undisturbed: dict[str, str], tmp_path: Path, workers: int
) -> None:
    kills(drawn, tmp_path / "set", workers, seed=workers, most=2)
    assert hashes(tmp_path / "set") == undisturbed
    assert again(drawn, tmp_path / "set") == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("seed", range(6))
def test_killed_very_often_the_set_is_the_same(
    drawn: Path, undisturbed: dict[str, str], tmp_path: Path, workers: int, seed: int
) -> None:
    kills(drawn, tmp_path / "set", workers, seed, most=6)
    assert hashes(tmp_path / "set") == undisturbed
    assert again(drawn, tmp_path / "set") == []


def again(images: Path, target: Path) -> list[str]:
    """Return what is left beside a finished set that somebody tries to pack again."""
    with pytest.raises(BadInput, match="the set exists already"):
        pack(images, target, OPTIONS)
    return left_of(target)


def test_killed_after_its_last_rename_a_set_is_whole_and_its_remains_go(drawn: Path, tmp_path: Path) -> None:
    target = tmp_path / "set"
    pack(drawn, target, OPTIONS)
    before = hashes(target)
    (tmp_path / "set.partial.work").mkdir()
    (tmp_path / "set.partial.lock").touch()
    assert again(drawn, target) == []
    assert hashes(target) == before


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_asked_to_stop_it_says_that_it_can_go_on(
    drawn: Path, undisturbed: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    """Slurm signals all processes of a job: the helpers die of it."""
    target, log = tmp_path / "set", tmp_path / "log"
    with started("pack", drawn, target, *FLAGS, "--workers", 2, log=log) as process:
        wait(lambda: (tmp_path / "set.partial" / "work").exists() or process.poll() is not None)
        os.killpg(process.pid, number)
        assert process.wait() == 85, log.read_text()
    assert f"stopped by {number.name}" in log.read_text()
    assert bloodcell("pack", drawn, target, *FLAGS).code == 0
    assert hashes(target) == undisturbed


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_while_writing_the_finished_shards_are_not_written_again(
    drawn: Path, undisturbed: dict[str, str], tmp_path: Path, workers: int
) -> None:
    target, partial = tmp_path / "set", tmp_path / "set.partial"
    with started("pack", drawn, target, *FLAGS, "--workers", workers, log=tmp_path / "log") as process:
        wait(lambda: len(list(partial.glob("work/train*.json"))) >= 5 or process.poll() is not None)
        helpers = kill(process)
    assert len(helpers) >= workers - 1
    assert not target.exists()
    assert not (partial / "dataset.json").exists()
    records = list((partial / "work").glob("train*.json"))
    before = {path.stem: (partial / f"{path.stem}.tar").stat().st_ino for path in records}
    assert len(before) >= 5
    done = bloodcell("pack", drawn, target, *FLAGS, "--workers", workers)
    assert done.code == 0, done.err
    assert "240 of 240 images were examined before: taken up" in done.err
    assert (
        f"{len(before)} of {sum(name.endswith('.tar') for name in undisturbed)} shards were written before: taken up"
        in done.err
    )
    assert {name: (target / f"{name}.tar").stat().st_ino for name in before} == before
    assert hashes(target) == undisturbed
    assert left_of(target) == []


def test_an_interrupt_is_one_line_and_what_is_done_stays(
    drawn: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    target = tmp_path / "set"
    with started("pack", drawn, target, *FLAGS, "--workers", 2, log=tmp_path / "log") as process:
        wait(lambda: list((tmp_path / "set.partial").glob("*.tar")) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: the workers get it too
        assert process.wait(60) == 130
    said = (tmp_path / "log").read_text()
    assert f"what is done stays in {tmp_path / 'set.partial'}: start again to go on" in said
    assert "bloodcell: interrupted" in said
    assert "Traceback" not in said
    assert left_of(target) == ["set.partial"]
    pack(drawn, target, OPTIONS)
    assert hashes(target) == undisturbed


def begun(images: Path, target: Path, options: PackOptions) -> None:
    """Leave what a packing leaves that was killed after it had examined all and written some shards."""
    pack(images, target.with_name("whole"), options)
    sample = images / rows(target.with_name("whole"))[-1]["source"]
    content, times = sample.read_bytes(), sample.stat()
    with prepared(images, target, options) as packing, alone(target) as work:
        work.begin(packing.identity)
        examine_chunks(packing.chunks, 1)
        sample.write_bytes(content[:-1])  # so that the packing stops where this image is to be written
        with pytest.raises(BadInput, match="changed while packing"):
            assemble(packing, work)
    sample.write_bytes(content)
    os.utime(sample, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_other_options_use_what_does_not_depend_on_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, target = fill(tmp_path / "in", plain(40)), tmp_path / "set"
    begun(images, target, OPTIONS)
    other = replace(OPTIONS, seed=5, split="50/25/25")
    pack(images, target, other)
    said = capsys.readouterr().err
    assert "set.partial was begun otherwise (--split: '80/10/10' and '50/25/25'; --seed: 0 and 5)" in said
    assert "80 of 80 images were examined before" in said
    assert "shards were written before" not in said
    pack(images, tmp_path / "fresh", other)
    assert hashes(target) == hashes(tmp_path / "fresh")


def test_another_treatment_starts_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, target = fill(tmp_path / "in", plain(40)), tmp_path / "set"
    begun(images, target, OPTIONS)
    other = replace(OPTIONS, encode="webp-lossless")
    pack(images, target, other)
    said = capsys.readouterr().err
    assert said.count("set.partial was begun otherwise (treatment: ") == 1
    assert "starting over" in said
    assert "taken up" not in said
    pack(images, tmp_path / "fresh", other)
    assert hashes(target) == hashes(tmp_path / "fresh")


@pytest.mark.parametrize("change", ["other bytes", "another time", "a file more", "a file less"])
def test_changed_images_are_looked_at_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    images, target = fill(tmp_path / "in", plain(80)), tmp_path / "set"
    begun(images, target, OPTIONS)
    last = images / "b/079.png"  # in the last of three chunks
    if change == "a file more":
        (images / "b/080.png").write_bytes(noise(5000))
    elif change == "a file less":
        last.unlink()
    elif change == "another time":
        os.utime(last, ns=(5, 5))
    else:
        last.write_bytes(noise(6000))
    pack(images, target, OPTIONS)
    said = capsys.readouterr().err
    assert "set.partial was begun otherwise (the images: " in said
    assert "128 of " in said
    pack(images, tmp_path / "fresh", OPTIONS)
    assert hashes(target) == hashes(tmp_path / "fresh")
    assert len(rows(target)) == {"a file more": 161, "a file less": 159}.get(change, 160)


@pytest.mark.parametrize("damage", ["cut short", "flipped", "emptied", "of other images"])
def test_a_damaged_chunk_is_examined_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    images, target = fill(tmp_path / "in", plain(80)), tmp_path / "set"
    begun(images, target, OPTIONS)
    first, second, _ = sorted((tmp_path / "set.partial/work").glob("chunk-*.arrow"))
    data = first.read_bytes()
    if damage == "of other images":
        shutil.copy(second, first)
    elif damage == "flipped":
        first.write_bytes(data[:999] + bytes([data[999] ^ 1]) + data[1000:])
    else:
        first.write_bytes(data[:-1] if damage == "cut short" else b"")
    pack(images, target, OPTIONS)
    assert "96 of 160 images were examined before" in capsys.readouterr().err
    pack(images, tmp_path / "fresh", OPTIONS)
    assert hashes(target) == hashes(tmp_path / "fresh")


@pytest.mark.parametrize("damage", ["cut short", "record damaged", "no index"])
def test_a_damaged_shard_is_written_again(tmp_path: Path, damage: str) -> None:
    images, target = fill(tmp_path / "in", plain(80)), tmp_path / "set"
    begun(images, target, OPTIONS)
    tar = sorted((tmp_path / "set.partial").glob("*.tar"))[0]
    if damage == "cut short":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif damage == "no index":
        tar.with_suffix(".idx").unlink()
    else:
        (tmp_path / "set.partial/work" / f"{tar.stem}.json").write_text("{")
    pack(images, target, OPTIONS)
    pack(images, tmp_path / "fresh", OPTIONS)
    assert hashes(target) == hashes(tmp_path / "fresh")


def test_a_set_that_waits_for_its_name_only_is_taken_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, target = fill(tmp_path / "in", plain(40)), tmp_path / "set"
    begun(images, target, OPTIONS)
    partial = tmp_path / "set.partial"
    (partial / "work").rename(tmp_path / "set.partial.work")  # the first of the two renames at the end
    pack(images, target, OPTIONS)
    assert "80 of 80 images were examined before" in capsys.readouterr().err
    assert left_of(target) == []
    (tmp_path / "set.partial.work").mkdir()  # a kill after the second
    target.rename(tmp_path / "moved")
    pack(images, target, OPTIONS)
    assert left_of(target) == []
    assert hashes(target) == hashes(tmp_path / "moved")


def test_two_processes_never_pack_one_set(drawn: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    target = tmp_path / "set"
    with alone(target):
        done = bloodcell("pack", drawn, target, *FLAGS, "--workers", 1)
        assert done.code == 3
        assert "another process is packing this set" in done.err
        assert left_of(target) == ["set.partial.lock"]
    assert left_of(target) == []
    with started("pack", drawn, target, *FLAGS, log=tmp_path / "log") as process:
        wait(lambda: (tmp_path / "set.partial/work/work.json").exists() or process.poll() is not None)
        with pytest.raises(EnvironmentFault, match="another process is packing this set"):
            pack(drawn, target, OPTIONS)
        assert process.wait() == 0  # undisturbed
    assert hashes(target) == undisturbed


def test_a_folder_without_a_record_of_work_is_cleared_away(tmp_path: Path) -> None:
    images = fill(tmp_path / "in", plain(10))
    fill(tmp_path / "set.partial", {"train-000009.tar": b"old", "work/work.json": b"[]"})
    assert Work(tmp_path / "set").identity() is None
    pack(images, tmp_path / "set", ONE)
    assert not (tmp_path / "set/train-000009.tar").exists()


def test_what_cannot_be_mended_by_another_start_is_removed(tmp_path: Path) -> None:
    images = fill(tmp_path / "in", plain(2))
    with pytest.raises(BadInput, match="too few for 3 parts"):
        pack(images, tmp_path / "set", ONE)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_on_a_disk_that_fills_up_each_start_goes_further(tmpfs: Path, tmp_path: Path) -> None:
    images = fill(
        tmp_path / "in", {f"{c}/{i}.png": noise(i + 500 * (c == "b"), "PNG", 4, 4) for c in "ab" for i in range(150)}
    )
    options = replace(ONE, near=False, allow_leaks=True)  # so small, they all look alike
    pack(images, tmp_path / "set", options)
    ballast, faults = tmpfs / "ballast", []
    while not (tmpfs / "set").exists():
        ballast.write_bytes(b"")
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(tmpfs).free - 64 * 1024 * (len(faults) + 1))))
        try:
            pack(images, tmpfs / "set", options)
        except EnvironmentFault as fault:
            faults.append(fault.what)
            assert left_of(tmpfs / "set") == ["set.partial"]
        assert len(faults) < 30
    assert {"could not write: No space left on device"} <= set(faults)
    assert len(faults) >= 4
    assert hashes(tmpfs / "set") == hashes(tmp_path / "set")


def test_a_disk_that_is_too_small_is_refused_before_shards_are_written(tmpfs: Path, tmp_path: Path) -> None:
    images = fill(tmp_path / "in", plain(40))
    features = 80 * FEATURES_DTYPE.itemsize
    (tmpfs / "ballast").write_bytes(bytes((2 << 20) - 200_000 - features))  # what is examined fits
    with pytest.raises(EnvironmentFault, match="not enough room: 0 MB to write"):
        pack(images, tmpfs / "set", ONE)
    assert list((tmpfs / "set.partial").iterdir()) == [tmpfs / "set.partial/work"]
    (tmpfs / "ballast").unlink()
    pack(images, tmpfs / "set", ONE)
    pack(images, tmp_path / "set", ONE)
    assert hashes(tmpfs / "set") == hashes(tmp_path / "set")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_exit_3(tmpfs: Path, tmp_path: Path, workers: int) -> None:
    images = fill(tmp_path / "in", plain(40))
    (tmpfs / "ballast").write_bytes(bytes((2 << 20) - 420_000))  # the images fit, the tars around them do not
    flags = ["--shard-samples", 20, "--workers", workers]
    done = bloodcell("pack", images, tmpfs / "set", *flags, "--json")
    assert done.code == 3, done.err
    said = [line for line in done.err.splitlines() if line.startswith("bloodcell: ")]
    assert len(said) == 1
    assert "could not write" in said[0]
    assert f"what is done stays in {tmpfs / 'set.partial'}: start again to go on" in done.err
    assert "Traceback" not in done.err
    assert done.json["exit"] == 3
    (tmpfs / "ballast").unlink()
    assert bloodcell("pack", images, tmpfs / "set", *flags).code == 0
