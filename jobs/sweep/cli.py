"""`bloodcell sweep`: search for good settings of a recipe, as processes of this machine, resumable at any moment."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bloodcell.config import Config, decode, override, parse_flags
from jobs.groups import grouped
from jobs.sweep.settings import METHODS, OBJECTIVES, Settings, read_settings
from jobs.sweep.stored import check_empty, make, settle
from jobs.train import find_recipe, recipe_file
from shards.console import say
from shards.errors import BadInput, CheckFailed

TAKES_CONFIG = True
EPILOG = """\
The recipe says in its table [sweep] what is searched (its other tables are what all trials share; --SECTION.KEY VALUE
changes them, as for train):

  [sweep]
  objective = "val/macro_recall"     a validation metric: nothing is ever chosen on the test split
  method = "random"                  random; hyperband and asha, which pause most trials early; tpe (needs Optuna)
  trials = 10
  epochs = 15                        of a trial that is not paused; min_epochs (1) before the first pause, eta (3)
  seed = 0
  [sweep.space]
  "optim.lr" = { low = 1e-4, high = 1.0, log = true }
  "model.name" = { choices = ["cnn5", "alexnet"] }

A trial is `train` with the whole plan of `epochs`; at a pause it has saved and stopped (RUN/stop), and when promoted it
goes on as if it had never paused: the learning rate does not depend on the pauses, and the winner is what `train` makes
of best.toml. Killed and started again, the same command goes on; more --trials may be asked for later.

On Slurm: `bloodcell submit sweep RECIPE --data SET --out DIR --cluster NAME --jobs N` is an array of N workers, each of
them `bloodcell sweep --out DIR --join`, which may be started by hand too. What a worker had that is preempted or dies
is given to the others, and goes on from its checkpoint; no trial is trained twice to its end.

DIR holds trials/0007 (a run folder), .toml, .log; journal.jsonl (what was done), sweep.json, best.toml, report.html.

--json: {out, objective, method, trials, finished, paused, failed, best: {trial, value, values, run}, recipe, report};
of a worker that leaves before the end: {out, left: true}; with --wandb-file what FILE holds"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of sweep."""
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="a .toml file or the name of one, with a table [sweep]"
    )
    parser.add_argument("--data", type=Path, metavar="SET", help="shard set")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where everything goes")
    parser.add_argument("--trials", type=int, metavar="N", help="how many settings are tried (sweep.trials)")
    parser.add_argument("--method", metavar="METHOD", help=f"{', '.join(METHODS)} (sweep.method)")
    parser.add_argument("--objective", metavar="METRIC", help=f"{', '.join(OBJECTIVES)} (sweep.objective)")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of a trial that is not paused (sweep.epochs)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the draws (sweep.seed)")
    parser.add_argument("--workers", type=int, default=1, metavar="W", help="trials at once, sharing cores or GPUs (1)")
    parser.add_argument(
        "--join", action="store_true", help="take part in the sweep that DIR holds: its workers share DIR, nothing else"
    )
    parser.add_argument(
        "--silence", type=float, default=60.0, metavar="S", help="seconds without a sign until a worker is dead (60)"
    )
    parser.add_argument(
        "--wandb-file", type=Path, metavar="FILE", help="search nothing, but write FILE for `wandb sweep` (.yaml)"
    )
    parser.epilog = EPILOG


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Search; return the result and the lines for people."""
    from jobs.sweep.runner import alone

    if parsed.wandb_file is not None:
        return _wandb_file(parsed)
    if parsed.out is None:
        raise BadInput("no folder is named", "command line", "add --out DIR")
    if parsed.recipe is None:
        return _join(parsed)
    base, settings, data, fingerprint = asked(parsed)
    if parsed.join:
        raise BadInput("whoever joins takes what the sweep was begun with", "--join", "leave RECIPE out")
    make(parsed.out)
    with alone(parsed.out):
        threads = settle(parsed.out, base, settings, data, fingerprint, cores_of(parsed.workers))
        return _search(parsed, base, settings, data, threads)


def asked(parsed: argparse.Namespace) -> tuple[Config, Settings, Path, str]:
    """Return what all trials share, what is searched, the set and its fingerprint; raises BadInput."""
    base, settings = _asked(parsed)
    data, fingerprint = _set(parsed, base)
    if parsed.workers < 1:
        raise BadInput(f"--workers {parsed.workers} will not do", "command line", "give 1 or more")
    check_empty(parsed.out)
    return override(base, {"data.set": ""}), settings, data.resolve(), fingerprint


def cores_of(workers: int) -> int:
    """Return how many threads each of several trials at once has."""
    from shards.parallel import available_cores

    return max(1, available_cores() // workers)


def _asked(parsed: argparse.Namespace) -> tuple[Config, Settings]:
    """Return what the recipe and the command line ask for."""
    from jobs.sweep.draws import check_installed

    config, _ = find_recipe(parsed.recipe)
    file = recipe_file(parsed.recipe)
    settings = read_settings(file)
    if settings is None:
        raise BadInput("the recipe has no table [sweep]", file, "`bloodcell sweep --help` shows one")
    names = ("trials", "method", "objective", "epochs", "seed")
    settings = settings.changed("command line", **{name: getattr(parsed, name) for name in names})
    check_installed(settings)
    flags = parse_flags(parsed.flags)
    for key in flags:
        if key in {d.key for d in settings.space}:
            raise BadInput(f"--{key} is searched", "command line", "leave it out, or take it out of [sweep.space]")
        if key in ("train.epochs", "train.monitor"):
            name = {"train.epochs": "--epochs", "train.monitor": "--objective"}[key]
            raise BadInput(f"--{key} is set by the sweep", "command line", f"give {name}")
    fixed = {"train.epochs": settings.epochs, "train.monitor": settings.objective}
    return override(config, {**flags, **fixed}), settings


def _wandb_file(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Write the sweep as a file for W&B's server."""
    from jobs.sweep.wandb_file import write_wandb_file

    if parsed.recipe is None or parsed.join:
        raise BadInput("a file for W&B is made from a recipe", "--wandb-file", "give RECIPE and --data SET")
    base, settings = _asked(parsed)
    data, _ = _set(parsed, base)
    recipe = str(Path(parsed.recipe).resolve()) if parsed.recipe.endswith(".toml") else parsed.recipe
    file = parsed.wandb_file
    value = write_wandb_file(file, recipe, data.resolve(), parse_flags(parsed.flags), settings)
    return {"file": str(file), **value}, [f"file: {file}", f"next: wandb sweep --project PROJECT {file}"]


def _set(parsed: argparse.Namespace, base: Config) -> tuple[Path, str]:
    from shards.format import read_dataset

    data = parsed.data or (Path(base.data.set) if base.data.set else None)
    if data is None:
        raise BadInput("no shard set is named", "command line", "add --data SET")
    return data, read_dataset(data).fingerprint


def _join(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Take part in the sweep that DIR holds, or go on with it alone."""
    from bloodcell.engine.preemption import Listener, started
    from jobs.sweep.runner import alone
    from jobs.sweep.settings import settings_of

    file = parsed.out / "sweep.json"
    more = [
        f"--{name}" for name in ("trials", "method", "objective", "epochs", "seed") if getattr(parsed, name) is not None
    ]
    more += parsed.flags
    if more or not file.exists():
        what = f"{more[0]} changes a sweep that is under way" if more else "no sweep was begun here"
        raise BadInput(what, parsed.out, "name its RECIPE and --data SET, as at its start")
    stored = json.loads(file.read_text(encoding="utf-8"))
    settings, base = settings_of(stored["sweep"], file), decode(stored["base"], file)
    data = parsed.data or Path(stored["data"])
    if parsed.join:
        with Listener(), alone(parsed.out, shared=True):
            started()
            return _search(parsed, base, settings, data, int(stored["threads"]))
    with alone(parsed.out):
        return _search(parsed, base, settings, data, int(stored["threads"]))


def _search(
    parsed: argparse.Namespace, base: Config, settings: Settings, data: Path, threads: int
) -> tuple[dict[str, Any], list[str]]:
    from jobs.sweep.leases import Leases, worker_name
    from jobs.sweep.runner import Runner
    from jobs.sweep.show import Board
    from jobs.sweep.trials import Journal
    from jobs.sweep.worker import Worker

    journal = Journal(parsed.out)
    if journal.trials:
        over = sum(trial.over for trial in journal.trials)
        say(f"going on with {parsed.out}: {len(journal.trials)} trials so far, {over} of them over")
    flags = [] if base.engine.threads else ["--engine.threads", str(threads)]
    for name, value in grouped(base, parsed.out, "trial").items():
        flags += [f"--{name}", str(value)]
    devices = _devices(base)
    runner = Runner(parsed.out, data, base, settings, journal, parsed.workers, devices, flags, lambda _: None)
    leases = Leases(parsed.out, worker_name(), parsed.silence)
    try:
        with Board(settings, journal, runner.run_folder) as board:
            runner.changed = board.update
            if not parsed.join:
                runner.run()
            elif not Worker(runner, leases, board.follow).run():
                said = "nothing is left for this worker; another one waits in case those that train die"
                return {"out": str(parsed.out), "left": True}, [said]
    finally:
        runner.journal.close()
    with leases.turn() if parsed.join else nullcontext():  # whoever comes last writes it last: all write the same
        return _finish(runner)


def _devices(base: Config) -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import os

    if base.engine.device == "cpu":
        return []
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(index) for index in range(torch.cuda.device_count())]


def _finish(runner: Any) -> tuple[dict[str, Any], list[str]]:
    from jobs.sweep.recipe import write_recipe
    from jobs.sweep.report import write_report
    from jobs.sweep.schedulers import winner

    settings, trials, folder = runner.settings, runner.journal.trials, runner.folder
    best = winner(trials)
    if best is None:
        reasons = [trial.failed for trial in trials if trial.failed]
        raise CheckFailed("no trial came to its end", folder, f"the first one failed: {reasons[0]}" if reasons else "")
    value = -best.score if settings.smaller_is_better else best.score
    recipe = folder / "best.toml"
    heading = [
        f"The winner of a sweep ({settings.method}): trial {best.number} of {len(trials)}, {settings.objective} "
        f"{value:.6g} at its best validation."
    ]
    write_recipe(recipe, runner.trial_config(best.number), heading)
    page = write_report(folder / "report.html", settings, trials, runner.run_folder)
    failed = sum(bool(trial.failed) for trial in trials)
    finished = sum(trial.finished for trial in trials)
    result = {
        "out": str(folder),
        "objective": settings.objective,
        "method": settings.method,
        "trials": len(trials),
        "finished": finished,
        "paused": len(trials) - finished - failed,
        "failed": failed,
        "best": {
            "trial": best.number,
            "value": value,
            "values": best.values,
            "run": str(runner.run_folder(best.number)),
        },
        "recipe": str(recipe),
        "report": str(page),
    }
    lines = [
        f"{len(trials)} trials: {finished} trained to the end, {result['paused']} paused early, {failed} failed",
        f"best: trial {best.number}, {settings.objective} {value:.4f} "
        f"({', '.join(f'{key} {v}' for key, v in best.values.items())})",
        f"recipe: {recipe}",
        f"report: {page}",
    ]
    return result, lines
