"""The dashboard as data: what to watch while a run trains, what is normal, and what to do where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: what stands above it.
        metrics: what it draws: names of records, of the summary, or of media.
        normal: how it looks where all is well.
        act: what to do where it does not.
        kind: lines over steps, a number for each run, media, or a table of differences between runs.
        log: whether its vertical axis is logarithmic.
    """

    title: str
    metrics: tuple[str, ...]
    normal: str
    act: str
    kind: Literal["lines", "bars", "media", "differences"] = "lines"
    log: bool = False


@dataclass(frozen=True)
class Section:
    """Panels that answer one question."""

    question: str
    panels: tuple[Panel, ...]


SECTIONS = (
    Section(
        "Is it learning?",
        (
            Panel(
                "Loss",
                ("train/loss", "val/loss"),
                "both fall, val/loss a little above train/loss; with mixup or heavy augmentation below it",
                "val/loss rises while train/loss falls: it learns by heart. Take more augmentation or fewer epochs; "
                "the best weights are kept anyway",
            ),
            Panel(
                "On the validation split",
                ("val/accuracy", "val/macro_f1", "val/balanced_accuracy", "val/macro_recall"),
                "rise, and lie close together",
                "accuracy far above macro F1: rare classes are given up. Try --data.sampling balanced, and look at the "
                "confusion matrix",
            ),
            Panel(
                "Learning rate",
                ("train/lr",),
                "the schedule: rises in the warm-up, then falls",
                "a loss that jumps where the rate is highest: divide --optim.lr by 3",
            ),
            Panel(
                "Norm of the gradient",
                ("train/grad_norm",),
                "within a factor of ten of itself after the first steps",
                "grows from step to step: the rate is too high. Zero: the network is frozen, or the loss is flat",
                log=True,
            ),
        ),
    ),
    Section(
        "Is it fast?",
        (
            Panel(
                "Images a second",
                ("train/images_per_s",),
                "flat after the first epoch, which fills the cache; falls where the images grow",
                "saws or falls: another job is on the node, or the disk is slow. Try bloodcell doctor there",
            ),
            Panel(
                "Waiting for images",
                ("train/data_wait",),
                "below 0.05",
                "above 0.2 the readers are the bottleneck: more --data.threads, --data.cache, or stage the shards",
            ),
            Panel(
                "Memory",
                ("train/memory_mib",),
                "flat after the first validation",
                "climbs without end: report it. Near the GPU's size: halve --data.micro_batch, double "
                "--train.micro_batches",
            ),
            Panel(
                "Side of the images",
                ("train/size",),
                "one line, or the steps of --train.sizes",
                "nothing to do: it explains jumps of speed and loss",
            ),
            Panel(
                "Epochs",
                ("epoch",),
                "a straight line, without a gap where the run was resumed",
                "flat while the run is alive: it hangs. `bloodcell status RUN` names the silent rank",
            ),
        ),
    ),
    Section(
        "Is it right?",
        (
            Panel(
                "Accuracy and macro F1, test",
                ("test/accuracy", "test/macro_f1"),
                "near val/accuracy; there when the run has ended",
                "far below validation: the parts differ (patients, slides). Read the audit in the set's report",
                kind="bars",
            ),
            Panel(
                "Calibration, test",
                ("test/nll",),
                "the lower the better; the report says how much the temperature helps",
                "high at a good accuracy: sure of its errors. Use predict's uncertain, or average more weights",
                kind="bars",
            ),
            Panel(
                "Confusion",
                ("val/confusion", "test/confusion"),
                "a dark diagonal",
                "one class swallows another: look at their images in scan's report",
                kind="media",
            ),
            Panel(
                "Errors and what is least sure",
                ("test/predictions",),
                "cells that people argue about; there with --tracking.images N",
                "wrong labels: list them in decisions.csv and pack again",
                kind="media",
            ),
            Panel(
                "Settings that differ",
                (),
                "what was changed on purpose",
                "anything else: it explains the difference of two runs",
                kind="differences",
            ),
        ),
    ),
)
