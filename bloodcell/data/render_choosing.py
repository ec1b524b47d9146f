"""How DALI does the operations that choose: each image takes its branch of the suite, with the numbers it drew."""

from __future__ import annotations

from typing import Any

from bloodcell.data.canvas import Canvas
from bloodcell.data.choosing import (
    BINS,
    CHAINS,
    DEPTH,
    MIXED_BINS,
    MIXED_SUITE,
    PREFIXES,
    SUITE,
    AugMix,
    Hybrid,
    RandAugment,
    Trivial,
    own_arguments,
)
from shards.errors import Fault


def render_randaugment(images: Any, operation: RandAugment, arguments: dict[str, Any], canvas: Canvas) -> Any:
    """Apply the operations of all levels, one after the other."""
    from nvidia.dali.auto_aug import rand_augment

    suite = _checked(rand_augment.get_rand_augment_suite(use_shape=True), SUITE)
    for level in range(operation.levels):
        images = _select(images, suite, arguments, level, BINS, operation.fill, canvas)
    return images


def render_trivial(images: Any, operation: Trivial, arguments: dict[str, Any], canvas: Canvas) -> Any:
    """Apply the one operation. Shifts go up to 32 of 224 pixels, as in the paper."""
    from nvidia.dali.auto_aug import trivial_augment

    wide = trivial_augment.get_trivial_augment_wide_suite(use_shape=True, max_translate_rel=32 / 224)
    return _select(images, _checked(wide, SUITE), arguments, 0, BINS, operation.fill, canvas)


def render_augmix(images: Any, operation: AugMix, arguments: dict[str, Any], canvas: Canvas) -> Any:
    """Blend the image with its chains; an image that keeps all of its weight is passed on."""
    from nvidia.dali import fn, types

    suite, weight, depth = _mixed_suite(), canvas.beside(arguments["weight"]), arguments["depth"]
    if depth[0] > 0:
        blend = images * weight[0]
        for chain in range(CHAINS):
            link = images
            for level in range(DEPTH):
                if depth[chain] > level:
                    link = _select(link, suite, arguments, chain * DEPTH + level, MIXED_BINS, operation.fill, canvas)
            blend = blend + link * weight[chain + 1]
        images = fn.cast(blend, dtype=types.UINT8)
    return images


def render_hybrid(images: Any, operation: Hybrid, arguments: dict[str, Any], canvas: Canvas) -> Any:
    """Apply both parts, one of which leaves the image as it is."""
    rand, mix = operation.parts
    images = render_randaugment(images, rand, own_arguments(arguments, PREFIXES[0]), canvas)
    return render_augmix(images, mix, own_arguments(arguments, PREFIXES[1]), canvas)


def _select(
    images: Any, suite: list[Any], arguments: dict[str, Any], place: int, bins: int, fill: int, canvas: Canvas
) -> Any:
    from nvidia.dali.auto_aug.core import select, signed_bin
    from nvidia.dali.pipeline import do_not_convert

    strength = signed_bin(arguments["bin"][place], arguments["sign"][place])
    leaves = do_not_convert(_leaves)(suite, bins, fill, canvas)
    return select(leaves, arguments["op"][place], images, strength)


def _leaves(suite: list[Any], bins: int, fill: int, canvas: Canvas) -> list[Any]:
    """Return the operations as functions of images and magnitude in which DALI looks for no conditions.

    There are none, and the search takes seconds: an operation turns each step of its magnitude into values in Python.
    """
    from nvidia.dali.pipeline import do_not_convert

    def leaf(augmentation: Any) -> Any:
        @do_not_convert
        def apply(images: Any, strength: Any) -> Any:
            return augmentation(
                images,
                magnitude_bin=strength,
                num_magnitude_bins=bins,
                fill_value=float(fill),
                shape=(canvas.size, canvas.size),
            )

        return apply

    return [leaf(augmentation) for augmentation in suite]


def _mixed_suite() -> list[Any]:
    """Return AugMix's operations: their ranges are those of level 0 to 10 in its authors' text."""
    from nvidia.dali.auto_aug import augmentations as a

    return _checked(
        [
            a.auto_contrast,
            a.equalize,
            a.posterize.augmentation((4, 0), False, a.poster_mask_uint8),
            a.rotate.augmentation((0, 30), True),
            a.solarize.augmentation((256, 0)),
            a.shear_x.augmentation((0, 0.3), True),
            a.shear_y.augmentation((0, 0.3), True),
            a.translate_x.augmentation((0, 1 / 3), True),
            a.translate_y.augmentation((0, 1 / 3), True),
        ],
        MIXED_SUITE,
    )


def _checked(suite: list[Any], names: tuple[str, ...]) -> list[Any]:
    found = tuple(augmentation.name for augmentation in suite)
    if found != names:
        raise Fault(f"DALI's suite is {', '.join(found)}", "augmentation", "install a version that this program knows")
    return suite
