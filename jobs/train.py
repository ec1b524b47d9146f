"""`bloodcell train`: find the recipe and the run, check everything, join the other ranks, train, evaluate, report."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloodcell.config import Config, Flat, difference, encode, fields, override, parse_flags, read_recipe
from jobs.slurm.ends import place, recorded
from shards.console import say
from shards.errors import BadInput, Fault, Stop, nearest

if TYPE_CHECKING:
    from bloodcell.data.shardset import ShardSet
    from bloodcell.engine.resolve import Machine
    from bloodcell.ranks import Ranks
    from bloodcell.runfolder import RunFolder

TAKES_CONFIG = True
RECIPES = Path(__file__).with_name("recipes")


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Declare RECIPE, --data, --run; every config field is a flag too."""
    about = f"a .toml file, or one of {', '.join(recipe_names())}; an existing --run knows its own"
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help=about)
    parser.add_argument("--data", type=Path, metavar="SET", help="shard set")
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="run folder (runs/<recipe>-<hash>); an unfinished run goes on"
    )
    parser.add_argument(
        "--folds",
        choices=["all"],
        help="train every fold of the set in DIR/fold0, …; pool in DIR/pooled",
    )
    parser.add_argument(
        "--profile", action="store_true", help="trace a few steps: where their time goes, in DIR/profile"
    )
    described = []
    for key, leaf in fields().items():
        if key != "data.set":
            default = "unset" if leaf.default == "" else leaf.default
            described.append(f"  --{key:<24} {leaf.metadata['help']} ({default})")
    parser.epilog = "config fields:\n" + "\n".join(described)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the program, and of those in ./recipes."""
    return sorted({path.stem for folder in (RECIPES, Path("recipes")) for path in folder.glob("*.toml")})


def find_recipe(name: str) -> tuple[Config, str]:
    """Return the config of a recipe (a file, or a name in ./recipes or among the program's own) and its short name."""
    from jobs.sweep.settings import read_settings

    file = recipe_file(name)
    read_settings(file)  # a recipe is right as a whole, or it is not taken
    return read_recipe(file), file.stem


def recipe_file(name: str) -> Path:
    """Return the file of a recipe; raises BadInput for a name that none has."""
    given = Path(name)
    if given.suffix == ".toml" or "/" in name:
        return given
    for folder in (Path("recipes"), RECIPES):
        if (folder / f"{name}.toml").exists():
            return folder / f"{name}.toml"
    known = recipe_names()
    raise BadInput(f"no recipe {name!r}", "command line", nearest(name, known) or f"there are {', '.join(known)}")


def run(verb: str, parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Train; return the run's result and the lines for people."""
    from bloodcell.engine.loading import loading
    from bloodcell.engine.preemption import Listener

    with recorded(parsed.run), Listener(), loading():  # before torch is loaded, which takes seconds
        return _run(parsed)


def _run(parsed: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    base, recipe, path = start_from(parsed.recipe, parsed.run)
    flags = parse_flags(parsed.flags)
    if parsed.data is not None:
        flags["data.set"] = str(parsed.data)
    if parsed.profile:
        flags["tracking.profile"] = True
    if parsed.folds:
        from jobs.folds import train_folds

        return train_folds(base, recipe, flags, path)
    return train(base, recipe, flags, path)


def start_from(recipe: str | None, path: Path | None) -> tuple[Config, str, Path | None]:
    """Return the recipe's config, its short name and the run folder; without a recipe those of the run in `path`."""
    if recipe is not None:
        return *find_recipe(recipe), path
    if path is None:
        raise BadInput("no recipe is named", "command line", "give RECIPE, or the --run to go on with")
    from bloodcell.config import decode
    from bloodcell.runfolder import RunFolder

    stored = RunFolder(path).stored()
    return decode(stored["base"], path), str(stored["recipe"]), path


def train(base: Config, recipe: str, flags: Flat, path: Path | None) -> tuple[dict[str, Any], list[str]]:
    """Train `base` changed by `flags` in the run folder `path` (or the one its name leads to)."""
    from bloodcell.engine.setup import check
    from bloodcell.ranks import discover, set_threads
    from bloodcell.runfolder import Status

    ranks = discover()
    config, folder, content, shards = settle(base, recipe, flags, path, ranks)
    check(config, shards, ranks)
    set_threads(config.engine.threads)
    status = Status(folder, ranks.first)
    command = f"bloodcell {shlex.join(sys.argv[1:])}"
    status.values.update(command=command, world=ranks.world, node=platform.node(), **place())
    import torch

    if config.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is loaded
    torch.use_deterministic_algorithms(config.engine.deterministic)
    return _guarded(config, content, folder, status, ranks, shards)


def settle(
    base: Config, recipe: str, flags: Flat, path: Path | None, ranks: Ranks, machine: Machine | None = None
) -> tuple[Config, RunFolder, dict[str, Any], ShardSet]:
    """Return the resolved config, the run folder, what config.json shall hold, and the set; an old run is taken up.

    Raises:
        BadInput: no set, or the run belongs to another recipe, config or set; the difference is in the message.
    """
    from bloodcell.data.shardset import ShardSet
    from bloodcell.engine.batches import check_window
    from bloodcell.engine.caching import choose_cache
    from bloodcell.engine.resolve import as_stored, resolve
    from bloodcell.engine.trying import TRIED
    from bloodcell.runfolder import RunFolder, check_same, default_path
    from jobs.stage import staged

    wanted = override(base, flags)
    if not wanted.data.set and path is not None and RunFolder(path).exists:
        wanted = override(wanted, {"data.set": RunFolder(path).config().data.set})
    if not wanted.data.set:
        raise BadInput("no shard set is named", "command line", "add --data SET")
    shards = ShardSet.open(Path(wanted.data.set))
    folder = RunFolder(path or default_path(recipe, wanted, shards.info.fingerprint))
    content = {
        "recipe": recipe,
        "base": encode(base),
        "fingerprint": shards.info.fingerprint,
        "classes": shards.info.classes,
        "leaks": shards.info.leaks,
    }
    if folder.exists:
        config = resolve(as_stored(take_up(folder, base, flags, content), folder.config()), ranks, machine)
        config = check_same(folder.config(), config, folder.path)
    else:
        config = resolve(wanted, ranks, machine)
    shown = replace(shards, folder=staged(shards.info) or Path(config.data.set))
    if machine is None and (config.data.cache == "auto" or not folder.exists):
        choice = choose_cache(config, shown)  # refuses what is asked for and does not fit
        if config.data.cache == "auto" and choice.place == "off" and ranks.first:
            say(f"images are not kept: {choice.why}")
        config = override(config, {"data.cache": choice.place})
    if folder.exists:
        content |= {name: value for name, value in folder.stored().items() if name == TRIED}
    config = choose(config, shown, ranks, content, here=machine is None)
    if machine is None:
        check_window(config, shards, ranks)
    return config, folder, {"config": encode(config), **content}, shown


def choose(config: Config, shards: ShardSet, ranks: Ranks, content: dict[str, Any], here: bool) -> Config:
    """Return the config with micro-batch and compiling decided; the former only where the run will be (`here`).

    The micro-batch is an estimate, which `content` holds until it is tried.
    """
    from bloodcell.engine.batch_size import choose_micro_batch
    from bloodcell.engine.batches import make_order
    from bloodcell.engine.cache_room import needs
    from bloodcell.engine.compiling import choose_compile
    from bloodcell.engine.trying import TRIED

    order = make_order(override(config, {"data.micro_batch": config.data.micro_batch or 1}), shards)
    images = order.steps_per_epoch * order.global_batch
    if not config.data.micro_batch and here:
        taken = needs(config, shards, "device") if config.data.cache == "device" else 0
        estimate = choose_micro_batch(config, images, taken)
        content[TRIED] = asdict(estimate)
        config = override(config, {"data.micro_batch": estimate.images})
    if config.engine.compile == "auto":
        compiling = choose_compile(config, images * config.train.epochs, ranks.world)
        if ranks.first:
            say(f"training steps are {'' if compiling.on else 'not '}compiled: {compiling.why}")
        config = override(config, {"engine.compile": "on" if compiling.on else "off"})
    return config


def take_up(folder: RunFolder, base: Config, flags: Flat, content: dict[str, Any]) -> Config:
    """Return the stored config with this command's flags; raises BadInput if recipe or set are not the run's own."""
    from bloodcell.config import decode

    stored = folder.stored()
    if stored.get("fingerprint") != content["fingerprint"]:
        raise BadInput(
            "the run was started on another set", folder.path, "choose another --run or the set it was started on"
        )
    changed = difference(decode(stored["base"], folder.path), base)
    if changed:
        said = "; ".join(f"{key}: {old!r} there, {new!r} here" for key, (old, new) in changed.items())
        raise BadInput(f"the run was started with another recipe ({said})", folder.path, "choose another --run")
    return override(folder.config(), flags)


def _guarded(
    config: Config, content: dict[str, Any], folder: RunFolder, status: Any, ranks: Ranks, shards: ShardSet
) -> tuple[dict[str, Any], list[str]]:
    """Run, and leave in status.json why it ended, whatever happened."""
    import torch

    from bloodcell.engine.lock import RunLock, held_by_another, hold
    from bloodcell.engine.peers import peer_fault
    from bloodcell.engine.preemption import started
    from bloodcell.engine.run import execute, failure
    from bloodcell.engine.trying import found_micro_batch
    from bloodcell.engine.watchdog import Watchdog
    from bloodcell.ranks import process_group

    lock = RunLock(folder.path)

    def note(code: int, problem: Exception) -> None:
        if not held_by_another(lock):  # what another start writes is left alone
            failure(folder, status, code, problem)
        lock.release()

    def last_words(problem: Stop) -> None:
        note(problem.code, problem)

    engine, watchdog = config.engine, None
    try:
        started(last_words, starting=True)
        with process_group(ranks, torch.device(engine.device), engine.timeout):
            hold(lock, folder, config, status, ranks)
            config = found_micro_batch(config, content, shards, ranks)
            patience = engine.timeout + 30  # a collective that gives up by itself says more
            attempt = status.values["attempt"]
            with Watchdog(folder.path, ranks, attempt, engine.stall, patience, last_words) as watchdog:
                results = execute(config, content, folder, status, ranks, shards)
        status.update(state="done", outcome={"code": 0, "kind": "done", "what": "finished"})
        return _report(results, folder, shards, ranks)
    except Stop as problem:
        last_words(problem)
        raise
    except Exception as error:
        peer = peer_fault(error, ranks, watchdog.fed.step if watchdog else 0)
        note(peer.code if peer else Fault.code, peer or error)
        if peer:
            raise peer from error
        raise
    finally:
        lock.release()


def _report(
    results: dict[str, Any], folder: RunFolder, shards: ShardSet, ranks: Ranks
) -> tuple[dict[str, Any], list[str]]:
    if not ranks.first:
        return {}, []
    from bloodcell.evaluation.result import table
    from bloodcell.report import write_run_report

    page = write_run_report(folder.path, shards.folder)
    lines = []
    for result in results.values():
        lines += table(result)
    lines += [f"run: {folder.path}", f"report: {page}"]
    summary = {name: result["metrics"] for name, result in results.items()}
    return {"run": str(folder.path), "data": str(shards.folder), "metrics": summary, "report": str(page)}, lines
