"""`bloodcell evaluate` and `bloodcell report`: exact metrics of a finished run, and its document."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.errors import BadInput


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of evaluate or report."""
    if verb == "report":
        parser.add_argument("path", type=Path, metavar="RUN|SET", help="run folder or shard set")
        return
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--split", default="test", help="train, val or test; several with commas (test)")
    parser.add_argument("--data", type=Path, metavar="SET", help="another shard set with the same classes")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (auto)")


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run evaluate or report; return the result and the lines for people."""
    return _report(parsed.path) if verb == "report" else _evaluate(parsed)


def _report(path: Path) -> tuple[dict[str, Any], list[str]]:
    if (path / "dataset.json").exists():
        from shards.report import write_set_report

        page = write_set_report(path)
    else:
        from bloodcell.report import write_run_report
        from bloodcell.runfolder import RunFolder

        data = Path(RunFolder(path).config().data.set)
        page = write_run_report(path, data if data.exists() else None)
    return {"report": str(page)}, [f"report: {page}"]


def _evaluate(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    import torch

    from bloodcell.data.shardset import ShardSet
    from bloodcell.engine.evaluate import MODEL_FILE, evaluate_run
    from bloodcell.engine.resolve import resolve
    from bloodcell.ranks import discover, process_group, set_threads
    from bloodcell.runfolder import RunFolder

    ranks = discover()
    folder = RunFolder(parsed.run)
    stored = folder.config()
    if not (folder.path / MODEL_FILE).exists():
        raise BadInput("the run has no model.safetensors", folder.path, "finish the training first (start it again)")
    data = parsed.data or Path(stored.data.set)
    shards = ShardSet.open(data)
    other = shards.info.fingerprint != folder.stored()["fingerprint"]
    if other and parsed.data is None:
        raise BadInput("the set is not the one the run was trained on", data, "name the set with --data")
    names = [name for name in parsed.split.split(",") if name]
    for name in names:
        shards.info.count(shards.split_name(name, stored.data.fold))
    # This machine's devices and threads, not those of the training.
    engine = replace(stored.engine, device=parsed.device, threads=0, precision="fp32")
    config = resolve(replace(stored, engine=engine, data=replace(stored.data, set=str(data), threads=0)), ranks)
    set_threads(config.engine.threads)
    with process_group(ranks, torch.device(config.engine.device), config.engine.timeout):
        results = evaluate_run(folder, config, shards, ranks, names, other)
    if not ranks.first:
        return {}, []
    return _said(results, folder, shards, other)


def _said(results: dict[str, Any], folder: Any, shards: Any, other: bool) -> tuple[dict[str, Any], list[str]]:
    from bloodcell.evaluation.result import table
    from bloodcell.report import write_run_report

    if not other:
        write_run_report(folder.path, shards.folder)
    lines = [line for result in results.values() for line in table(result)]
    if len(results) == 1:
        return next(iter(results.values())), lines
    return {"run": str(folder.path), "data": str(shards.folder), "splits": results}, lines
