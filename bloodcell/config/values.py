"""Values of the config tree: filled from a recipe (TOML), then flags; compared, named, stored as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from bloodcell.config.tree import Config
from shards.errors import BadInput, nearest

Flat = dict[str, Any]
SWEEP = "sweep"
"""The table of a recipe that says what `bloodcell sweep` tries; every other table is part of the config."""

MOVED = {"optim.label_smoothing": "loss.label_smoothing"}
"""Keys of older run folders and recipes, and where they are now."""


def fields() -> dict[str, dataclasses.Field[Any]]:
    """Return every leaf of the tree by its dotted name, in the order of definition."""
    return {
        f"{section.name}.{leaf.name}": leaf
        for section in dataclasses.fields(Config)
        for leaf in dataclasses.fields(_section_types()[section.name])
    }


def encode(config: Config) -> dict[str, dict[str, Any]]:
    """Return the config as plain JSON values; decode(encode(c)) == c."""
    return msgspec.to_builtins(config)


def decode(value: dict[str, Any], where: object = "config") -> Config:
    """Build a config from nested plain values; missing keys take their defaults.

    Raises:
        BadInput: an unknown section or key (the nearest is named), or a value of the wrong type or range.
    """
    types = _section_types()
    value = _moved(value)
    for section, content in value.items():
        if section not in types:
            raise BadInput(f"unknown section [{section}]", where, nearest(section, list(types)) or "see --help")
        if not isinstance(content, dict):
            raise BadInput(f"[{section}] is not a table", where, f"write the keys of {section} below [{section}]")
        known = [leaf.name for leaf in dataclasses.fields(types[section])]
        for key in content:
            if key not in known:
                fix = nearest(key, known) or f"known keys: {', '.join(known)}"
                raise BadInput(f"unknown key {section}.{key}", where, fix)
    sections = {
        name: cls(**{key: _convert(f"{name}.{key}", v, where) for key, v in value.get(name, {}).items()})
        for name, cls in types.items()
    }
    return Config(**sections)


def _moved(value: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with the keys of older versions under their names of today; what is there stays."""
    moved = {section: dict(content) if isinstance(content, dict) else content for section, content in value.items()}
    for old, new in MOVED.items():
        section, key = old.split(".")
        if isinstance(moved.get(section), dict) and key in moved[section]:
            target, name = new.split(".")
            moved.setdefault(target, {}).setdefault(name, moved[section].pop(key))
    return moved


def read_recipe(path: Path) -> Config:
    """Read a recipe file; its table of a search, if there is one, is left to who searches.

    Raises:
        BadInput: a missing file, a TOML error, or what decode() raises.
    """
    return decode({name: table for name, table in read_toml(path).items() if name != SWEEP}, path)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a recipe file; raises BadInput if it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the recipe cannot be read: {error}", path, "give a recipe file or the name of one") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"the recipe is not TOML: {error}", path, "mend the line it names") from error


def parse_flags(arguments: Sequence[str]) -> Flat:
    """Turn ['--data.size', '128', '--engine.deterministic'] into {'data.size': 128, 'engine.deterministic': True}.

    Raises:
        BadInput: an unknown flag (the nearest is named), a flag without a value, or a bad value.
    """
    known = fields()
    found: Flat = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        name, equals, text = flag.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or key not in known:
            close = nearest(key, list(known))
            raise BadInput(
                f"unknown argument {name!r}",
                "command line",
                close.replace("'", "--", 1).replace("'", "") or "see --help",
            )
        if not equals:
            if rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            elif known[key].type == "bool":
                text = "true"
            else:
                raise BadInput(f"{name} needs a value", "command line", known[key].metadata["help"])
        found[key] = _convert(key, text, "command line", lenient=True)
    return found


def override(config: Config, flat: Flat) -> Config:
    """Return a copy of `config` with some leaves replaced."""
    for key, value in flat.items():
        section, name = key.split(".")
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def leaves(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf."""
    for key in fields():
        section, name = key.split(".")
        yield key, getattr(getattr(config, section), name)


def difference(old: Config, new: Config, runtime: bool = False) -> dict[str, tuple[Any, Any]]:
    """Return {dotted name: (old, new)} of the leaves that differ; runtime fields only if asked for."""
    known = fields()
    pairs = zip(leaves(old), leaves(new), strict=True)
    return {k: (a, b) for (k, a), (_, b) in pairs if a != b and (runtime or not known[k].metadata["runtime"])}


def identity(config: Config, fingerprint: str) -> str:
    """Return eight hex digits that name the run of this config on the set with this fingerprint."""
    known = fields()
    content = {k: v for k, v in leaves(config) if not known[k].metadata["runtime"] and k != "data.set"}
    return hashlib.sha256(msgspec.json.encode([content, fingerprint], order="deterministic")).hexdigest()[:8]


def _section_types() -> dict[str, type]:
    return typing.get_type_hints(Config)


_HINTS: dict[str, Any] = {}


def _hint(key: str) -> Any:
    if not _HINTS:
        for section, cls in _section_types().items():
            for name, hint in typing.get_type_hints(cls, include_extras=True).items():
                _HINTS[f"{section}.{name}"] = hint
    return _HINTS[key]


def _number_or_text(hint: Any) -> bool:
    kinds = {getattr(kind, "__origin__", kind) for kind in typing.get_args(hint)}
    return {int, str} <= kinds


def _convert(key: str, value: Any, where: object, lenient: bool = False) -> Any:
    """Check and convert one value; leniently, '128' is a number where one is due and 'none' is no value."""
    hint = _hint(key)
    if lenient and value == "none" and type(None) in typing.get_args(hint):
        value = None
    if lenient and str(value).isdecimal() and _number_or_text(hint):
        value = int(value)
    try:
        return msgspec.convert(value, hint, strict=not lenient)
    except msgspec.ValidationError as error:
        choices = [str(c) for c in typing.get_args(hint)] if typing.get_origin(hint) is Literal else []
        fix = nearest(str(value), choices) or str(error)
        if choices:
            fix = f"choose one of {', '.join(choices)}"
        raise BadInput(f"{key} = {value!r} will not do", where, fix) from error
