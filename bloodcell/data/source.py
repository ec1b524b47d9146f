"""What DALI's graph is fed with: the images of each request and the numbers that were drawn for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bloodcell.data.decoder import boxes
from bloodcell.data.decoding import pixels_of
from bloodcell.data.draws import Draws
from bloodcell.data.operations import Arguments, Crop, Flip, centre_window
from bloodcell.data.policies import Policy, draw
from bloodcell.data.readahead import ReadAhead
from bloodcell.data.reading import Reading
from bloodcell.data.request import Request
from bloodcell.data.resident import KEPT, DeviceCache, HostCache
from bloodcell.data.shardset import ShardSet
from bloodcell.data.smaller import smaller
from bloodcell.data.threads import image_threads

if TYPE_CHECKING:
    from bloodcell.data.pipeline import View


class Source:
    """DALI's callbacks: take the next request with its images and draw its arguments. Keep what is under way.

    An error is kept in `error`, because DALI passes only its text on.

    Args:
        shards: the opened set.
        requests: what each batch shall hold.
        view: how images become network input.
        reading: how samples are read.
        device: on which the graph works, "cpu" or "gpu".
        threads: that decode where the graph does not.
    """

    def __init__(
        self,
        shards: ShardSet,
        requests: Iterator[Request],
        view: View,
        reading: Reading,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        self.shards, self.view, self.side, self.decoder = shards, view, reading.side, reading.decoder
        self.ahead = ReadAhead(shards, requests, reading)
        self.cache = reading.cache
        self.feeds = _fed(reading, device)
        """What images() returns: "bytes", "pixels" on the host, or pixels on the "device"."""
        self._pool = None if self.feeds == "bytes" else image_threads(threads, "bloodcell-decoder")
        decodes, crops = self.feeds == "bytes", any(isinstance(step, Crop) for step in view.policy.operations)
        self._scales = decodes and self.side > 0
        self._cuts = decodes and crops and self.decoder.roi and not self._scales
        decoding = ["begin", "behind"] * self._cuts + ["size"] * self._scales
        self.names = ["ids", *decoding, "start", "end", *argument_names(view.policy)]
        """Of what arguments() returns."""
        self.waiting: deque[Request] = deque()
        self._fed: deque[list[Any]] = deque()
        self.error: BaseException | None = None
        self._half_taken: deque[tuple[str, list[Any]]] = deque()

    def images(self) -> list[Any]:
        """Return the images of the next request: bytes, or pixels (on the host or the GPU) where they are kept."""
        return self._part("images")

    def arguments(self) -> list[Any]:
        """Return the numbers of the next request, as `names` lists them; StopIteration after the last, as `images`."""
        return self._part("arguments")

    def taken(self) -> Request:
        """Return the request whose batch was taken; its images are needed no longer.

        Until then they are held: the graph reads those on a GPU where they lie, also ones that no cache keeps.
        """
        self._fed.popleft()
        return self.waiting.popleft()

    def _part(self, wanted: str) -> list[Any]:
        """Return one of the two parts of a request: DALI asks for both, in an order of its own."""
        if self._half_taken and self._half_taken[0][0] == wanted:
            return self._half_taken.popleft()[1]
        try:
            request, found = self.ahead.take()
            drawn = self.drawn(request)
            images = self._images(request, found)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise
        self.waiting.append(request)
        self._fed.append(images if self.feeds == "device" else [])
        views = self.view.views
        parts = {"images": images * views, "arguments": [np.tile(request.ids, views), *drawn]}
        other = next(name for name in parts if name != wanted)
        self._half_taken.append((other, parts[other]))
        return parts[wanted]

    def close(self) -> None:
        """Stop the threads."""
        self.ahead.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _images(self, request: Request, found: list[np.ndarray]) -> list[Any]:
        if self._pool is None:
            return found
        each = self._pool.map if any(image.ndim == 1 for image in found) else map
        return list(each(self._pixels, request.ids.tolist(), found))

    def _pixels(self, sample: int, found: np.ndarray) -> Any:
        """Return the pixels that the graph is fed with for a sample."""
        if self.feeds == "pixels" and found.ndim > 1:
            return found
        if isinstance(self.cache, DeviceCache):
            if found is KEPT:
                return self.cache.get(sample)
            return torch.from_numpy(pixels_of(self.shards, sample, found, self.side)).to(self.cache.device)
        pixels = pixels_of(self.shards, sample, found, self.side)
        if isinstance(self.cache, HostCache):
            self.cache.put(sample, pixels)
        return pixels

    def drawn(self, request: Request) -> list[np.ndarray]:
        """Return what is decoded, the window and the operations' arguments of a request, in the order of `names`."""
        rows = self.shards.index[request.ids]
        height, width = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        draws = Draws(self.view.seed, request.epoch, request.ids, request.occurrences)
        views, decoding = self.view.views, []
        named = _named(self.view.policy, draw(self.view.policy, draws, height, width, views))
        window = named.pop("window", None)
        if window is None:
            window = np.tile(centre_window(height, width), (views, 1)).astype(np.float32)
        if self._cuts:
            *decoding, window = boxes(window, np.tile(height, views), np.tile(width, views), self.view.size)
        if self._scales:
            size = np.stack(smaller(height, width, self.side), axis=1).astype(np.float32)
            decoding = [np.tile(size, (views, 1))]
        start, end = window[:, :2].copy(), window[:, 2:].copy()
        flip = folded_flip(self.view.policy)
        if flip is not None:
            mirror = np.stack([named.pop(f"{flip}.vertical"), named.pop(f"{flip}.horizontal")], axis=1).astype(bool)
            start[mirror], end[mirror] = end[mirror], start[mirror]
        return [*decoding, start, end, *named.values()]


def _fed(reading: Reading, device: str) -> str:
    """Return what the graph is fed with. On the CPU images are scaled down before it: by the kernel of all others."""
    if isinstance(reading.cache, DeviceCache):
        return "device"
    if isinstance(reading.cache, HostCache) or (reading.side and device == "cpu"):
        return "pixels"
    return "bytes"


def _named(policy: Policy, drawn: list[Arguments]) -> dict[str, np.ndarray]:
    """Give every argument of every operation its own name; a crop's window keeps its plain one."""
    named = {}
    for place, (operation, arguments) in enumerate(zip(policy.operations, drawn, strict=True)):
        for name, value in arguments.items():
            named["window" if isinstance(operation, Crop) else f"{place}.{name}"] = value
    return named


def folded_flip(policy: Policy) -> int | None:
    """Return the place of a flip that the resize does for nothing: one right behind the crop, or before anything else.

    The resize mirrors a window whose end lies before its start.
    """
    for place, operation in enumerate(policy.operations):
        if not isinstance(operation, Crop):
            return place if isinstance(operation, Flip) else None
    return None


def argument_names(policy: Policy) -> list[str]:
    """Return the names of the arguments that follow the window, in the order in which Source.drawn returns them."""
    one, flip = np.ones(1, dtype=np.int64), folded_flip(policy)
    drawn = draw(policy, Draws(0, 0, one, one), one, one)
    return [name for name in _named(policy, drawn) if name != "window" and name.split(".")[0] != str(flip)]
