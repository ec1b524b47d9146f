"""Tars and their indexes: byte for byte GNU tar's and wds2idx's, read by the usual readers, whole or not there."""

from __future__ import annotations

import hashlib
import io
import os
import random
import resource
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import BadInput, CheckFailed, EnvironmentFault, Fault
from shards.tar import RECORD, Member, ShardWriter, header, index_text, read_members, tar_bytes

PLAIN = ["--format=ustar", "--numeric-owner", "--owner=0", "--group=0", "--mode=0644", "--mtime=@0"]
Sample = tuple[str, list[tuple[str, bytes]]]


def picture(number: int, kind: str) -> bytes:
    """Return a tiny image of one colour, encoded as `kind`."""
    file = io.BytesIO()
    Image.new("RGB", (9 + number, 8), (20 * number % 256, 90, 160)).save(file, kind)
    return file.getvalue()


def mixed_samples(count: int = 12) -> list[Sample]:
    """Return samples of three image formats with sizes below, at and above the block size."""
    kinds = [("jpg", "JPEG"), ("png", "PNG"), ("bmp", "BMP")]
    return [
        (
            f"cell_{i:03d}",
            [
                (kinds[i % 3][0], picture(i, kinds[i % 3][1])),
                ("cls", b"%d" % (i % 11)),
                ("json", b'{"n": %d, "fill": "%s"}' % (i, b"x" * (60 * i))),
            ],
        )
        for i in range(count)
    ]


def write(path: Path, samples: list[Sample]) -> list[list[Member]]:
    """Write a shard and return where its members lie."""
    with ShardWriter(path) as writer:
        return [writer.add(key, members) for key, members in samples]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of twelve mixed samples."""
    write(tmp_path / "train-000000.tar", mixed_samples())
    return tmp_path / "train-000000.tar"


def test_bytes_are_those_of_gnu_tar(tmp_path: Path, shard: Path) -> None:
    names = []
    for key, members in mixed_samples():
        for extension, data in members:
            names.append(f"{key}.{extension}")
            (tmp_path / names[-1]).write_bytes(data)
    subprocess.run(["tar", *PLAIN, "-cf", "gnu", *names], cwd=tmp_path, check=True)
    assert shard.read_bytes() == (tmp_path / "gnu").read_bytes()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 8703, 8704, 8705, 9216, 9217, 100_000])
def test_archive_ends_like_gnu_tar_at_every_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(size))
    write(tmp_path / "ours.tar", [("a", [("jpg", bytes(size))])])
    subprocess.run(["tar", *PLAIN, "-cf", "gnu", "a.jpg"], cwd=tmp_path, check=True)
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "gnu").read_bytes()
    assert [member.size for member in read_members(tmp_path / "ours.tar")] == [size]


def test_summary_and_places_are_true(tmp_path: Path) -> None:
    path, samples = tmp_path / "s.tar", mixed_samples(40)
    with ShardWriter(path) as writer:
        placed = [writer.add(key, members) for key, members in samples]
    summary = writer.close()
    data = path.read_bytes()
    assert summary == writer.summary
    assert (summary.samples, summary.bytes) == (40, len(data))
    assert summary.sha256 == hashlib.sha256(data).hexdigest()
    assert len(data) % RECORD == 0
    for members, (key, contents) in zip(placed, samples, strict=True):
        assert [m.name for m in members] == [f"{key}.{extension}" for extension, _ in contents]
        assert [data[m.offset : m.offset + m.size] for m in members] == [content for _, content in contents]
    assert list(read_members(path)) == [member for members in placed for member in members]


def test_same_samples_give_same_bytes_and_large_shards_are_whole(tmp_path: Path) -> None:
    noise = random.Random(0)
    samples = [(f"k{i}", [("jpg", noise.randbytes(30_000 + i)), ("cls", b"1")]) for i in range(40)]
    for name in ("a.tar", "b.tar"):
        write(tmp_path / name, samples)
    data = (tmp_path / "a.tar").read_bytes()
    assert data == (tmp_path / "b.tar").read_bytes()
    assert data.startswith(b"".join(tar_bytes(key, members) for key, members in samples))


def test_index_is_that_of_the_dali_tool(tmp_path: Path, shard: Path) -> None:
    import wds2idx

    with wds2idx.IndexCreator(str(shard), str(tmp_path / "theirs.idx"), verbose=False) as creator:
        creator.create_index()
    assert shard.with_suffix(".idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()
    assert index_text([]) == "v1.2 0\n"


def test_gnu_tar_lists_without_a_warning(shard: Path) -> None:
    listed = subprocess.run(["tar", "tf", str(shard)], capture_output=True, check=True, text=True)
    assert listed.stderr == ""
    assert listed.stdout.split() == [f"{key}.{ext}" for key, members in mixed_samples() for ext, _ in members]


def test_python_tarfile_reads_plain_members(shard: Path) -> None:
    with tarfile.open(shard) as archive:
        found = archive.getmembers()
        contents = [archive.extractfile(member).read() for member in found]  # type: ignore[union-attr]
    assert contents == [data for _, members in mixed_samples() for _, data in members]
    plain = {(m.mode, m.uid, m.gid, m.mtime, m.uname, m.gname, m.isreg(), not m.pax_headers) for m in found}
    assert plain == {(0o644, 0, 0, 0, "", "", True, True)}


def test_webdataset_reads_with_its_ordinary_decoders(shard: Path) -> None:
    import webdataset as wds

    pairs = list(wds.WebDataset(str(shard), shardshuffle=False).decode("pil").to_tuple("jpg;png;bmp", "cls"))
    assert [label for _, label in pairs] == [i % 11 for i in range(12)]
    assert [image.size for image, _ in pairs] == [(9 + i, 8) for i in range(12)]


def test_dali_reads_with_our_index(shard: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=12, num_threads=1, device_id=None)
    def reader() -> tuple[object, ...]:
        image, label = fn.readers.webdataset(
            paths=[str(shard)],
            index_paths=[str(shard.with_suffix(".idx"))],
            ext=["jpg;png;bmp", "cls"],
            missing_component_behavior="error",
        )
        return image, label, fn.decoders.image(image, device="cpu")

    pipeline = reader()
    pipeline.build()
    images, labels, pixels = pipeline.run()
    for i, (key, members) in enumerate(mixed_samples()):
        assert np.asarray(images[i]).tobytes() == members[0][1], key
        assert np.asarray(labels[i]).tobytes() == members[1][1], key
        assert np.asarray(pixels[i]).shape == (8, 9 + i, 3), key


@pytest.mark.parametrize("key", ["", "A", "a.b", "a/b", "a b", "ä", "a-b", "a\n", "a" * 97])
def test_bad_keys_are_refused(key: str) -> None:
    with pytest.raises(BadInput):
        tar_bytes(key, [("jpg", b"x")])


@pytest.mark.parametrize("extensions", [(), ("jpg", "jpg"), ("JPG",), ("",), ("a.b",), (".jpg",)])
def test_bad_extensions_are_refused(extensions: tuple[str, ...]) -> None:
    with pytest.raises(BadInput):
        tar_bytes("a", [(extension, b"x") for extension in extensions])


@pytest.mark.parametrize(("name", "size"), [("", 1), ("a" * 101, 1), ("é", 1), ("a\0b", 1), ("a", 8**11), ("a", -1)])
def test_headers_refuse_what_ustar_cannot_say(name: str, size: int) -> None:
    with pytest.raises(BadInput):
        header(name, size)


def test_longest_name_and_largest_size_are_right() -> None:
    info = tarfile.TarInfo.frombuf(header("a" * 100, 8**11 - 1), "ascii", "strict")
    assert (info.name, info.size) == ("a" * 100, 8**11 - 1)


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="twice"):
        write(tmp_path / "a.tar", [("a", [("jpg", b"x")]), ("b", [("jpg", b"x")]), ("a", [("jpg", b"x")])])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_shard_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(Fault):
        write(tmp_path / "a.tar", [])
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_its_name_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with ShardWriter(path) as writer:
        writer.add("a", [("jpg", bytes(1 << 20))])
        assert [file.name for file in tmp_path.iterdir()] == ["a.tar.partial"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.idx", "a.tar"]
    with pytest.raises(BadInput), ShardWriter(tmp_path / "b.tar") as writer:
        writer.add("Not a key", [("jpg", b"x")])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.idx", "a.tar"]


@pytest.mark.parametrize("limit", [0, 300_000, 700_001])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(EnvironmentFault, match="could not write"):
            write(tmp_path / "a.tar", [(f"k{i}", [("jpg", bytes(100_000))]) for i in range(8)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def places(path: Path) -> list[Member]:
    """Return all members of a shard."""
    return list(read_members(path))


def test_reader_names_the_position_of_a_damaged_header(shard: Path) -> None:
    target = places(shard)[7]
    data = bytearray(shard.read_bytes())
    for byte in (0, 105, 130, 150, 156, 400):
        damaged = data.copy()
        damaged[target.offset - 512 + byte] ^= 4
        shard.write_bytes(damaged)
        with pytest.raises(CheckFailed, match=f"at byte {target.offset - 512:,}"):
            places(shard)


def test_reader_notices_truncation_anywhere(shard: Path) -> None:
    data, last = shard.read_bytes(), places(shard)[-1]
    end = last.offset + last.size + -last.size % 512
    for cut in (
        0,
        100,
        512,
        places(shard)[4].offset,
        places(shard)[4].offset + 1,
        end - 512,
        end,
        end + 512,
        end + 700,
    ):
        shard.write_bytes(data[:cut])
        with pytest.raises(CheckFailed):
            places(shard)


def test_reader_notices_what_follows_the_end(shard: Path) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data + bytes(512))
    assert len(places(shard)) == 36
    shard.write_bytes(data + bytes(100) + b"more")
    with pytest.raises(CheckFailed, match=f"at byte {len(data) + 100:,}"):
        places(shard)


def test_reader_refuses_anything_but_plain_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    subprocess.run(["tar", "-cf", "x.tar", "folder"], cwd=tmp_path, check=True)
    with pytest.raises(CheckFailed, match="plain file"):
        places(tmp_path / "x.tar")


def test_reader_follows_tars_of_other_writers(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"abc")
    (tmp_path / ("d" * 60)).mkdir()
    long = Path("d" * 60) / f"{'e' * 60}.jpg"
    (tmp_path / long).write_bytes(b"long")
    for form in ("gnu", "ustar"):
        subprocess.run(["tar", f"--format={form}", "-cf", "x.tar", "a.jpg"], cwd=tmp_path, check=True)
        assert places(tmp_path / "x.tar") == [Member("a.jpg", 512, 3)]
    subprocess.run(["tar", "--format=ustar", "-cf", "x.tar", long], cwd=tmp_path, check=True)
    assert places(tmp_path / "x.tar") == [Member(os.fspath(long), 512, 4)]
