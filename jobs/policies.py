"""`bloodcell policies`: the augmentations there are, what they do and cost, and a sheet of what one does to images."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

    from bloodcell.data.policies import Policy

COSTS = {
    "crop": 0,
    "flip": 0,
    "rotate": 1900,
    "affine": 1800,
    "brightness": 40,
    "colour": 940,
    "stain": 1400,
    "sharpness": 60,
    "blur": 1100,
    "erase": 10,
    "randaugment": 1900,
    "trivial": 740,
    "augmix": 9200,
    "hybrid": 7500,
}
"""Microseconds that an operation, done to each image, adds to one of 224 pixels on one core of a CPU.

Measured with `bloodcell bench data --policy` on an AMD EPYC beside crop and flip alone, which are part of the resize.
"""

FORMATS: dict[str, dict[str, Any]] = {".png": {"optimize": True}, ".jpg": {"quality": 85}, ".jpeg": {"quality": 85}}
"""Formats of a sheet by suffix, and how they are written."""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare NAME and what a sheet needs."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of them, a .toml file or module:function")
    parser.add_argument("--data", type=Path, help="a shard set, or a folder of images in folders of classes")
    parser.add_argument("--out", type=Path, help="write a sheet of images of --data under the policy: .png or .jpg")
    parser.add_argument("--images", type=int, default=4, help="rows of the sheet (4), spread over the set")
    parser.add_argument("--columns", type=int, default=9, help="images in a row, the first without augmentation (9)")
    parser.add_argument("--size", type=int, default=96, help="height and width of an image, pixels (96)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.epilog = (
        "us: microseconds that the operations add to an image of 224 pixels on one core of a CPU, as measured on one\n"
        "machine; decoding and resizing take about 870 there. An operation with a probability counts with its share."
    )


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """List the policies, describe one, or write its sheet."""
    from bloodcell.data.policies import POLICIES, find_policy

    if (parsed.data is None) != (parsed.out is None):
        raise BadInput("--data and --out belong together", "policies", "give both, or none to read about policies")
    if parsed.name is None:
        if parsed.out is not None:
            raise BadInput("no policy is named", "policies", "give the NAME that the sheet shall show")
        policies = [describe(policy) for policy in POLICIES.values()]
        return {"policies": policies}, _table(policies)
    policy = find_policy(parsed.name)
    described = describe(policy)
    if parsed.out is None:
        return {"policies": [described]}, _details(described)
    return {"policies": [described], "sheet": str(parsed.out)}, [_sheet(policy, parsed)]


def describe(policy: Policy) -> dict[str, Any]:
    """Return a policy as JSON values: its name, its operations with all their values, and what they cost."""
    from bloodcell.data.policies import OPERATIONS

    names = {kind: name for name, kind in OPERATIONS.items()}
    operations = []
    for operation in policy.operations:
        kind: Any = type(operation)
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        values = {field.name: getattr(operation, field.name) for field in fields}
        operations.append({"name": names.get(kind, kind.__name__.lower()), "values": values})
    return {"name": policy.name, "operations": operations, "microseconds": cost(operations)}


def cost(operations: list[dict[str, Any]]) -> int | None:
    """Return the microseconds that the operations add to an image, None where one of them was never measured."""
    if any(operation["name"] not in COSTS for operation in operations):
        return None
    return round(sum(_cost(operation["name"], operation["values"]) for operation in operations))


def _cost(name: str, values: dict[str, Any]) -> float:
    if name == "randaugment":
        return COSTS[name] * values["levels"] / 2
    # Erasing is done for all images, if only with empty boxes.
    return COSTS[name] * (values.get("probability", 1.0) if name != "erase" else 1.0)


def _table(policies: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'name':<12} {'us':>6}  operations"]
    for policy in policies:
        names = ", ".join(operation["name"] for operation in policy["operations"]) or "only the largest central square"
        lines.append(f"{policy['name']:<12} {policy['microseconds']:>6,}  {names}")
    return [*lines, "and a .toml file of [[operation]] tables, or module:function; `bloodcell policies NAME` says more"]


def _details(policy: dict[str, Any]) -> list[str]:
    from bloodcell.data.policies import OPERATIONS

    added = policy["microseconds"]
    lines = [policy["name"] + ("" if added is None else f": adds {added:,} us to an image of 224 px on one core")]
    for operation in policy["operations"]:
        kind = OPERATIONS.get(operation["name"])
        values = ", ".join(f"{key} = {_toml(value)}" for key, value in operation["values"].items())
        lines.append(f"  {operation['name']}: {values}")
        if kind is not None and kind.__doc__:
            lines.append(f"    {kind.__doc__.splitlines()[0]}")
    return lines


def _toml(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)


def _sheet(policy: Policy, parsed: argparse.Namespace) -> str:
    """Write the sheet; return the line that says so."""
    import numpy as np

    from bloodcell.data.shardset import ShardSet
    from bloodcell.data.sheet import contact_sheet

    if parsed.out.suffix.lower() not in FORMATS:
        raise BadInput(f"no format {parsed.out.suffix!r}", parsed.out, f"choose one of {', '.join(FORMATS)}")
    if parsed.images < 1 or parsed.columns < 2 or not 8 <= parsed.size <= 1024:
        raise BadInput("a number is too small or too large", "policies", "1 row, 2 columns, 8 to 1024 pixels at least")
    if not parsed.out.parent.is_dir():
        raise BadInput("the folder is missing", parsed.out.parent, "make it first")
    with tempfile.TemporaryDirectory() as place:
        shards = ShardSet.open(_packed(parsed.data, Path(place)))
        rows = min(parsed.images, len(shards.index))
        ids = np.linspace(0, len(shards.index) - 1, rows).round().astype(np.int64)
        _save(parsed.out, contact_sheet(shards, policy, ids, parsed.columns, parsed.size, parsed.seed))
    return f"{parsed.out}: {rows} images under {policy.name}, the first of each row as it is"


def _packed(data: Path, place: Path) -> Path:
    """Return the shard set itself, or one made of a folder of images."""
    from shards.pack import PackOptions, pack

    if (data / "dataset.json").exists():
        return data
    pack(data, place / "set", PackOptions(split="0/0/100", near=False))
    return place / "set"


def _save(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    from shards.atomic import open_atomic

    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    with open_atomic(path) as file:
        Image.fromarray(pixels).save(file, kind, **FORMATS[path.suffix.lower()])
