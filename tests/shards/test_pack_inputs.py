"""What people's folders really hold: each image is packed or rejected with its reason, whatever it is called."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from shards.assemble import assemble
from shards.divide import KEY_LENGTH, make_keys
from shards.errors import BadInput
from shards.examine import examine_all
from shards.pack import examine_chunks, pack, prepared
from shards.samples import Sample, Samples
from shards.sources import list_folder
from shards.verify import verify
from shards.work import alone
from shards.write import ShardPlan, write_shard
from tests.shards.packing import ONE, fill, noise, plain, rejects, rows
from tests.shards.test_pack_resume import started, wait


def test_rejects_are_named_with_their_reason(tmp_path: Path) -> None:
    files = plain()
    twin, both = noise(1), noise(2)
    pixels = Image.open(io.BytesIO(noise(3)))
    bmp = io.BytesIO()
    pixels.save(bmp, "BMP")
    files |= {"a/dup2.png": twin, "a/dup1.png": twin, "a/x/dup3.png": twin}
    files |= {"a/two.png": both, "b/one.png": both}
    files |= {"a/p.bmp": bmp.getvalue(), "a/p.png": noise(3)}
    files |= {"b/.DS_1.jpg": b"\0\0\0\1Bud1" + bytes(100), "b/zero.png": b"", "b/half.png": noise(9)[:-300]}
    files |= {"b/anim.GIF": noise(10, "GIF"), "b/gif.jpg": noise(11, "GIF"), "b/note.txt": b"no image"}
    for name in ("a/002.png", "a/003.png", "a/001.png", "a/009.png"):
        del files[name]  # the same pictures
    fill(tmp_path / "in", files)
    os.mkfifo(tmp_path / "in/b/pipe.jpg")
    (tmp_path / "in/b/loop.jpg").symlink_to("loop.jpg")
    result = pack(tmp_path / "in", tmp_path / "set", ONE)
    left = rejects(tmp_path / "set")
    assert {name: reason for name, (reason, _) in left.items()} == {
        "a/dup2.png": "exact duplicate",
        "a/x/dup3.png": "exact duplicate",
        "a/two.png": "contradicting label",
        "b/one.png": "contradicting label",
        "a/p.png": "exact duplicate",
        "b/.DS_1.jpg": "not an image",
        "b/zero.png": "empty",
        "b/half.png": "undecodable",
        "b/anim.GIF": "format",
        "b/gif.jpg": "format",
        "b/pipe.jpg": "unreadable",
        "b/loop.jpg": "unreadable",
    }
    assert left["a/dup2.png"][1] == "same bytes as a/dup1.png"
    assert left["a/p.png"][1] == "same pixels as a/p.bmp"
    assert "a/two.png" in left["b/one.png"][1]
    assert (result["images"], result["packed"], result["rejected"]) == (len(files) + 1, len(files) + 1 - 12, 12)
    assert list(left) == sorted(left)


AWKWARD = (
    "a/x.png",
    "a/x.bmp",
    "a/X.png",
    "a/x y.png",
    "a/x-y.png",
    "a/x_y.png",
    "a/ünï çødé.png",
    "a/血.png",
    "a/白.png",
    "a/line\nbreak.png",
    "a/car\rriage.png",
    'a/quote".png',
    "a/,;.png",
    "a/.hidden.png",
    "a/...png",
    "a/dots.in.name.png",
    "a/" + "long" * 50 + "1.png",
    "a/" + "long" * 50 + "2.png",
    "a/deep/er/x.png",
    "a/deep_er_x.png",
    "a/__.png",
    "b/b.png",
)


def test_keys_are_plain_and_unique_whatever_the_names(tmp_path: Path) -> None:
    files = {name: noise(i, "BMP" if name.endswith("bmp") else "PNG") for i, name in enumerate(AWKWARD)}
    fill(tmp_path / "in", files | {f"b/{i}.png": noise(100 + i) for i in range(5)})
    (tmp_path / "in/a" / os.fsdecode(b"latin\xe9.png")).write_bytes(noise(50))
    (tmp_path / "in/a" / os.fsdecode(b"empty\xff.png")).write_bytes(b"")
    result = pack(tmp_path / "in", tmp_path / "set", ONE)
    table = rows(tmp_path / "set")
    keys = [row["key"] for row in table]
    assert (result["packed"], result["rejected"]) == (len(AWKWARD) + 6, 1)
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[a-z0-9_]+", key) and len(key) <= KEY_LENGTH + 17 for key in keys)
    assert {row["source"] for row in table} >= {*AWKWARD, "a/latin\\xe9.png"}
    assert set(rejects(tmp_path / "set")) == {"a/empty\\xff.png"}
    assert next(row["key"] for row in table if row["source"] == "a/dots.in.name.png") == "a_dots_in_name"
    assert verify(tmp_path / "set")["ok"]


def test_a_key_depends_on_its_path_unless_paths_collide() -> None:
    assert make_keys(lambda: ["a/b.png", "a/c.png"]) == ["a_b", "a_c"]
    clashing = make_keys(lambda: ["a/b.png", "a/b.jpg", "a/B.png", "a_b.png"])
    assert len(set(clashing)) == 4
    assert all(re.fullmatch("a_b_[0-9a-f]{16}", key) for key in clashing)
    assert make_keys(lambda: ["a/b.jpg", "a_b.png", "a/b.png"]) == [clashing[1], clashing[3], clashing[0]]


@pytest.mark.parametrize("change", ["other bytes", "longer", "vanished", "a folder now"])
def test_an_image_that_changes_between_looking_and_writing_stops_the_packing(tmp_path: Path, change: str) -> None:
    fill(tmp_path / "in", plain(5))
    images = examine_all(list_folder(tmp_path / "in").items, 1).images
    victim = images[7].item.path
    if change == "other bytes":
        victim.write_bytes(noise(77))
    elif change == "longer":
        victim.write_bytes(victim.read_bytes() + b"\0")
    else:
        victim.unlink()
        if change == "a folder now":
            victim.mkdir()
    samples = Samples.of([Sample(image, f"k{i}", 0, "", "train") for i, image in enumerate(images)])
    (tmp_path / "out").mkdir()
    said = "changed" if change in ("other bytes", "longer") else "vanished"
    with pytest.raises(BadInput, match=f"an image {said} while packing.*{victim.name}"):
        write_shard(ShardPlan(tmp_path / "out" / "train-000000.tar", "train", ["a"], samples))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("change", ["rewritten", "removed"])
def test_images_that_change_under_a_running_packing_stop_it(drawn: Path, tmp_path: Path, change: str) -> None:
    images = tmp_path / "in"
    shutil.copytree(drawn, images)
    with started(
        "pack", images, tmp_path / "set", "--shard-samples", 2, "--workers", 1, log=tmp_path / "log"
    ) as process:
        wait(lambda: list((tmp_path / "set.partial").glob("*.tar")) or process.poll() is not None)
        os.kill(process.pid, signal.SIGSTOP)
        for path in images.rglob("*.jpg"):
            path.unlink()
            if change == "rewritten":
                path.write_bytes(noise(1, "JPEG"))
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(60) == 2
    said = (tmp_path / "log").read_text()
    assert f"an image {'changed' if change == 'rewritten' else 'vanished'} while packing" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "log"]


def test_an_image_that_vanishes_before_it_is_looked_at_is_rejected(tmp_path: Path) -> None:
    images = fill(tmp_path / "in", plain(20))
    with prepared(images, tmp_path / "set", ONE) as packing, alone(tmp_path / "set") as work:
        (images / "a/007.png").unlink()
        work.begin(packing.identity)
        examine_chunks(packing.chunks, 1)
        result = assemble(packing, work)
    assert rejects(tmp_path / "set") == {"a/007.png": ("unreadable", "No such file or directory")}
    assert (result["images"], result["packed"], result["rejected"]) == (40, 39, 1)


def test_files_without_a_label_are_passed_over_and_labels_without_a_file_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = fill(tmp_path / "in", plain(20) | {"a/unlabelled.png": noise(50), "b/loose.JPG": noise(51, "JPEG")})
    lines = ["path,label", *(f"{name},{name[0]}" for name in plain(20))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    options = replace(ONE, table=str(tmp_path / "t.csv"))
    result = pack(images, tmp_path / "set", options)
    assert result["images"] == result["packed"] == 40
    said = capsys.readouterr().err
    assert f"2 images beside those of the table have no label, first {images / 'a/unlabelled.png'}: passed over" in said
    (tmp_path / "t.csv").write_text("\n".join([*lines, "b/gone.png,b"]) + "\n")
    with pytest.raises(BadInput, match=r"names a file that does not exist: b/gone.png .*t.csv:42"):
        pack(images, tmp_path / "other", options)


def test_links_in_a_circle_and_two_ways_to_one_file(tmp_path: Path) -> None:
    images = fill(tmp_path / "in", plain(20))
    (images / "a/up").symlink_to(images, target_is_directory=True)
    (images / "a/self").symlink_to("self")
    (images / "b/link.png").symlink_to(images / "b/000.png")
    result = pack(images, tmp_path / "set", ONE)
    left = rejects(tmp_path / "set")
    assert left["b/link.png"] == ("exact duplicate", "same bytes as b/000.png")
    assert result["packed"] + result["rejected"] == result["images"]
    assert {row["source"] for row in rows(tmp_path / "set")} == {*plain(20)}


def test_a_decompression_bomb_is_one_rejected_image(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    images = fill(tmp_path / "in", plain(20) | {"a/bomb.png": bomb.getvalue()})
    result = pack(images, tmp_path / "set", ONE)
    assert rejects(tmp_path / "set")["a/bomb.png"][0] == "too large"
    assert (result["images"], result["packed"], result["rejected"]) == (41, 40, 1)
