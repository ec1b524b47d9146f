"""Tensors copied side by side into host memory that is used again and again, and written from there as safetensors.

The copy is all that training waits for. It has the layout of the file already, so that writing is a hash and a write
over one piece of memory, both of which leave the interpreter to the training loop meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

CHUNK = 1 << 23
"""Bytes hashed and written at a time."""

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls the types of elements."""


class HostCopy:
    """A copy of some tensors at one moment; take() renews it, in the same memory if that is large enough."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._header = b""
        self._size = 0

    def take(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
        """Copy `tensors`, whatever their device and memory format; returns when the copy is complete.

        Args:
            tensors: by the names that they get in the file.
            metadata: texts that the file shall carry.
        """
        # Large elements first, as the format wants it: so each begins at a multiple of its size.
        ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
        ends = [0]
        for _, tensor in ordered:
            ends.append(ends[-1] + tensor.numel() * tensor.element_size())
        pinned = any(tensor.is_cuda for _, tensor in ordered)
        if len(self._memory) < ends[-1]:
            self._memory = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=pinned)
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        for (name, tensor), begin, end in zip(ordered, ends, ends[1:], strict=False):
            header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
            place = self._memory[begin:end].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor.detach(), non_blocking=True)
        if pinned:
            torch.cuda.synchronize()
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header, self._size = len(text).to_bytes(8, "little") + text, ends[-1]

    def write(self, path: Path) -> dict[str, int | str]:
        """Write the copy as a safetensors file and sync it; return its {"bytes", "sha256"}. Raises OSError."""
        return write_summed(path, self._header, self._memory[: self._size].numpy().data)


def write_summed(path: Path, *parts: bytes | memoryview) -> dict[str, int | str]:
    """Write some bytes one after the other and sync them; return the file's {"bytes", "sha256"}. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) as file:
        for part in parts:
            for begin in range(0, len(part), CHUNK):
                chunk = memoryview(part)[begin : begin + CHUNK]
                digest.update(chunk)
                while chunk:
                    chunk = chunk[file.write(chunk) :]
            size += len(part)
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}
