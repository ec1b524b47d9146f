"""Where initial weights come from: a file, the folders of BLOODCELL_WEIGHTS, caches on disk, or the hub."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from bloodcell.models import fetch, zoo
from bloodcell.models.library import address
from bloodcell.models.spec import ModelSpec
from bloodcell.models.weights import TORCH_SUFFIXES, check_readable
from shards.console import say
from shards.errors import BadInput, EnvironmentFault, nearest

VARIABLE = "BLOODCELL_WEIGHTS"
"""Environment variable with one or several folders of weights (separated as in PATH), such as a shared file system."""

NONE, PRETRAINED = "none", "pretrained"
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


def find(model: str, weights: str) -> Path | None:
    """Return the file that `model.weights` of a config asks for, None for "none".

    Args:
        model: a model's name.
        weights: "none", "pretrained", or a file.

    Raises:
        BadInput: no such file, or there are no pretrained weights of this model here; the message says how to get them.
    """
    if weights == NONE:
        return None
    if weights != PRETRAINED:
        path = Path(weights)
        if not path.exists():
            hint = nearest(weights, [NONE, PRETRAINED]) if "/" not in weights else ""
            raise BadInput("no such file", path, hint or "model.weights is a file, 'pretrained' or 'none'")
        check_readable(path)
        return path
    known = zoo.spec(model)
    return locate(known) or _from_hub(known)


def folders() -> list[Path]:
    """Return the folders in which weights are looked for: those of BLOODCELL_WEIGHTS, then the user's own."""
    return [*named_folders(), fetch.own_folder()]


def named_folders() -> list[Path]:
    """Return the folders that BLOODCELL_WEIGHTS names."""
    return [Path(name).expanduser() for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def locate(known: ModelSpec) -> Path | None:
    """Return the file of the model's pretrained weights that is on disk already, None if there is none.

    In each folder a file fits by its name: <model>.safetensors (or .pth, .pt, .bin, .tar) in any spelling that `zoo`
    knows, the file's own name where it is published, or, if it is the only one, <model>-ANYTHING or <model>_ANYTHING.
    After the folders come torch.hub's and the Hugging Face hub's caches.

    Raises:
        BadInput: several files of a folder fit, and none exactly.
    """
    for folder in folders():
        found = _in_folder(folder, known)
        if found is not None:
            return found
    return _in_cache(known)


def stem(known: ModelSpec) -> str:
    """Return the model's name as it stands in a file's name: without the library or module."""
    return known.name.rpartition(":")[2]


def _in_folder(folder: Path, known: ModelSpec) -> Path | None:
    if not folder.is_dir():
        return None
    files = {path.name: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    exact = [path for name, path in files.items() if _is_named_after(name, known)]
    if exact:
        return min(exact, key=lambda path: SUFFIXES.index(path.suffix.lower()))
    begins = tuple(stem(known) + mark for mark in "-_.")
    alike = [path for name, path in files.items() if name.startswith(begins) and not _of_another(name, known)]
    if len(alike) > 1:
        listed = ", ".join(path.name for path in alike)
        raise BadInput(
            f"several files could be the weights of {known.name}: {listed}",
            folder,
            f"name one with --model.weights FILE, or call it {stem(known)}.safetensors",
        )
    return alike[0] if alike else None


def _is_named_after(file: str, known: ModelSpec) -> bool:
    names = {zoo.plain(name) for name in (stem(known), *known.aliases)}
    return zoo.plain(Path(file).stem) in names or (known.weights is not None and file == known.weights.file)


def _of_another(file: str, known: ModelSpec) -> bool:
    """Whether the file's name begins with the longer name of another registered model (mobilenet_v3_large, _small)."""
    mine = len(stem(known))
    return any(len(other) > mine and file.startswith(other) for other in zoo.REGISTRY)


def _in_cache(known: ModelSpec) -> Path | None:
    public = known.weights
    if public is None:
        return None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / public.file
    if cached.is_file():
        return cached
    if public.origin.startswith(("timm:", "hf:")):
        kind, place = address(public.origin)
        return fetch.in_hub_cache(place) if kind == "hf" else None
    return None


def _from_hub(known: ModelSpec) -> Path:
    """Download the weights into the user's own folder; ranks of one machine wait for the first one."""
    if known.weights is None:
        raise BadInput(
            "there are no public weights of this model",
            known.name,
            f"give a file, put {stem(known)}.safetensors into a folder of {VARIABLE}, or take --model.weights none",
        )
    folder = fetch.own_folder()
    try:
        fetch.check_online(known, folder)
        say(f"{known.name}: no weights on this disk, looking for them on the network")
        with fetch.alone(folder):
            return locate(known) or fetch.fetch(known, stem(known), folder)
    except EnvironmentFault as problem:
        raise BadInput(
            f"the pretrained weights of {known.name} are not here, and not to be had: {problem.what}",
            ", ".join(map(str, folders())),
            f"{fetch.by_hand(known, (named_folders() or [folder])[0])}, or take --model.weights none",
        ) from problem
