"""The results of a run in W&B: artifacts with their lineage, curves, tables of images, files.

The client asks its server while it makes tables and artifacts, for as long as that takes: all of this is done after
training alone, in a thread whose end is waited for until a deadline.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bloodcell.tracking.confusion import draw_confusion
from bloodcell.tracking.metrics_log import plain_number
from bloodcell.tracking.results import Artifact, Curves, Results, Shown
from bloodcell.tracking.view import LARGEST_CHART


def send_results(wandb: Any, run: Any, results: Results, number: int, step: int) -> None:
    """Hand everything to the client.

    Args:
        wandb: the client's module.
        run: its run.
        results: what to show.
        number: of the last record, which charts and tables join.
        step: optimizer steps done.
    """
    run.summary.update({name: plain_number(value) for name, value in results.summary.items()})
    for artifact in results.artifacts:
        # What use_artifact() does, but without waiting for the server, and offline too.
        run._log_artifact(_made(wandb, artifact), aliases=list(artifact.aliases), use_after_commit=artifact.used)
    shown: dict[str, Any] = {}
    for chart in results.charts:
        if len(chart.classes) <= LARGEST_CHART:
            shown[f"{chart.split}/confusion"] = wandb.Image(draw_confusion(chart.classes, chart.matrix))
    for curves in results.curves:
        shown[f"{curves.split}/{curves.name}"] = _chart(wandb, curves)
    for split, rows in results.images.items():
        shown[f"{split}/predictions"] = _table(wandb, rows)
    if shown:
        run.log({**shown, "step": step}, step=number)
    for page in results.pages:
        save(run, page)


def save(run: Any, path: Path) -> None:
    """Keep a file beside the run."""
    run.save(str(path), base_path=str(path.parent), policy="now")


def within(seconds: float, work: Callable[[], None]) -> None:
    """Do `work`, but wait no longer than `seconds` for it; raises TimeoutError then, else what `work` raised."""
    problems: list[Exception] = []

    def guarded() -> None:
        try:
            work()
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=guarded, name="bloodcell-wandb-results", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"the server did not take the results in {seconds:g} s")
    if problems:
        raise problems[0]


def _made(wandb: Any, artifact: Artifact) -> Any:
    made = wandb.Artifact(artifact.name, type=artifact.kind, metadata=artifact.metadata)
    with made.new_file(f"{artifact.kind}.json", encoding="utf-8") as file:
        file.write(artifact.text)
    for name, path in artifact.files.items():
        made.add_file(str(path), name=name)
    return made


def _chart(wandb: Any, curves: Curves) -> Any:
    x, y = curves.axes
    table = wandb.Table(columns=["class", x, y], data=[list(point) for point in curves.points])
    titles = {"roc": "ROC", "pr": "Precision and recall"}
    return wandb.plot_table(
        "wandb/area-under-curve/v0",
        table,
        {"x": x, "y": y, "class": "class"},
        {"title": f"{titles[curves.name]}, {curves.split}", "x-axis-title": x, "y-axis-title": y},
    )


def _table(wandb: Any, rows: Sequence[Shown]) -> Any:
    table = wandb.Table(columns=["image", "key", "truth", "prediction", "confidence", "right"])
    for row in rows:
        right = row.truth == row.prediction
        table.add_data(wandb.Image(row.pixels), row.key, row.truth, row.prediction, row.confidence, right)
    return table
