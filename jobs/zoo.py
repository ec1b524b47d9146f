"""`bloodcell zoo`: the models there are, what they cost, where their weights come from, and whether they work here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from shards.console import progress
from shards.errors import BadInput

if TYPE_CHECKING:
    from bloodcell.models.spec import ModelSpec

ELSEWHERE = "and timm:NAME, torchvision:NAME, module:function"


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare NAME... and --check."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="say all that is known of these models (any name `train` takes)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="build every registered model (or those named), send images through it and back, swap its head, save and "
        "load it; exit 1 if one fails",
    )
    parser.epilog = (
        "M: parameters in millions with 1,000 classes. GFLOPs: of one image of the native size, a multiply-add being\n"
        "two operations. px: native side of the input, and the smallest that the model takes."
    )


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """List the models, describe some of them, or check them."""
    from bloodcell.models import zoo

    if parsed.check:
        return _check([zoo.spec(name).name for name in parsed.names] or zoo.names())
    models = [describe(zoo.spec(name)) for name in parsed.names or zoo.names()]
    return {"models": models}, _details(models) if parsed.names else _table(models)


def describe(known: ModelSpec) -> dict[str, Any]:
    """Return what is known of a model as JSON values; what is not stored is found on a network without weights.

    Raises:
        BadInput: the model cannot be built, or cannot take images of its native size.
    """
    parameters, flops = known.parameters, known.flops
    if parameters is None or flops is None:
        from bloodcell.models.costs import measure

        try:
            parameters, flops = measure(known)
        except Exception as error:
            raise BadInput(f"the model cannot be built: {type(error).__name__}: {error}", known.name) from error
    public = known.weights
    return {
        "name": known.name,
        "parameters": parameters,
        "flops": flops,
        "size": known.size,
        "smallest": known.minimum,
        "multiple": known.multiple,
        "source": known.source,
        "weights": public.describe() if public else None,
        "licence": public.licence if public else None,
        "file": public.file if public else None,
        "origin": public.origin if public else None,
        "note": public.note if public else "",
        "notes": known.notes,
        "aliases": list(known.aliases),
        "mean": list(known.mean),
        "std": list(known.std),
    }


def _table(models: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'name':<27} {'M':>7} {'GFLOPs':>7} {'px':>9}  {'public weights':<26} source"]
    for m in models:
        pixels = f"{m['size']} ≥{m['smallest']}" if m["smallest"] else str(m["size"])
        costs = f"{m['parameters'] / 1e6:>7.2f} {m['flops'] / 1e9:>7.2f}"
        licence = (m["licence"] or "none").partition(";")[0].partition(" (")[0].partition(" for ")[0]
        lines.append(f"{m['name']:<27} {costs} {pixels:>9}  {licence:<26} {m['source']}")
    return [
        *lines,
        ELSEWHERE,
        "`bloodcell zoo NAME` says more; `bloodcell weights fetch NAME` gets the weights as a file",
    ]


def _details(models: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for m in models:
        smallest = f", {m['smallest']} or more" if m["smallest"] else ""
        multiple = f", a multiple of {m['multiple']}" if m["multiple"] > 1 else ""
        lines += [m["name"]] + [
            f"  {what + ':':<12} {text}"
            for what, text in (
                ("notes", m["notes"]),
                ("source", m["source"]),
                ("parameters", f"{m['parameters']:,} with 1,000 classes"),
                ("operations", f"{m['flops'] / 1e9:.2f} GFLOPs for one image of {m['size']} px"),
                ("input", f"{m['size']} px{smallest}{multiple}; mean {m['mean']}, std {m['std']}"),
                ("weights", m["weights"] or "none are public: train it from scratch"),
                ("mind", m["note"]),
                ("get them", f"bloodcell weights fetch {m['name']}" if m["weights"] else ""),
                ("also called", ", ".join(m["aliases"])),
            )
            if text
        ]
    return lines


def _check(names: list[str]) -> tuple[dict[str, Any], list[str]]:
    from bloodcell.models.check import STEPS, examine

    results = [examine(name) for name in progress(names, "checking", len(names))]
    width = max(len(name) for name in names)
    lines = [f"{'name':<{width}} {'px':>4} {'s':>6}  {'  '.join(STEPS)}"]
    for r in results:
        marks = "  ".join(
            f"{'ok' if step in r['passed'] else 'FAILED' if step == r['failed'] else '-':<{len(step)}}"
            for step in STEPS
        )
        lines.append(f"{r['name']:<{width}} {r['size'] or '':>4} {r['seconds']:>6.1f}  {marks}".rstrip())
    failed = [r for r in results if r["failed"]]
    lines += [f"{r['name']}: {r['failed']} failed: {r['error']}" for r in failed]
    lines.append(f"{len(results) - len(failed)} of {len(results)} models work")
    return {"models": results, "exit": 1 if failed else 0}, lines
