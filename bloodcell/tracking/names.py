"""The names of what a run measures: the same in metrics.jsonl, W&B, TensorBoard, the dashboard and docs/watching.md."""

from __future__ import annotations

STEP = "step"
"""Optimizer steps done: what every metric is drawn over, however often the run was started again."""

METRICS: dict[str, str] = {
    "epoch": "passes over the training set, with fraction",
    "train/loss": "mean loss of the steps since the last record",
    "train/lr": "learning rate of the last step",
    "train/grad_norm": "mean norm of the gradient before clipping",
    "train/size": "side of the training images, pixels",
    "train/images_per_s": "training images a second, all ranks",
    "train/data_wait": "share of the time in which the network waited for images, 0 to 1",
    "train/memory_mib": "peak memory of the first rank, MiB: of its GPU, or of the process",
    "val/loss": "mean negative log-likelihood on the validation split, nats",
    "val/accuracy": "share of the validation split that is right",
    "val/balanced_accuracy": "mean recall of the classes that occur",
    "val/macro_recall": "mean recall of all classes",
    "val/macro_f1": "mean F1 of all classes",
}
"""Name -> what it is. A record holds some of them beside `step` and `time`."""
