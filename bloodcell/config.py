"""The one config tree: frozen dataclasses, filled from a recipe (TOML), then flags; resolved once, stored as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shards.errors import BadInput, nearest

Fraction = Annotated[float, Meta(ge=0, le=1)]


def about(text: str, default: Any, runtime: bool = False) -> Any:
    """Declare a field: its help text, its default, and whether it may differ when a run is resumed."""
    return field(default=default, metadata={"help": text, "runtime": runtime})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and where its weights start."""

    name: str = about("zoo name, timm:NAME, torchvision:NAME or module:function", "mobilenet_v2")
    weights: str = about("file of weights to start from (safetensors, or a state dict); none is from scratch", "none")
    dropout: Fraction | None = about("dropout before the head; unset keeps the model's own", None)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the network is shown."""

    set: str = about("folder of the shard set", "")
    fold: int = about("which fold of a cross-validation set; -1 where there are none", -1)
    size: Annotated[int, Meta(ge=8, le=4096)] = about("height and width of the network's input, pixels", 224)
    policy: str = about("augmentation: none, light, rotate, a .toml file or module:function", "light")
    micro_batch: Annotated[int, Meta(ge=1)] = about("images that pass through the network at once", 32)
    threads: Annotated[int, Meta(ge=0)] = about("decoding threads of each rank; 0 is auto", 0)
    check: bool = about("compare the checksum of every image read with the index", True)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights move."""

    name: Literal["adamw", "sgd"] = about("optimizer", "adamw")
    lr: Annotated[float, Meta(gt=0)] = about("peak learning rate", 1e-3)
    weight_decay: Annotated[float, Meta(ge=0)] = about("decoupled (adamw) or L2 (sgd); not on biases and norms", 0.05)
    momentum: Fraction = about("momentum of sgd; first beta of adamw", 0.9)
    warmup: Fraction = about("share of all steps in which the learning rate rises linearly", 0.1)
    schedule: Literal["cosine", "constant"] = about("course of the learning rate after the warm-up", "cosine")
    label_smoothing: Fraction = about("probability spread evenly over the classes in the target", 0.0)
    clip: Annotated[float, Meta(ge=0)] = about("largest gradient norm; 0 is off", 0.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, and what counts."""

    epochs: Annotated[int, Meta(ge=1)] = about("passes over the training split (longer is allowed on resume)", 10)
    micro_batches: Annotated[int, Meta(ge=1)] = about("micro-batches in a global batch (K); ranks must divide it", 2)
    seed: Annotated[int, Meta(ge=0)] = about("of sample order, augmentation, initial weights and dropout", 0)
    monitor: Literal["val/accuracy", "val/macro_f1", "val/loss"] = about("metric that chooses the best", "val/macro_f1")
    patience: Annotated[int, Meta(ge=0)] = about("stop after so many epochs without a better one; 0 is off", 0)
    evaluate_every: Annotated[int, Meta(ge=1)] = about("epochs between validations", 1)
    save_every: Annotated[int, Meta(ge=0)] = about("steps between checkpoints; 0 is once an epoch", 0)
    keep: Annotated[int, Meta(ge=1)] = about("newest checkpoints to keep, beside the best", 2, runtime=True)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the machine is used."""

    strategy: Literal["ddp"] = about("how ranks share the work", "ddp")
    precision: Literal["fp32", "bf16", "fp16", "auto"] = about(
        "autocast; auto is bf16 on a GPU and fp32 on CPU", "auto"
    )
    device: Literal["auto", "cpu", "cuda"] = about("where to compute; auto takes the GPU if there is one", "auto")
    channels_last: bool = about("memory layout of images and convolutions", True)
    threads: Annotated[int, Meta(ge=0)] = about("torch threads of each rank; 0 is auto", 0)
    timeout: Annotated[float, Meta(gt=0)] = about("seconds after which a collective gives up", 600.0, runtime=True)
    deterministic: bool = about("refuse operations without a deterministic form", False)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the numbers go, beside metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "off"] = about("Weights & Biases mode", "auto", runtime=True)
    project: str = about("W&B project", "bloodcell", runtime=True)
    entity: str | None = about("W&B team or user; unset is the key's own", None, runtime=True)
    group: str | None = about("W&B group, such as one cross-validation", None, runtime=True)
    job_type: str | None = about("W&B job type", None, runtime=True)
    tensorboard: bool = about("also write TensorBoard events", False, runtime=True)
    log_every: Annotated[int, Meta(ge=1)] = about("steps between records", 10, runtime=True)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run. One tree, resolved once, stored in RUN/config.json."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


Flat = dict[str, Any]


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


def read_recipe(path: Path) -> Config:
    """Read a recipe file; raises BadInput for a missing file, a TOML error, or what decode() raises."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the recipe cannot be read: {error}", path, "give a recipe file or the name of one") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"the recipe is not TOML: {error}", path, "mend the line it names") from error
    return decode(value, path)


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


def _convert(key: str, value: Any, where: object, lenient: bool = False) -> Any:
    """Check and convert one value; leniently, '128' is a number where one is due and 'none' is no value."""
    hint = _hint(key)
    if lenient and value == "none" and type(None) in typing.get_args(hint):
        value = None
    try:
        return msgspec.convert(value, hint, strict=not lenient)
    except msgspec.ValidationError as error:
        choices = [str(c) for c in typing.get_args(hint)] if typing.get_origin(hint) is Literal else []
        fix = nearest(str(value), choices) or str(error)
        if choices:
            fix = f"choose one of {', '.join(choices)}"
        raise BadInput(f"{key} = {value!r} will not do", where, fix) from error
