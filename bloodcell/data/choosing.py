"""The operations that choose others for each image: RandAugment, TrivialAugment, AugMix, and a mixture of them.

What they choose from is DALI's suite of 14 operations (nvidia.dali.auto_aug); which of them, how strong and in which
direction is drawn here. Each view of a sample draws anew, and there are arguments with which they leave it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from msgspec import Meta

from bloodcell.data.draws import Draws
from bloodcell.data.operations import Arguments, Checked, Level, Positive, Probability

SUITE = (
    *("translate_x", "translate_y", "shear_x", "shear_y", "rotate", "brightness", "contrast", "color", "sharpness"),
    *("posterize", "solarize", "equalize", "auto_contrast", "identity"),
)
"""What RandAugment and TrivialAugment choose from, by the number that is drawn."""

IDENTITY = SUITE.index("identity")

MIXED_SUITE = (
    *("auto_contrast", "equalize", "posterize", "rotate", "solarize"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
"""What AugMix chooses from, by the number that is drawn."""

BINS = 31
"""Steps of a magnitude in RandAugment and TrivialAugment: 0 to 30."""

MIXED_BINS = 101
"""Steps of a magnitude in AugMix: tenths of its levels 0 to 10."""

CHAINS, DEPTH, COLUMNS_OF_CHAIN = 3, 3, 4


@runtime_checkable
class Choosing(Protocol):
    """An operation that draws anew for every view of a sample."""

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return the arguments for samples, as in Operation."""

    def neutral(self, arguments: Arguments) -> Arguments:
        """Return arguments of the same shapes with which images stay exactly as they are."""


@dataclass(frozen=True)
class RandAugment(Checked):
    """Apply `levels` of 14 operations, chosen anew for each image (Cubuk et al., RandAugment, 2020).

    `magnitude`: of all of them, 0 to 30; what comes from outside is filled with `fill` (0..255).
    """

    levels: Annotated[int, Meta(ge=1, le=4)] = 2
    magnitude: Annotated[int, Meta(ge=0, lt=BINS)] = 9
    fill: Level = 255

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `op` (number in SUITE), `bin` (magnitude) and `sign` (1 is negative): int32 [n, levels]."""
        op = np.floor(draws.block("randaugment.op") * len(SUITE))[:, : self.levels]
        sign = draws.block("randaugment.sign")[:, : self.levels] < 0.5
        strength = np.full(op.shape, self.magnitude, dtype=np.int32)
        return {"op": op.astype(np.int32), "bin": strength, "sign": sign.astype(np.int32)}

    def neutral(self, arguments: Arguments) -> Arguments:
        """Return arguments that choose the identity."""
        return {**arguments, "op": np.full_like(arguments["op"], IDENTITY)}


@dataclass(frozen=True)
class Trivial(Checked):
    """Apply one of 14 operations, its magnitude drawn too (Müller and Hutter, TrivialAugment, 2021; the wide ranges).

    What comes from outside is filled with `fill` (0..255).
    """

    fill: Level = 255

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return `op` (number in SUITE), `bin` (magnitude, 0 to 30) and `sign` (1 is negative): int32 [n, 1]."""
        drawn = {
            "op": draws.choice("trivial.op", len(SUITE)),
            "bin": draws.choice("trivial.magnitude", BINS),
            "sign": draws.coin("trivial.sign", 0.5),
        }
        return {name: value[:, None].astype(np.int32) for name, value in drawn.items()}

    def neutral(self, arguments: Arguments) -> Arguments:
        """Return arguments that choose the identity."""
        return {**arguments, "op": np.full_like(arguments["op"], IDENTITY)}


@dataclass(frozen=True)
class AugMix(Checked):
    """Blend an image with three chains of one to three operations each (Hendrycks et al., AugMix, 2020).

    The image keeps a share drawn from Beta(alpha, alpha), the chains share the rest by Dirichlet(alpha). `severity`:
    highest level of the operations, of 10; the lowest is 0.1. What comes from outside is filled with `fill` (0..255).
    """

    severity: Annotated[float, Meta(ge=0.1, le=10)] = 3.0
    alpha: Positive = 1.0
    fill: Level = 255

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return the chains.

        `op` (number in MIXED_SUITE), `bin` (tenths of a level) and `sign` (1 is negative): int32 [n, 9], chain by
        chain; `depth`: int32 [n, 3]; `weight` of the image and of each chain: float32 [n, 4], with sum 1.
        """

        from scipy.special import betaincinv, gammaincinv  # slow to load, and only this policy wants it

        def of_levels(column: str) -> np.ndarray:
            block = draws.block(f"augmix.{column}").reshape(-1, CHAINS, COLUMNS_OF_CHAIN)
            return block[:, :, :DEPTH].reshape(-1, CHAINS * DEPTH)

        level = 0.1 + (self.severity - 0.1) * of_levels("magnitude")
        # Gamma(alpha) variables, divided by their sum, follow a Dirichlet distribution. A uniform is never 1.
        gamma = np.maximum(gammaincinv(self.alpha, draws.block("augmix.weight")), np.finfo(np.float64).tiny)
        own = betaincinv(self.alpha, self.alpha, draws.uniform("augmix.mix"))[:, None]
        shared = (1 - own) * gamma / gamma.sum(axis=1, keepdims=True)
        return {
            "op": np.floor(of_levels("op") * len(MIXED_SUITE)).astype(np.int32),
            "bin": np.rint(level * (MIXED_BINS - 1) / 10).astype(np.int32),
            "sign": (of_levels("sign") < 0.5).astype(np.int32),
            "depth": 1 + np.floor(draws.block("augmix.depth") * DEPTH).astype(np.int32),
            "weight": np.concatenate([own, shared], axis=1).astype(np.float32),
        }

    def neutral(self, arguments: Arguments) -> Arguments:
        """Return arguments with which the image keeps all of its weight and the chains are empty."""
        weight = np.zeros_like(arguments["weight"])
        weight[:, 0] = 1
        return {**arguments, "depth": np.zeros_like(arguments["depth"]), "weight": weight}


@dataclass(frozen=True)
class Hybrid(Checked):
    """Each image gets AugMix with probability `augmix`, else RandAugment; their values are as there."""

    augmix: Probability = 0.5
    levels: Annotated[int, Meta(ge=1, le=4)] = 2
    magnitude: Annotated[int, Meta(ge=0, lt=BINS)] = 9
    severity: Annotated[float, Meta(ge=0.1, le=10)] = 3.0
    fill: Level = 255

    @property
    def parts(self) -> tuple[RandAugment, AugMix]:
        """The two, to be applied one after the other: each leaves alone what is the other's."""
        return RandAugment(self.levels, self.magnitude, self.fill), AugMix(self.severity, fill=self.fill)

    def draw(self, draws: Draws, height: np.ndarray, width: np.ndarray) -> Arguments:
        """Return the arguments of both, named `rand_*` and `mix_*`; one of them neutral for each sample."""
        mixed = draws.coin("hybrid.kind", self.augmix)
        (rand, mix), (first, second) = self.parts, PREFIXES
        chosen, blended = rand.draw(draws, height, width), mix.draw(draws, height, width)
        chosen = _where(mixed, rand.neutral(chosen), chosen)
        blended = _where(mixed, blended, mix.neutral(blended))
        return _prefixed(first, chosen) | _prefixed(second, blended)

    def neutral(self, arguments: Arguments) -> Arguments:
        """Return arguments that are neutral for both."""
        (rand, mix), (first, second) = self.parts, PREFIXES
        still = rand.neutral(own_arguments(arguments, first)), mix.neutral(own_arguments(arguments, second))
        return _prefixed(first, still[0]) | _prefixed(second, still[1])


PREFIXES = ("rand_", "mix_")
"""Of the names of Hybrid's arguments, in the order of its parts."""


def own_arguments(arguments: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the arguments whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in arguments.items() if name.startswith(prefix)}


def _prefixed(prefix: str, arguments: Arguments) -> Arguments:
    return {prefix + name: value for name, value in arguments.items()}


def _where(chosen: np.ndarray, first: Arguments, second: Arguments) -> Arguments:
    return {name: np.where(chosen[:, None], value, second[name]) for name, value in first.items()}
