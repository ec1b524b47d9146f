"""Does DALI decode here, on the GPU where there is one, to the pixels that it should, and how fast?"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jobs.doctor.findings import Finding, bad, good, listed
from shards.parallel import available_cores

IMAGES = 64
REPEATS = 4
FAR = 4.0
"""Mean difference from PIL, in levels of 255, that no decoder's rounding explains: the GPU's differ by one or two."""

Node = dict[str, Any]


def look(images: Sequence[np.ndarray], device: str) -> dict[str, Any]:
    """Decode encoded images (uint8 [size]; drawn ones if there are none); return {where, images_s, far} or raise."""
    from nvidia.dali import fn, pipeline_def, types

    images = list(images) or _drawn()
    where = "mixed" if device == "cuda" else "cpu"
    threads = min(available_cores(), 8)

    @pipeline_def(
        batch_size=len(images), num_threads=threads, device_id=0 if device == "cuda" else None, prefetch_queue_depth=1
    )
    def graph() -> Any:
        encoded = fn.external_source(source=lambda: list(images), batch=True)
        return fn.decoders.image(encoded, device=where, output_type=types.RGB)

    pipeline = graph()
    pipeline.build()
    (decoded,) = pipeline.run()
    begin = time.perf_counter()
    for _ in range(REPEATS):
        (decoded,) = pipeline.run()
    seconds = time.perf_counter() - begin
    found = decoded.as_cpu() if device == "cuda" else decoded
    far = max(_distance(image, np.asarray(found[n])) for n, image in enumerate(images))
    return {
        "where": "GPU" if device == "cuda" else "CPU",
        "images_s": round(REPEATS * len(images) / seconds, 1),
        "far": far,
    }


def _drawn() -> list[np.ndarray]:
    """Return JPEGs of smooth coloured images, 360 px as a cell of a public set."""
    rows, columns = np.mgrid[0:360, 0:360] / 360
    found = []
    for number in range(IMAGES):
        channels = [np.sin(6 * rows + number), np.cos(5 * columns - number), np.sin(4 * (rows + columns))]
        buffer = io.BytesIO()
        Image.fromarray((127 * np.stack(channels, -1) + 128).astype(np.uint8)).save(buffer, "JPEG", quality=92)
        found.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
    return found


def _distance(encoded: np.ndarray, decoded: np.ndarray) -> float:
    """Return the mean difference from what PIL decodes, 0 where the two do not show the same kind of picture."""
    with Image.open(io.BytesIO(encoded.tobytes())) as image:
        if image.mode not in ("RGB", "L") or image.getexif().get(0x0112, 1) != 1:
            return 0.0
        known = np.asarray(image.convert("RGB"), dtype=np.int16)
    return float(np.abs(known - decoded).mean()) if known.shape == decoded.shape else 255.0


def judge(nodes: Sequence[Node], device: str) -> Finding:
    """Say on which nodes images are not decoded, or to something else."""
    name = "decoding on the GPU" if device == "cuda" else "decoding on the CPU"
    problems = []
    for node in nodes:
        seen = node["decode"]
        if "problem" in seen:
            problems.append(f"{node['node']}: {seen['problem']}")
        elif seen["far"] > FAR:
            problems.append(f"pixels on {node['node']} differ from PIL's by {seen['far']:.0f} levels")
    if problems:
        return bad(name, listed(problems), "see the lines on versions and drivers; DALI needs a driver for its CUDA")
    slowest = min(node["decode"]["images_s"] for node in nodes)
    return good(name, f"{slowest:,.0f} images/s or more, as PIL decodes them")
