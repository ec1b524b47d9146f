"""`bloodcell explain`: maps over images, the check for shortcuts, and the map of the features of a run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.data import add_options, options_from


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of explain."""
    from bloodcell.explain.options import Options

    parser.add_argument("run", type=Path, metavar="RUN", help="run folder with predictions")
    parser.add_argument("--data", type=Path, metavar="SET", help="where the run's shard set lies now")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder to make (RUN/explanation)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (auto)")
    add_options(parser, Options)


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Explain a run; return the result and the lines for people."""
    from bloodcell.data.shardset import ShardSet
    from bloodcell.engine.resolve import resolve
    from bloodcell.explain.explain import explain
    from bloodcell.explain.options import Options
    from bloodcell.ranks import discover, set_threads
    from bloodcell.report import write_run_report
    from bloodcell.runfolder import RunFolder

    folder = RunFolder(parsed.run)
    stored = folder.config()
    data = parsed.data or Path(stored.data.set)
    shards = ShardSet.open(data)
    engine = replace(stored.engine, device=parsed.device, threads=0, precision="fp32")
    config = resolve(replace(stored, engine=engine, data=replace(stored.data, set=str(data), threads=0)), discover())
    set_threads(config.engine.threads)
    target = parsed.out or folder.path / "explanation"
    result = explain(folder, config, shards, target, options_from(parsed, Options))
    if parsed.out is None:  # the explanation is a part of the run's own report
        write_run_report(folder.path, data)
    return {**result, "report": str(target / "explanation.html")}, _lines(result, target)


def _lines(result: dict[str, Any], target: Path) -> list[str]:
    lines = [f"{result['method']} maps of {result['samples']} images of the {result['split']} split"]
    for name, region in result["regions"].items():
        lines.append(
            f"  {name:<13} area {region['area']:6.1%}  map {region['map']:6.1%}  predictions that change when painted "
            f"over {region['changed']:6.1%}" + ("  SHORTCUT" if region["flagged"] else "")
        )
    passed = "as it should be" if result["sanity"]["passed"] else "TOO ALIKE: the maps say little about this network"
    lines.append(f"rank correlation with the maps of random weights: {result['sanity']['correlation']:.2f}, {passed}")
    return [*lines, f"report: {target / 'explanation.html'}"]
