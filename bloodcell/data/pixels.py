"""Pictures that are decoded already become network input, by the readers' own steps: the pixels of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from bloodcell.data.kernels import centred
from bloodcell.data.operations import centre_window
from bloodcell.data.pipeline import View, built, normalised, resized
from bloodcell.data.pool import Normalise


class Pixels:
    """Turns lists of pictures into batches of one fixed shape, by the backend that the view names.

    On the CPU the result is what Loader gives for the same image files, bit for bit; DALI on a GPU decodes JPEGs to
    slightly other pixels there.

    Args:
        view: how images become network input; its policy is not used.
        batch: pictures in a batch.
        threads: that scale them.
        device: where the batches shall be.
    """

    def __init__(self, view: View, batch: int, threads: int, device: torch.device) -> None:
        self.view, self.batch = view, batch
        renderer = _Pool if view.backend == "cpu" else _Dali
        self._render: _Pool | _Dali = renderer(view, batch, threads, device)

    def __call__(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Return float32 [batch, 3, size, size] of 1 to `batch` pictures, uint8 [height, width, 3] RGB each.

        Rows behind the last picture repeat it.
        """
        shown = [*pictures, *[pictures[-1]] * (self.batch - len(pictures))]
        shapes = np.array([picture.shape[:2] for picture in shown], dtype=np.int64)
        tensor = self._render(shown, centre_window(shapes[:, 0], shapes[:, 1]))
        return tensor.permute(0, 3, 1, 2) if self.view.channels_last else tensor


class _Pool:
    """The CPU backend."""

    def __init__(self, view: View, batch: int, threads: int, device: torch.device) -> None:
        self._view, self._device, self._normalise = view, device, Normalise(view)
        self._pool = ThreadPoolExecutor(threads, "bloodcell-pixels")

    def __call__(self, pictures: Sequence[np.ndarray], windows: np.ndarray) -> torch.Tensor:
        """Return float32 [pictures, size, size, 3], or [pictures, 3, size, size] if the view is not channels_last."""
        size = self._view.size
        shape = (size, size, 3) if self._view.channels_last else (3, size, size)
        with torch.inference_mode(False):  # else the pool's threads, which are not in that mode, may not write to it
            images = torch.empty((len(pictures), *shape))

        def render(row: int) -> None:
            plain = np.require(pictures[row], requirements=("C", "W"))
            self._normalise(centred(torch.from_numpy(plain), windows[row], size), images[row])

        list(self._pool.map(render, range(len(pictures))))
        return images.to(self._device)


class _Dali:
    """The last part of DALI's graph."""

    def __init__(self, view: View, batch: int, threads: int, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._pipeline = self._build(view, batch, threads, device.index or 0 if self._gpu else None)

    def __call__(self, pictures: Sequence[np.ndarray], windows: np.ndarray) -> torch.Tensor:
        """Return float32 [pictures, size, size, 3], or [pictures, 3, size, size] if the view is not channels_last."""
        plain = windows.astype(np.float32)
        fed = {"pictures": list(pictures), "start": plain[:, :2].copy(), "end": plain[:, 2:].copy()}
        for name, values in fed.items():
            self._pipeline.feed_input(name, values)
        (images,) = self._pipeline.run()
        if not self._gpu:  # the tensor keeps DALI's buffer alive
            return from_dlpack(images.as_tensor())
        tensor = from_dlpack(images.as_tensor()).clone()
        torch.cuda.current_stream(tensor.device).synchronize()  # DALI may use its buffer again once `images` is gone
        return tensor

    @staticmethod
    def _build(view: View, batch: int, threads: int, device_id: int | None) -> Any:
        from nvidia.dali import fn, pipeline_def

        device = "cpu" if device_id is None else "gpu"

        @pipeline_def(batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=1)
        def graph() -> Any:
            pictures = fn.external_source(name="pictures", layout="HWC")
            start, end = fn.external_source(name="start"), fn.external_source(name="end")
            images = pictures if device == "cpu" else pictures.gpu()
            return normalised(resized(images, view, start, end), view, device)

        return built(graph)
