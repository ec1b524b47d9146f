"""The formats of an export and how their files end; read by `bloodcell export --help`, which loads no torch."""

from __future__ import annotations

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2", "aot": ".pt2", "space": ""}
"""Name -> how the file's name ends; a space is a folder."""
