"""`bloodcell bench gpu`: what a GPU shows, in order of weight; an interrupted one goes on where it was.

First the tests marked `gpu`, then networks on real images beside the same step on tensors that lie on the device (and
timm's network in a bare loop), then decoding and augmenting alone with its settings, more networks, the way from a
folder of images to a result, and DeepSpeed beside DDP. On a CPU (`--device cpu`) the same code runs at tiny sizes: a
rehearsal, whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.bench.result import Result, Row
from shards.errors import BadInput, EnvironmentFault, nearest

if TYPE_CHECKING:
    from jobs.bench.gpu_parts import How

FIRST = {"resnet50": "resnet50", "mobilenet_v2": "mobilenetv2_100"}
"""Networks of the zoo that are measured first, and the same ones of timm."""

LATER = {"efficientnet_v2_s": "tf_efficientnetv2_s", "vgg16": "vgg16", "xception": "legacy_xception"}

REHEARSED = {"resnet10t": "resnet10t"}

LARGER = {"xception": 299 / 224}
"""Networks that are shown larger images than --size."""

REHEARSAL = "a rehearsal on a CPU: it shows that the code runs; no figure of it is a measurement"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bloodcell bench gpu`."""
    parser.add_argument("set", type=Path, metavar="SET", help="shard set; its training images are used")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of class folders, for the way to a result")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="ImageNet weights of MobileNetV2, for the same")
    parser.add_argument("--state", type=Path, default=Path("bench-gpu.json"), help="finished parts (bench-gpu.json)")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="only these, by the beginning of their names (all)")
    parser.add_argument("--list", action="store_true", help="print the names of the parts, measure nothing")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu rehearses, at tiny sizes (cuda)")
    parser.add_argument("--size", type=int, default=224, help="height and width of the input, pixels (224)")
    parser.add_argument("--batch", type=int, default=256, help="images in a micro-batch (256)")
    parser.add_argument("--steps", type=int, default=60, help="steps in each repeat (60)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each (5)")
    parser.add_argument("--threads", type=int, default=0, help="decoding threads; 0 is all cores but two, at most 16")


def run_arguments(parsed: argparse.Namespace) -> Result:
    """Run what is left to be measured; a part that fails is named in the result, and the others go on.

    Raises:
        EnvironmentFault: there is no CUDA device.
        BadInput: no set, a number is too small, no such part, or the kept measurements are of another device.
    """
    import torch

    cuda = parsed.device == "cuda"
    if cuda and not torch.cuda.is_available():
        fix = "start it where there is one; --device cpu rehearses it here"
        raise EnvironmentFault("no CUDA device", "bench gpu", fix)
    from jobs.bench import gpu_parts
    from jobs.bench.resuming import Outcome, resumed

    if min(parsed.size, parsed.batch, parsed.steps, parsed.repeats) < 1:
        raise BadInput("a number is too small", "bench gpu", "give numbers above 0")
    if not cuda:
        parsed.size, parsed.batch, parsed.steps, parsed.repeats = 32, 4, 1, 1
    how = gpu_parts.make_how(parsed)
    parts = chosen(all_parts(how), parsed.parts)
    shape = {"size": how.size, "batch": how.batch, "steps": how.steps, "repeats": how.repeats}
    command = f"bloodcell bench gpu {parsed.set} {' '.join(f'--{name} {value}' for name, value in shape.items())}"
    if parsed.list:
        return Result(command, [], notes=list(parts))
    about = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "set": how.shards.info.fingerprint,
        "threads": how.threads,
        **shape,
    }
    outcome = Outcome()
    rows = resumed({name: partial(alone, part) for name, part in parts.items()}, parsed.state, about, outcome)
    notes = [f"left out: {line}" for line in [*outcome.left_out, *how.left_out]]
    if not cuda:
        command += " --device cpu"
        notes = [REHEARSAL, *notes]
        rows = [Row(f"REHEARSAL {row.name}", row.value, row.unit) for row in rows]
    return Result(command, rows, notes=notes, problems=outcome.failed)


def all_parts(how: How) -> dict[str, Callable[[], list[Row]]]:
    """Return every part by its name, in order of weight."""
    from jobs.bench import gpu_data, gpu_parts, gpu_whole

    parts: dict[str, Callable[[], list[Row]]] = {}
    for file in gpu_whole.test_files():
        parts[f"tests, {file.stem}"] = partial(gpu_whole.tests, how, file)
    parts["ceilings"] = partial(gpu_whole.ceilings, how)
    networks(parts, how, FIRST if how.gpu else REHEARSED)
    parts["images"] = partial(gpu_data.images, how)
    parts["sweep, hw_decoder_load"] = partial(gpu_data.hardware_loads, how)
    parts["sweep, threads"] = partial(gpu_data.thread_counts, how)
    if how.gpu:
        networks(parts, how, LATER)
    parts["folder"] = partial(gpu_whole.folder, how)
    parts["zero"] = partial(gpu_whole.zero, how)
    bare = "" if gpu_parts.has_dali() else ", without DALI"
    return {f"{name}{bare}" if part.func is gpu_parts.network else name: part for name, part in parts.items()}  # type: ignore[attr-defined]  # partials


def networks(parts: dict[str, Callable[[], list[Row]]], how: How, names: dict[str, str]) -> None:
    """Add two parts for each network."""
    from jobs.bench import gpu_parts

    for ours, theirs in names.items():
        size = round(how.size * LARGER.get(ours, 1))
        for kind in ("plain", "compiled"):
            parts[f"{ours}, {kind}"] = partial(gpu_parts.network, how, ours, theirs, kind == "compiled", size)


def chosen(parts: dict[str, Callable[[], list[Row]]], wanted: list[str] | None) -> dict[str, Callable[[], list[Row]]]:
    """Return the parts whose names begin with one of the `wanted` words, in their order; all if none is given.

    Raises:
        BadInput: a word begins no part's name.
    """
    for word in wanted or []:
        if not any(name.startswith(word) for name in parts):
            raise BadInput(f"no part {word!r}", "--parts", nearest(word, list(parts)) or "see --list")
    return {name: part for name, part in parts.items() if not wanted or any(name.startswith(word) for word in wanted)}


def alone(part: Callable[[], list[Row]]) -> list[Row]:
    """Run a part; give back the memory that it took and the code that was compiled for it, whatever its end."""
    import torch
    from torch import _dynamo as dynamo

    try:
        return part()
    finally:
        dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
