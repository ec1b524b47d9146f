"""Check one tar of a shard set, byte by byte, against the sample table, dataset.json and its index."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from shards.errors import BadInput, CheckFailed
from shards.format import ShardInfo
from shards.tar import BLOCK, RESTORE, Member, archive_end, header, index_path, index_text, read_members

CHUNK = 1 << 20
SMALLEST = 6 * BLOCK  # headers and data of the image, the .cls and the .json
NAMED = 3
"""So many bad samples of a shard are named one by one; the others are counted."""
REQUIRED = {"key", "label", "class"}
"""What the .json of a sample must say. It may hold other columns of the sample table, and nothing else."""
STYLES: tuple[dict[str, Any], ...] = tuple(
    {"ensure_ascii": ascii_only, "separators": separators}
    for ascii_only in (False, True)
    for separators in (None, (",", ":"))
)


@dataclass(frozen=True)
class ShardTask:
    """A tar to check and its rows of the sample table, None if the table cannot be used."""

    folder: Path
    shard: ShardInfo
    rows: pa.Table | None


@dataclass
class ShardCheck:
    """What was found in one tar: its bytes, and (key, problem) pairs, the key empty where no sample is meant."""

    file: str
    bytes: int = 0
    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, key: str, problem: str) -> None:
        """Note a problem."""
        self.found.append((key, problem))

    def lines(self) -> list[str]:
        """Return a line for each of the first problems, and one that counts the others."""
        lines = [
            f"{self.file}, sample {key}: {problem}: {RESTORE}" if key else f"{self.file}: {problem}: {RESTORE}"
            for key, problem in self.found[:NAMED]
        ]
        more = len(self.found) - NAMED
        return lines + ([f"{self.file}: {more:,} more problems"] if more > 0 else [])


def check_shard(task: ShardTask) -> ShardCheck:
    """Read the tar once from end to end and report what is wrong with it; nothing is raised for a bad tar."""
    path, check, digest = task.folder / task.shard.file, ShardCheck(task.shard.file), hashlib.sha256()
    members: list[list[Member]] | None = None
    try:
        with open(path, "rb") as file:
            check.bytes = os.fstat(file.fileno()).st_size
            if task.rows is None:
                _skim(path, check)
            else:
                members = _check_samples(file, digest, task.rows, task.shard, check)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        first = task.rows["key"][0].as_py() if task.rows is not None and task.rows.num_rows else ""
        check.add(first, "the file is missing" if isinstance(error, FileNotFoundError) else f"unreadable: {error}")
        return check
    if check.found and task.rows is not None:
        check.found[:0] = _misplaced(path, task.rows)
    if check.bytes != task.shard.bytes:
        check.add("", f"{check.bytes:,} bytes, dataset.json says {task.shard.bytes:,}")
    elif digest.hexdigest() != task.shard.sha256:
        check.add("", "its sha256 is not the one in dataset.json")
    if members is not None:
        _check_text_of_index(index_path(path), members, check)
    return check


def _skim(path: Path, check: ShardCheck) -> None:
    """Check headers alone, and name the sample after which they cannot be followed."""
    key = ""
    try:
        for member in read_members(path):
            key = member.name.partition(".")[0]
    except CheckFailed as error:
        check.add(key, f"{error.what} ({error.where}), at or after this sample")


def _misplaced(path: Path, rows: pa.Table) -> list[tuple[str, str]]:
    """Return the first sample that lies elsewhere than the table says, if all headers of the tar are right."""
    places: dict[str, int] = {}
    try:
        for member in read_members(path):
            places.setdefault(member.name.partition(".")[0], member.offset)
    except CheckFailed:
        return []
    for key, offset in zip(rows["key"].to_pylist(), rows["offset"].to_pylist(), strict=True):
        if key not in places:
            return [(key, "the tar does not hold it")]
        if places[key] != offset:
            return [(key, f"the sample table places it at byte {offset:,}, it lies at byte {places[key]:,}")]
    return []


def _check_samples(
    file: IO[bytes], digest: hashlib._Hash, rows: pa.Table, shard: ShardInfo, check: ShardCheck
) -> list[list[Member]] | None:
    """Check each sample where the table says it lies; return all members, or None if any is damaged."""
    columns = rows.to_pydict()
    keys, starts = columns["key"], [offset - BLOCK for offset in columns["offset"]]
    limits = [*starts[1:], max(shard.bytes, check.bytes)]
    if not keys:
        check.add("", "it holds no sample")
        return None
    for i, (key, start, limit) in enumerate(zip(keys, starts, limits, strict=True)):
        if limit - start < SMALLEST or start % BLOCK or (i == 0 and start):
            check.add(key, f"the sample table places it at byte {start + BLOCK:,}, which cannot be")
            return None
    samples = []
    for i, (start, limit) in enumerate(zip(starts, limits, strict=True)):
        data = file.read(limit - start)
        digest.update(data)
        try:
            row = {name: values[i] for name, values in columns.items()}
            samples.append(_check_sample(data, start, row, last=i + 1 == len(keys)))
        except ValueError as error:
            check.add(keys[i], str(error))
        except EOFError:
            check.add("", "the blocks that end the archive are damaged")
    return samples if len(samples) == len(keys) else None


def _check_sample(data: bytes, start: int, row: dict[str, Any], last: bool) -> list[Member]:
    """Check the bytes of one sample, and of the end of the archive behind the last one.

    Raises:
        ValueError: says what is wrong with the sample.
        EOFError: the sample is right, the end of the archive behind it is not.
    """
    if not data:
        raise ValueError("the file ends before it")
    members = _split(data, start)
    contents = {m.name: memoryview(data)[m.offset - start : m.offset - start + m.size] for m in members}
    _check_image(members[0], contents[members[0].name], row)
    label, text = contents.get(f"{row['key']}.cls"), contents.get(f"{row['key']}.json")
    if label is None or text is None:
        raise ValueError(f"it has only {', '.join(contents)}")
    if bytes(label) != b"%d" % row["label"]:
        raise ValueError(f"its .cls says {bytes(label)[:20]!r}, the sample table {row['label']}")
    _check_json(bytes(text), row)
    end = members[-1].offset - start + members[-1].size
    end += -end % BLOCK
    if last and data[end:] != archive_end(start + end):
        raise EOFError
    if not last and end != len(data):
        raise ValueError(f"something else follows it at byte {start + end:,}")
    return members


def _split(data: bytes, start: int) -> list[Member]:
    """Return the members in `data`, which begin at `start` of the file and end at a zero byte in place of a name."""
    members: list[Member] = []
    position = 0
    while position < len(data) and (data[position] or not members):
        block = data[position : position + BLOCK]
        try:
            name, size = block[:100].rstrip(b"\0").decode("ascii"), int(block[124:135], 8)
            whole = header(name, size) == block
        except (ValueError, BadInput):
            whole = False
        if not whole:
            raise ValueError(f"the header at byte {start + position:,} is damaged")
        end = position + BLOCK + size
        padded = end + -end % BLOCK
        if padded > len(data):
            raise ValueError(f"{name} is cut short at byte {start + len(data):,}")
        if any(data[end:padded]):
            raise ValueError(f"the padding behind {name} at byte {start + end:,} is damaged")
        members.append(Member(name, start + position + BLOCK, size))
        position = padded
    return members


def _check_image(image: Member, data: memoryview, row: dict[str, Any]) -> None:
    if image.name.partition(".")[0] != row["key"]:
        raise ValueError(f"{image.name} lies where the sample table places it")
    if image.size != row["size"]:
        raise ValueError(f"{image.name} has {image.size:,} bytes, the sample table says {row['size']:,}")
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise ValueError(f"the bytes of {image.name} (from byte {image.offset:,}) are not those that were packed")
    if zlib.crc32(data) != row["crc32"]:
        raise ValueError("the sample table holds a wrong crc32")


def _check_json(text: bytes, row: dict[str, Any]) -> None:
    """Check that the .json is plain JSON of columns of the table, without a byte that could be another."""
    try:
        value = json.loads(text)
    except ValueError:
        raise ValueError("its .json is damaged: not JSON") from None
    if not isinstance(value, dict) or not value.keys() >= REQUIRED:
        raise ValueError(f"its .json is damaged: it does not hold {', '.join(sorted(REQUIRED))}")
    for name, content in value.items():
        if name not in row or content != row[name]:
            said = row.get(name, "nothing")
            raise ValueError(f"its .json says {content!r} for {name!r}, the sample table {said!r}")
    if not any(json.dumps(value, **style).encode() == text for style in STYLES):
        raise ValueError("its .json is damaged: not written as it is packed")


def _check_text_of_index(path: Path, samples: list[list[Member]], check: ShardCheck) -> None:
    try:
        found = path.read_text(encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        check.add("", f"its index {path.name} cannot be read ({error.strerror})")
        return
    expected = index_text(samples)
    if found != expected:
        lines, wanted = found.splitlines(), expected.splitlines()
        line = next((i for i, pair in enumerate(zip(lines, wanted, strict=False)) if pair[0] != pair[1]), len(lines))
        key = samples[line - 1][0].name.partition(".")[0] if 0 < line <= len(samples) else ""
        check.add(key, f"its index {path.name} differs from line {line + 1}")
