"""`bloodcell weights`: get the public weights of models where there is a network, and see which ones are here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import BadInput

if TYPE_CHECKING:
    from bloodcell.models.spec import ModelSpec


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare fetch and list, NAME... and --to."""
    parser.add_argument("action", choices=["fetch", "list"], help="download weights, or say which are on this disk")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; list without a name shows all of the zoo")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="folder for fetched files; without it the first of BLOODCELL_WEIGHTS, or else ~/.cache/bloodcell/weights",
    )
    parser.epilog = (
        "`--model.weights pretrained` looks in the folders that BLOODCELL_WEIGHTS names (separated as in PATH) and in\n"
        "~/.cache/bloodcell/weights for <model>.safetensors, .pth, .pt or .bin (in any spelling: MobileNetV2.pth),\n"
        "for the file's published name, or for the only file called <model>-... or <model>_...; then in the caches of\n"
        "torch.hub and the Hugging Face hub; then on the network, unless HF_HUB_OFFLINE=1."
    )


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Fetch the named weights, or list what is here."""
    from bloodcell.models import zoo

    if parsed.action == "list":
        if parsed.to is not None:
            raise BadInput("--to belongs to fetch", "command line", "set BLOODCELL_WEIGHTS to list another folder")
        return _list([zoo.spec(name) for name in parsed.names or zoo.names()])
    if not parsed.names:
        raise BadInput("no model is named", "command line", "bloodcell weights fetch NAME; `bloodcell zoo` lists them")
    return _fetch([zoo.spec(name) for name in parsed.names], parsed.to)


def _fetch(models: list[ModelSpec], to: Path | None) -> tuple[dict[str, Any], list[str]]:
    from bloodcell.models import sources
    from bloodcell.models.fetch import fetch, own_folder
    from bloodcell.models.weights import sha256

    folder = to or next(iter(sources.named_folders()), own_folder())
    for known in models:
        if known.weights is None:
            raise BadInput("there are no public weights of this model", known.name, "train it from scratch")
    fetched, lines = [], []
    for known in models:
        assert known.weights is not None
        path = fetch(known, sources.stem(known), folder)
        digest = sha256(path)
        fetched.append(
            {"name": known.name, "file": str(path), "sha256": digest, "bytes": path.stat().st_size}
            | {"licence": known.weights.licence, "note": known.weights.note}
        )
        lines.append(f"{known.name}: {path} (sha256 {digest}; {known.weights.licence})")
        lines += [f"  mind: {known.weights.note}"] if known.weights.note else []
    seen = [place.resolve() for place in sources.folders()]
    if folder.resolve() not in seen:
        lines.append(f"so that training finds them: export {sources.VARIABLE}={folder.resolve()}")
    return {"fetched": fetched}, lines


def _list(models: list[ModelSpec]) -> tuple[dict[str, Any], list[str]]:
    from bloodcell.models import sources

    rows, lines = [], [f"looked in {', '.join(map(str, sources.folders()))} and the caches of torch.hub and the hub"]
    for known in models:
        path, public = sources.locate(known), known.weights
        rows.append(
            {
                "name": known.name,
                "path": str(path) if path else None,
                "bytes": path.stat().st_size if path else None,
                "public": public.describe() if public else None,
            }
        )
        if path:
            lines.append(f"{known.name:<27} {path} ({path.stat().st_size / 1e6:.1f} MB)")
        else:
            lines.append(f"{known.name:<27} - {f'not here; {public.describe()}' if public else 'none are public'}")
    return {"folders": [str(folder) for folder in sources.folders()], "weights": rows}, lines
