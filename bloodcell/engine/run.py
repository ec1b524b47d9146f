"""A run from start (or from where it stopped) to its result, inside one process of a group."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bloodcell.config import Config, encode
from bloodcell.data.leaving_out import LeftOut, consumed_digest
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.agree import on_first_rank
from bloodcell.engine.attempts import begin_attempt
from bloodcell.engine.batches import make_order
from bloodcell.engine.efficiency import efficiency, measured_ceiling
from bloodcell.engine.evaluate import evaluate_run, export_weights
from bloodcell.engine.loading import loaded
from bloodcell.engine.preemption import started
from bloodcell.engine.setup import Job, prepare
from bloodcell.engine.shown import gather
from bloodcell.engine.skipped import SKIPPED_FILE, describe_left_out
from bloodcell.engine.train import Progress, train
from bloodcell.engine.watchdog import feed
from bloodcell.models import sources
from bloodcell.models.weights import sha256
from bloodcell.ranks import Ranks
from bloodcell.runfolder import RunFolder, Status, environment
from bloodcell.tracking import Tracker, open_tracker
from bloodcell.tracking.view import one_line
from shards.console import say, warn
from shards.errors import Fault, Preempted, Stopped


def execute(
    config: Config, content: dict[str, Any], run: RunFolder, status: Status, ranks: Ranks, shards: ShardSet
) -> dict[str, Any]:
    """Train (or go on training), keep the best weights, evaluate val and test. Collective; the process group is up.

    Args:
        config: resolved.
        content: what config.json shall hold.
        run: the run folder.
        status: its status file.
        ranks: this process's place.
        shards: the set.

    Returns:
        {split: result} on the first rank.
    """
    on_first_rank(ranks, lambda: _open(run, content, config, ranks, status, shards))
    status.update(state="starting")
    job = prepare(config, run, status, ranks, shards)
    state, resumed = _restore(job)
    job.tracker = _track(job, state, resumed)
    job.tell_left_out(state)
    loaded()
    started()
    outcome = "failed"
    try:
        if not state.finished:
            train(job, state)
        job.checkpoints.wait()
        _prove(job, state)
        results = _finish(job, state)
        outcome = "done"
    except Stopped as stop:
        job.checkpoints.wait()  # all ranks stop together: what was asked to be saved is there when they leave
        outcome = "preempted"
        job.tracker.alert(f"{run.path.name}: stopped", one_line(stop), failed=False)
        job.tracker.close(outcome)
        with contextlib.suppress(RuntimeError):
            dist.barrier()  # go together: a launcher that sees one rank go soon kills those that still say goodbye
        raise
    except Exception as problem:
        job.tracker.alert(f"{run.path.name}: failed", one_line(problem))
        raise
    finally:
        job.checkpoints.close()
        job.tracker.close(outcome)
    return results


def _open(
    run: RunFolder, content: dict[str, Any], config: Config, ranks: Ranks, status: Status, shards: ShardSet
) -> None:
    run.create(content)
    limits = (config.engine.max_attempts, config.engine.max_deaths)
    begin_attempt(run.path, status, newest_step(run), limits, make_order(config, shards), shards.describe)
    threads = {"torch": config.engine.threads, "loader": config.data.threads}
    device = torch.cuda.get_device_name() if config.engine.device == "cuda" else "cpu"
    file = sources.find(config.model.name, config.model.weights)
    start = {"weights": {"file": str(file), "sha256": sha256(file)} if file else None}
    exact = {"seed": config.train.seed, "deterministic": torch.are_deterministic_algorithms_enabled()}
    run.write("environment.json", {**environment(threads, ranks.launcher, device, ranks.world), **start, **exact})


def newest_step(run: RunFolder) -> int:
    """Return the optimizer steps of the newest checkpoint in a run folder, 0 if there is none."""
    found = [path.name for path in (run.path / "checkpoints").glob("*") if path.name.isdigit()]
    return max(map(int, found), default=0)


def _restore(job: Job) -> tuple[Progress, bool]:
    """Return where the run stands, with the strategy in that state, and whether it was started before. Collective."""
    found = job.checkpoints.load("last")
    if found is None:
        return Progress(), job.status.values["attempt"] > 1
    state, progress = found
    job.strategy.load_state_dict(state)
    job.average.load_state_dict(state["average"])
    restored = Progress(**progress)
    if job.checkpoints.damaged:
        job.status.update(damaged_checkpoints=job.checkpoints.damaged)
    # A longer plan than at the time of saving: there is training left.
    restored.finished = restored.finished and restored.planned == job.plan.steps
    if job.ranks.first:
        attempt = job.status.values["attempt"]
        say(f"resuming {job.run.path} at step {restored.step} of {job.plan.steps} (attempt {attempt})")
        if restored.planned != job.plan.steps:
            say(f"the schedule is stretched from {restored.planned} to {job.plan.steps} steps from here on")
    return restored, True


def _track(job: Job, state: Progress, resumed: bool) -> Tracker:
    """Return the tracker, a real one on the first rank. Collective."""
    config, tracking = job.config, job.config.tracking
    parameters = sum(p.numel() for p in job.strategy.model.parameters())
    job.status.update(parameters=parameters, steps=job.plan.steps, step=state.step, leaks=job.shards.info.leaks)
    opened = on_first_rank(
        job.ranks,
        lambda: open_tracker(
            job.run.path,
            encode(config),
            mode=tracking.wandb,
            project=tracking.project,
            entity=tracking.entity,
            name=job.run.path.name,
            group=tracking.group,
            job_type=tracking.job_type,
            tensorboard=tracking.tensorboard,
            rank=job.ranks.rank,
            resume_step=state.step if resumed else None,
            again="val/" if state.unvalidated else None,
        ),
    )
    tracker = opened or Tracker()
    if resumed and not state.finished:
        attempt = job.status.values["attempt"]
        tracker.alert(f"{job.run.path.name}: started again", f"attempt {attempt}, at step {state.step}", failed=False)
    return tracker


def _prove(job: Job, state: Progress) -> None:
    """Compare what was consumed, over all ranks and restarts, with what the plan deals, less what was left out."""
    left_out = [LeftOut(**one) for one in state.left_out]
    if state.lineage != consumed_digest(job.order, state.step, left_out):
        raise Fault(
            "the samples that were consumed are not those of the plan", f"steps 0 to {state.step}", "report this"
        )


def _finish(job: Job, state: Progress) -> dict[str, Any]:
    """Make the best weights the run's result and evaluate them. Collective."""
    feed("judging", state.step)
    job.tell_left_out(state)
    if state.left_out and job.ranks.first:
        warn(f"{describe_left_out(state.left_out)}: {job.run.path / SKIPPED_FILE}")
    job.status.update(state="evaluating", step=state.step, lineage=state.lineage, lineage_proven=True)
    best = job.checkpoints.load("best") or job.checkpoints.load("last")
    assert best is not None
    job.strategy.model.load_state_dict(best[0]["model"])
    job.average.load_state_dict(best[0]["average"])
    classes, fingerprint = job.shards.info.classes, job.shards.info.fingerprint
    with job.average.applied():
        on_first_rank(job.ranks, lambda: export_weights(job.run, job.strategy.model, job.config, classes, fingerprint))
    splits = [name for name in ("val", "test") if job.has(name)]
    results = evaluate_run(job.run, job.config, job.shards, job.ranks, splits)
    _tell_efficiency(job)
    for name, result in results.items():
        values = {f"{name}/{metric}": value["value"] for metric, value in result["metrics"].items()}
        job.tracker.summary({key: value for key, value in values.items() if value is not None})
    feed("showing", state.step)  # a server may take its time limits
    job.tracker.results(lambda: gather(job.run, job.config))
    return results


def _tell_efficiency(job: Job) -> None:
    """Say in status.json and the trackers how well the machine was used, where this start has trained."""
    rate = job.status.values.get("images_per_s")
    if not rate or not job.ranks.first:
        return
    ceiling = measured_ceiling(job.device, job.config.engine.precision)
    found = efficiency(job.config, rate, job.ranks.world, ceiling)
    job.status.update(efficiency=found)
    told = {"images_per_s": rate, "data_wait": job.status.values["data_wait"], **found}
    job.tracker.summary({f"train/{name}": value for name, value in told.items() if isinstance(value, float)})


def failure(run: RunFolder, status: Status, code: int, problem: Exception) -> None:
    """Write into status.json why the run stopped, from whichever rank knows."""
    before = run.read("status.json") or {}
    here = before.get("attempt") == status.values["attempt"]
    if here and isinstance(before.get("outcome"), dict):
        # Another rank knew first; what the others see is the consequence. But the first one knows the newest numbers.
        if status.first:
            status.update(state=before["state"], outcome=before["outcome"])
        return
    status.writes = Path(run.path).is_dir()
    if here and not status.first:
        status.values = before
    kind = "preempted" if isinstance(problem, Preempted) else "stopped" if isinstance(problem, Stopped) else "failed"
    state = "stopped" if isinstance(problem, Stopped) else "failed"
    status.update(state=state, outcome={"code": code, "kind": kind, "what": str(problem)})
