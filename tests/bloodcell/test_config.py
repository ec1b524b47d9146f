"""The config tree: recipes, flags, round trips, and one clear line for each mistake."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell.config import Config, decode, difference, encode, fields, identity, override, parse_flags, read_recipe
from bloodcell.config import values as c
from shards.errors import BadInput


def _values() -> st.SearchStrategy[dict[str, Any]]:
    """Draw legal values for every leaf of the tree."""
    options: dict[str, st.SearchStrategy[Any]] = {}
    for key, leaf in fields().items():
        default = leaf.default
        hint = c._hint(key)
        literal = [value for value in getattr(hint, "__args__", ()) if isinstance(value, str)]
        if literal:
            options[key] = st.sampled_from(literal)
        elif isinstance(default, bool):
            options[key] = st.booleans()
        elif isinstance(default, int):
            options[key] = st.integers(8, 4096)
        elif isinstance(default, float):
            options[key] = st.floats(0.001, 0.99)
        elif default is None and key != "model.dropout":
            options[key] = st.none() | st.text(max_size=8)
        elif isinstance(default, str):
            options[key] = st.text(max_size=8)
    return st.fixed_dictionaries(options)


@settings(max_examples=100, deadline=None)
@given(_values())
def test_decode_undoes_encode(values: dict[str, Any]) -> None:
    config = override(Config(), values)
    assert decode(encode(config)) == config


def test_keys_of_older_runs_are_understood() -> None:
    config = decode({"optim": {"label_smoothing": 0.1, "lr": 0.5}})
    assert (config.loss.label_smoothing, config.optim.lr) == (0.1, 0.5)


def test_every_field_is_documented_and_typed() -> None:
    for key, leaf in fields().items():
        assert leaf.metadata["help"], key
    for section in get_type_hints(Config).values():
        assert dataclasses.is_dataclass(section)
        assert section.__doc__


def test_flags() -> None:
    flags = parse_flags(["--data.size", "128", "--optim.lr=3e-4", "--engine.deterministic", "--model.dropout", "none"])
    assert flags == {"data.size": 128, "optim.lr": 3e-4, "engine.deterministic": True, "model.dropout": None}
    assert override(Config(), flags).data.size == 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.sise", "9"], "did you mean --data.size"),
        (["--data.size", "big"], "data.size = 'big' will not do"),
        (["--data.size", "1"], ">= 8"),
        (["--data.size"], "needs a value"),
        (["--loss.name", "ce"], "choose one of cross_entropy, focal"),
        (["stray"], "unknown argument 'stray'"),
    ],
)
def test_bad_flags(arguments: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_flags(arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[dta]\nsize = 9\n", r"unknown section \[dta\].*did you mean 'data'"),
        ("[data]\nsiz = 9\n", "unknown key data.siz .*did you mean 'size'"),
        ("[data]\nsize = '9'\n", "data.size = '9' will not do"),
        ("[optim]\nlr = -1.0\n", "optim.lr = -1.0 will not do"),
        ("data = 3\n", "is not a table"),
        ("[data\n", "not TOML"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")


def test_runtime_fields_do_not_make_another_run() -> None:
    quiet = override(Config(), {"tracking.log_every": 99, "tracking.wandb": "off", "data.set": "/elsewhere"})
    assert identity(quiet, "f") == identity(Config(), "f")
    assert identity(override(Config(), {"data.size": 64}), "f") != identity(Config(), "f")
    assert identity(Config(), "g") != identity(Config(), "f")
    assert list(difference(Config(), override(quiet, {"data.size": 64}))) == ["data.set", "data.size"]
