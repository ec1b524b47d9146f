"""Images that look like nothing else in the set: foreign pictures, artefacts, rare appearances.

An image's distance to its k-th nearest neighbour (Ramaswamy, Rastogi and Shim, "Efficient algorithms for mining
outliers from large data sets", SIGMOD 2000), in robustly standardised features: colours, texture and coarse layout
(`shards.appearance`), or any table of network features that is handed down. Several stains in one set are several
crowds, and harmless: what counts is the distance to the nearest crowd of k images, not to the middle of the set.

Foreign pictures that are alike and make up more than 2 % of the set have each other for neighbours: `shards.crowds`
finds those, and `shards.misfits` what does not fit its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.crowds import Crowds, find_crowds, spaced
from shards.misfits import Misfits, find_misfits

LEAST = 20
"""Images below which nothing can be called unusual."""

THRESHOLD = 2.0
"""Distance to the k-th neighbour, as a multiple of the set's 75th percentile, from which an image is an outlier."""

FAR = 2.8
"""The same, from which leaving it out is suggested."""

NEIGHBOURS = (8, 100)
"""The k-th neighbour is looked at: k is 2 % of the images, within these bounds."""

_REFERENCE = 20_000  # images that neighbours are sought among, at most: evenly spaced in the list
_LAYOUT, _NETWORK = 16, 64  # principal components that are kept
_CLIP = 12.0  # robust z-scores beyond this say no more


@dataclass(frozen=True)
class Outliers:
    """How unusual each image is.

    Attributes:
        score: float64 [images]: distance to the k-th neighbour, as a multiple of the set's 75th percentile, or to the
            bulk of set and class (`shards.crowds`), as a multiple of the median; the larger of the two.
        flagged: score >= THRESHOLD, and in no crowd, bool [images].
        crowds: images that are unusual together.
        misfits: images that are unusual in their class.
        network: whether features of a network were looked at.
    """

    score: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    crowds: Crowds
    misfits: Misfits
    network: bool


def by_appearance(looks: NDArray[np.void], labels: Sequence[str]) -> Outliers:
    """Return how unusual images look, from records of `shards.appearance.LOOK_DTYPE` [images] and their classes."""
    count = len(looks)
    fine = looks["features"]
    colour = np.sqrt(looks["histogram"].astype(np.float64))
    sharpness = np.log(fine["sharpness"].astype(np.float64) + 1)[:, None]
    texture = np.hstack([looks["texture"].astype(np.float64), sharpness / 2])
    layout = looks["layout"].reshape(count, -1).astype(np.float64)
    blocks = [_standardised(colour, 0.05), _standardised(texture, 0.1), _standardised(_tones(looks["stain"]), 8.0)]
    return _outliers([*blocks, _standardised(_components(layout, _LAYOUT), 20.0)], labels, network=False)


def _tones(stain: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return light, red against green and blue against green of the dark and of the light colour [images, 6]."""
    colours = stain.astype(np.float64).reshape(len(stain), 2, 3)
    green = colours[..., 1:2]
    return np.concatenate([green, colours[..., ::2] - green], axis=2).reshape(len(stain), 6)


def by_features(values: NDArray[np.float64], labels: Sequence[str]) -> Outliers:
    """Return how unusual images are in features of a network, float64 [images, features]."""
    # Rectified features are 0 for most images, so that their median deviation says nothing.
    least = np.maximum(values.std(axis=0) / 2, 1e-9) if len(values) else 1.0
    return _outliers([_components(_standardised(values, least), _NETWORK)], labels, network=True)


def _outliers(blocks: list[NDArray[np.float64]], labels: Sequence[str], network: bool) -> Outliers:
    """Judge by blocks of features [images, d], each of which weighs the same."""
    count, classes = len(blocks[0]), np.asarray(labels, dtype=str)
    points = np.hstack([block / np.sqrt(block.shape[1]) for block in blocks])
    distance = _kth_distance(points) if count >= LEAST else np.zeros(count)
    usual = max(float(np.quantile(distance, 0.75)), 1e-9) if count else 1.0
    crowds = find_crowds(points, classes, usual)
    score = np.maximum(distance / usual, crowds.apart)
    flagged = (score >= THRESHOLD) & (crowds.member == 0)
    return Outliers(score, flagged, crowds, find_misfits(points, classes), network)


def _kth_distance(points: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.neighbors import NearestNeighbors

    count = len(points)
    chosen = spaced(count, _REFERENCE)
    nearest = int(np.clip(0.02 * len(chosen), *NEIGHBOURS))
    # One more, as an image of the reference is its own nearest neighbour.
    search = NearestNeighbors(n_neighbors=min(nearest + 1, len(chosen)), algorithm="brute").fit(points[chosen])
    return np.asarray(search.kneighbors(points)[0][:, -1], np.float64)


def _standardised(values: NDArray[np.float64], least: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return robust z-scores of each column; a spread below `least` (in its own unit) counts as that."""
    middle = np.median(values, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(values - middle), axis=0), least)
    return np.clip((values - middle) / spread, -_CLIP, _CLIP)


def _components(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return the first `most` principal components."""
    centred = values - np.median(values, axis=0)
    covariance = centred.T @ centred / max(len(values), 1)
    _, vectors = np.linalg.eigh(covariance)
    return np.asarray(centred @ vectors[:, ::-1][:, :most], np.float64)
