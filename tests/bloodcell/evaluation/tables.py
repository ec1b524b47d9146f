"""Drawn tables of predictions for the tests of what is made of several of them."""

from __future__ import annotations

import numpy as np

from bloodcell.evaluation.predictions import Predictions

CLASSES = ["benign", "early", "pro"]


def drawn(
    rows: int = 120,
    seed: int = 0,
    skill: float = 2.0,
    group_size: int = 1,
    first: int = 0,
    fingerprint: str = "f00",
    truth: int = 7,
) -> Predictions:
    """Return predictions for samples that depend on `truth` alone, by a model that depends on `seed` and `skill`."""
    labels = np.random.default_rng(truth).integers(0, 3, first + rows)[first:].astype(np.int32)
    noise = np.random.default_rng((seed, first)).normal(size=(rows, 3))
    logits = (noise + np.eye(3)[labels] * skill).astype(np.float32)
    ids = np.arange(first, first + rows)
    groups = [f"p{i // group_size}" for i in ids] if group_size > 1 else [""] * rows
    keys = [f"k{i:05d}" for i in ids]
    return Predictions(ids, keys, labels, groups, logits, CLASSES, f"run{seed}", "set", "test", fingerprint)
