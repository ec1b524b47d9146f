"""A config written as a recipe: the TOML file that `train` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bloodcell.config import Config, leaves
from shards.atomic import open_atomic


def write_recipe(path: Path, config: Config, heading: list[str]) -> None:
    """Write `config` as a recipe, atomically; reading it gives an equal config, but for the set.

    Args:
        path: of the file.
        config: not resolved for a machine; what equals the default is left out.
        heading: lines of the comment at its top.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    with open_atomic(path, "w") as file:
        file.write(recipe_text(config, heading))


def recipe_text(config: Config, heading: list[str]) -> str:
    """Return the text of the recipe."""
    usual = dict(leaves(Config()))
    tables: dict[str, list[str]] = {}
    for key, value in leaves(config):
        if value != usual[key] and key != "data.set":
            section, name = key.split(".")
            tables.setdefault(section, []).append(f"{name} = {_toml(value)}")
    comment = "".join(f"# {line}\n" for line in heading)
    return comment + "".join(f"\n[{section}]\n" + "\n".join(lines) + "\n" for section, lines in tables.items())


def _toml(value: Any) -> str:
    """Return a number, text or truth value as TOML writes it (JSON writes these alike, but for DEL)."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
