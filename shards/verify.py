"""Check a whole shard set: each byte of its tars, the indexes, the sample table, dataset.json, what parts share."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.console import progress, warn
from shards.errors import BadInput
from shards.format import (
    INDEX_DTYPE,
    REJECTED_COLUMNS,
    SAMPLES_SCHEMA,
    DatasetInfo,
    fingerprint,
    open_index,
    read_dataset,
    read_samples,
)
from shards.parallel import map_ordered
from shards.tar import RESTORE
from shards.verify_shard import ShardTask, check_shard
from shards.ways import named_splits
from shards.work import is_growing

KEY_PATTERN = "^[a-z0-9_]+$"


def verify(folder: Path, workers: int = 1) -> dict[str, Any]:
    """Check every byte of the set in `folder`, and go on to the end whatever is found.

    Args:
        folder: a shard set.
        workers: processes; each takes one shard at a time.

    Returns:
        {"ok": bool, "samples": int, "shards": int, "bytes": int (of all tars, as found), "bad_shards": [{"file",
        "problem", "key" (the first bad sample, empty where none is meant)}], "problems": [one line each]}.

    Raises:
        BadInput: there is no set, its dataset.json is damaged, or a newer version wrote it.
        EnvironmentFault: a worker process was killed.
    """
    info = read_dataset(folder)
    _check_values(folder, info)
    problems = _check_files(folder, info) + _check_sums(info) + _check_rejected(folder, info)
    problems += check_table(folder, info)
    tasks = _tasks(folder, info)
    found = list(progress(map_ordered(check_shard, tasks, workers), "checking shards", len(info.shards)))
    problems += [line for shard in found for line in shard.lines()]
    if info.leaks:
        warn("the set was packed with --allow-leaks: its parts share images or groups")
    return {
        "ok": not problems,
        "samples": info.total,
        "shards": len(info.shards),
        "bytes": sum(shard.bytes for shard in found),
        "bad_shards": [
            {"file": shard.file, "problem": shard.found[0][1], "key": shard.found[0][0]}
            for shard in found
            if shard.found
        ],
        "problems": problems,
    }


def _check_values(folder: Path, info: DatasetInfo) -> None:
    """Check what everything else relies on: plain file names, each once, and counts that can be."""
    for shard in info.shards:
        numbers = (shard.samples, shard.bytes, shard.first)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise BadInput(f"dataset.json has impossible numbers for {shard.file}", folder, RESTORE)
        if Path(shard.file).name != shard.file or not shard.file.endswith(".tar"):
            raise BadInput(f"dataset.json names a shard {shard.file!r}", folder, RESTORE)
    if not info.shards or len({shard.file for shard in info.shards}) < len(info.shards):
        raise BadInput("dataset.json names no shard, or one twice", folder, RESTORE)


def _check_files(folder: Path, info: DatasetInfo) -> list[str]:
    """Name files that look like shards and do not belong to the set (missing ones are found when they are read)."""
    if is_growing(folder):
        warn("images are being appended to this set, or an append was cut short: what it wrote so far is not checked")
        return []
    known = {name for shard in info.shards for name in (shard.file, shard.file.removesuffix(".tar") + ".idx")}
    strays = sorted(path.name for path in folder.iterdir() if path.suffix in (".tar", ".idx", ".partial"))
    return [
        f"{name} is not in dataset.json: remove it, it was left by an interrupted or another packing"
        for name in strays
        if name not in known
    ]


def _check_sums(info: DatasetInfo) -> list[str]:
    """Check dataset.json against itself."""
    problems, first, files = [], 0, {shard.file for shard in info.shards}
    for shard in info.shards:
        if shard.first != first:
            problems.append(
                f"dataset.json: {shard.file} begins at sample {shard.first:,}, expected {first:,}: {RESTORE}"
            )
        first = shard.first + shard.samples
    if info.images_in != first + info.rejected:
        problems.append(
            f"dataset.json: {info.images_in:,} images came in, {first:,} are packed and {info.rejected:,} rejected: "
            + RESTORE
        )
    for split, names in info.splits.items():
        unknown = sorted(set(names) - files)
        if unknown:
            problems.append(f"dataset.json: split {split} names {unknown[0]}, which is no shard of the set: {RESTORE}")
    return problems or _check_splits(info)


def _check_splits(info: DatasetInfo) -> list[str]:
    """Check that each split has the shards that its parts give it: a shard in two splits would be a leak."""
    told = named_splits(list(info.samples), info.shards)
    wrong = sorted(name for name in told.keys() | info.splits.keys() if info.splits.get(name) != told.get(name))
    return [f"dataset.json: split {name} has not the shards of its parts: {RESTORE}" for name in wrong]


def _check_rejected(folder: Path, info: DatasetInfo) -> list[str]:
    """Check that every image left out stands in rejected.csv."""
    try:
        with open(folder / "rejected.csv", newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file, strict=True)
    except (OSError, ValueError, csv.Error) as error:
        said = error.strerror if isinstance(error, OSError) else "damaged"
        return [f"rejected.csv cannot be read ({said}): {RESTORE}"]
    # An append that is under way has written its own rows already.
    if tuple(head) == REJECTED_COLUMNS and len(rows[: info.rejected] if is_growing(folder) else rows) == info.rejected:
        return []
    return [f"rejected.csv does not name the {info.rejected:,} images left out ({len(rows):,} rows): {RESTORE}"]


def check_table(folder: Path, info: DatasetInfo) -> list[str]:
    """Check samples.parquet against dataset.json and samples.npy, and that parts share nothing."""
    if not _usable(folder, info):
        return [f"samples.parquet is not the table of this set (unreadable, other columns or other rows): {RESTORE}"]
    checks: list[Callable[[Path, DatasetInfo], list[str]]] = [
        _check_labels,
        _check_parts,
        _check_keys,
        _check_counts,
        _check_fingerprint,
        _check_index,
    ]
    if not info.leaks:
        checks.append(_check_sharing)
    problems: list[str] = []
    for check in checks:
        try:
            problems += [f"{line}: {RESTORE}" for line in check(folder, info)]
        except BadInput as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _usable(folder: Path, info: DatasetInfo) -> bool:
    try:
        with pq.ParquetFile(folder / "samples.parquet") as file:
            return bool(file.schema_arrow.equals(SAMPLES_SCHEMA) and file.metadata.num_rows >= info.total)
    except (OSError, pa.ArrowException):
        return False


def _columns(folder: Path, *names: str) -> pa.Table:
    """Read columns of the table: a few at a time, for memory's sake.

    Raises:
        BadInput: they cannot be read, or a cell is empty.
    """
    table = read_samples(folder, list(names))
    for name in names:
        if table[name].null_count:
            raise BadInput(f"column {name} of the sample table has empty cells", folder / "samples.parquet", RESTORE)
    return table


def _first_bad(good: Any, keys: pa.ChunkedArray, what: str) -> list[str]:
    """Return a line that names the first sample for which `good` (bool, a value per row) does not hold."""
    wrong = np.flatnonzero(~np.asarray(good, dtype=bool))
    if not len(wrong):
        return []
    more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
    return [f"sample {keys[int(wrong[0])].as_py()}{more}: {what}"]


def _check_labels(folder: Path, info: DatasetInfo) -> list[str]:
    table = _columns(folder, "key", "label", "class")
    labels = table["label"].to_numpy()
    known = (labels >= 0) & (labels < len(info.classes))
    names = pa.array(info.classes).take(pa.array(np.where(known, labels, 0)))
    good = known & pc.equal(table["class"].combine_chunks(), names).to_numpy(zero_copy_only=False)
    return _first_bad(good, table["key"], "label and class in the table do not belong together")


def _check_parts(folder: Path, info: DatasetInfo) -> list[str]:
    table = _columns(folder, "key", "split", "shard")
    shards = np.repeat(np.arange(len(info.shards)), [shard.samples for shard in info.shards])
    parts = pa.array([shard.part for shard in info.shards]).take(pa.array(shards))
    same = pc.equal(table["split"].combine_chunks(), parts).to_numpy(zero_copy_only=False)
    good = same & (table["shard"].to_numpy() == shards)
    return _first_bad(good, table["key"], "its shard or part in the table is not that of dataset.json")


def _check_keys(folder: Path, info: DatasetInfo) -> list[str]:
    table = _columns(folder, "key")
    shape = pc.match_substring_regex(table["key"], KEY_PATTERN)
    problems = _first_bad(shape.to_numpy(), table["key"], "the key is not made of a-z, 0-9 and _")
    counted = table.group_by("key").aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted["count_all"], 1))
    return problems + [f"key {key} occurs more than once" for key in twice["key"].slice(0, 1).to_pylist()]


def _check_counts(folder: Path, info: DatasetInfo) -> list[str]:
    counted = _columns(folder, "split", "class").group_by(["split", "class"]).aggregate([([], "count_all")])
    found = {(row["split"], row["class"]): row["count_all"] for row in counted.to_pylist()}
    said = {(part, name): n for part, classes in info.samples.items() for name, n in classes.items() if n}
    return [
        f"part {part} has {found.get((part, name), 0):,} samples of class {name}, "
        f"dataset.json says {said.get((part, name), 0):,}"
        for part, name in sorted(found.keys() | said.keys())
        if found.get((part, name)) != said.get((part, name))
    ]


def _check_fingerprint(folder: Path, info: DatasetInfo) -> list[str]:
    table = _columns(folder, "split", "label", "sha256")
    rows = list(zip(*(table[name].to_pylist() for name in ("split", "label", "sha256")), strict=True))
    if fingerprint(info.classes, rows) == info.fingerprint:
        return []
    return ["the fingerprint in dataset.json is not that of the table"]


def _check_index(folder: Path, info: DatasetInfo) -> list[str]:
    names = list(INDEX_DTYPE.names or ())
    try:
        index = open_index(folder, info)
    except EOFError:  # numpy's word for a file of no bytes
        return ["samples.npy is empty"]
    table = _columns(folder, "key", *names)
    good = np.ones(len(index), dtype=bool)
    for name in names:
        good &= index[name] == table[name].to_numpy()
    return _first_bad(good, table["key"], "samples.npy and samples.parquet differ")


def _check_sharing(folder: Path, info: DatasetInfo) -> list[str]:
    """Check that no group and no image, by the sha256 of its bytes, lies in two parts. An empty group is none."""
    problems = []
    for name, what in (("group", "group"), ("sha256", "the image with sha256")):
        pairs = _columns(folder, name, "split").group_by([name, "split"]).aggregate([])
        counted = pairs.group_by(name).aggregate([("split", "count"), ("split", "list")])
        crosses = pc.and_(pc.greater(counted["split_count"], 1), pc.not_equal(counted[name], ""))
        crossing = counted.filter(crosses).sort_by(name)
        if crossing.num_rows:
            value, parts = crossing[name][0].as_py(), ", ".join(sorted(crossing["split_list"][0].as_py()))
            more = f" (and {crossing.num_rows - 1:,} more)" if crossing.num_rows > 1 else ""
            problems.append(f"{what} {value}{more} lies in more than one part ({parts})")
    return problems


def _tasks(folder: Path, info: DatasetInfo) -> Iterator[ShardTask]:
    """Yield each shard with its rows; row groups are read as they are needed, so memory does not grow with the set."""
    slices = _slices(folder / "samples.parquet", [shard.samples for shard in info.shards])
    usable = _usable(folder, info)
    for shard in info.shards:
        rows = None
        if usable:
            try:
                rows = next(slices)
                if any(column.null_count for column in rows.columns):
                    rows = None
            except (OSError, pa.ArrowException):
                usable = False  # reported by check_table; the bytes of the remaining tars are still checked
        yield ShardTask(folder, shard, rows)


def _slices(path: Path, counts: list[int]) -> Iterator[pa.Table]:
    """Yield consecutive tables of `counts` rows each."""
    with pq.ParquetFile(path) as file:
        groups = iter(range(file.num_row_groups))
        rest = SAMPLES_SCHEMA.empty_table()
        for count in counts:
            while rest.num_rows < count:
                rest = pa.concat_tables([rest, file.read_row_group(next(groups))])
            # take() copies: a slice that goes to another process would carry the whole row group with it.
            yield rest.slice(0, count).take(pa.array(np.arange(count)))
            rest = rest.slice(count)
