"""The features before the classifier: a picture of them in two dimensions, and what lies beside what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestNeighbors
from torch import nn

from bloodcell.engine.features import tapped

NEIGHBOURS = 10
COMPONENTS = 50
"""Principal components that the picture is made from."""


@torch.inference_mode()
def features(model: nn.Module, batches: Iterable[torch.Tensor]) -> np.ndarray:
    """Return what the classifier is given, float32 [n, d].

    Args:
        model: in evaluation mode, on its device.
        batches: images [n, 3, h, w].
    """
    with tapped(model) as tap:
        return torch.cat([tap(images).cpu() for images in batches]).numpy()


def picture(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return places in the plane, float64 [n, 2], by t-SNE (van der Maaten and Hinton, JMLR 2008), n at least 4.

    The same vectors give the same picture on one machine.
    """
    few = min(COMPONENTS, *vectors.shape)
    reduced = PCA(few, svd_solver="full").fit_transform(vectors.astype(np.float64))
    perplexity = min(30.0, max(1.0, (len(vectors) - 1) / 3))
    made = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return np.asarray(made, dtype=np.float64)


def neighbourhood(vectors: np.ndarray, names: Sequence[str]) -> dict[str, Any] | None:
    """Return how well the nearest neighbours' names tell a sample's own; None with fewer than two names.

    Args:
        vectors: float32 [n, d].
        names: of what each sample belongs to (a class, a source, a patient); "" is left out.

    Returns:
        Balanced accuracy of the vote of the NEIGHBOURS nearest others by cosine distance, and chance.
    """
    kept = np.array([i for i, name in enumerate(names) if name], dtype=np.int64)
    known, codes = np.unique([names[i] for i in kept], return_inverse=True) if len(kept) else (kept, kept)
    if len(known) < 2 or len(kept) < 3:
        return None
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS + 1, len(kept)), metric="cosine").fit(vectors[kept])
    around = near.kneighbors(vectors[kept], return_distance=False)
    votes = []
    for i, row in enumerate(around):
        others = row[row != i][:NEIGHBOURS]
        votes.append(int(np.bincount(codes[others], minlength=len(known)).argmax()))
    accuracy = float(balanced_accuracy_score(codes, votes))
    return {"names": len(known), "samples": len(kept), "accuracy": round(accuracy, 4), "chance": 1 / len(known)}
