"""The reader `webdataset`: windows read by the webdataset library's own tar pipeline, in the order of `stream`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from bloodcell.data.runs import Run
from bloodcell.data.windows import WindowReader
from shards.tar import BLOCK


class Part:
    """A file that begins and ends at samples of a tar: what the library reads as a whole tar.

    Args:
        file: open for reading, at the first byte.
        size: bytes that are read.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        """Return up to `size` further bytes."""
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


class WebDatasetReader(WindowReader):
    """Reads runs as WebDataset samples: the library parses the tar and groups its members by key.

    Nothing here needs DALI; the CPU backend decodes and augments.
    """

    def fetch(self, run: Run) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the wanted samples of a run with their bytes; fewer, where the tar is damaged."""
        first = int(run.ids[0])
        wanted = set(run.ids.tolist())
        sizes = self.shards.index["size"][first : int(run.ids[-1]) + 1].tolist()
        begin = run.begin - BLOCK  # the header of the first image, a sample's first member
        size = run.end - begin + -run.end % BLOCK
        try:
            with (self.shards.folder / self.shards.info.shards[run.shard].file).open("rb", buffering=size) as file:
                file.seek(begin)
                parts = iter([{"url": file.name, "stream": Part(file, size)}])
                samples = webdataset.DataPipeline(lambda: parts, tar_file_expander, group_by_keys)
                for number, found in enumerate(samples):
                    image = next((value for name, value in found.items() if not name.startswith("__")), b"")
                    if first + number in wanted and len(image) == sizes[number]:
                        yield first + number, np.frombuffer(image, dtype=np.uint8).copy()
        except (OSError, tarfile.TarError, ValueError):  # then the samples are read one by one, and named
            return
