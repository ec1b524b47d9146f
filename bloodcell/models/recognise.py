"""Which model of the zoo a file of weights belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bloodcell.models.costs import skeleton
from bloodcell.models.registry import REGISTRY
from bloodcell.models.translate import body, fitted


def recognise(saved: Mapping[str, Tensor]) -> tuple[str, int, int] | None:
    """Return the registered model whose tensors a file matches best in name and shape, the classifier left out.

    Returns:
        (name, matching tensors, tensors of the model), or None if nothing matches at all.
    """
    best: tuple[str, int, int] | None = None
    for known in REGISTRY.values():
        model = skeleton(known)
        target, named, wanted = model.state_dict(), fitted(saved, model), body(model)
        found = sum(name in named and named[name][1].shape == target[name].shape for name in wanted)
        if found and (best is None or found / len(wanted) > best[1] / best[2]):
            best = (known.name, found, len(wanted))
    return best
