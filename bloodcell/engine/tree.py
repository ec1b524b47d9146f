"""Nested state (dicts, lists, tensors, plain values) as JSON beside a flat dict of tensors, and back; and merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def pack_tree(value: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """Return `value` (dicts, lists, tuples, plain values, tensors) as JSON, moving tensors into `tensors`, uncopied."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, pack_tree(item, tensors, f"{path}/{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack_tree(item, tensors, f"{path}/{place}") for place, item in enumerate(value)]}
    return {"value": value}


def unpack_tree(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return what pack_tree() was given."""
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack_tree(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [unpack_tree(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    return content


def merge(first: dict[str, Any], second: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return one nested dict with what both hold; dicts under the same key are merged in turn.

    Raises:
        ValueError: both have a value at the same place.
    """
    merged = dict(first)
    for key, value in second.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, dict) and isinstance(merged[key], dict):
            merged[key] = merge(merged[key], value, f"{path}/{key}")
        else:
            raise ValueError(f"two ranks have a value for {path}/{key}")
    return merged
