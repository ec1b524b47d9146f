"""Tables of predictions brought to the same samples in the same order, proven by key, or refused with the counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bloodcell.evaluation.predictions import Predictions
from shards.errors import BadInput


def align(tables: Sequence[Predictions], names: Sequence[str]) -> list[Predictions]:
    """Return the tables with their rows in the order of the first one.

    The ids and groups are then those of the first table: a set that was packed again (with other folds, say) has the
    same keys under other ids.

    Args:
        tables: at least one.
        names: of the tables, for messages.

    Raises:
        BadInput: the classes, the sample keys or the labels differ; says in how many samples.
    """
    first = tables[0]
    return [first, *(_to(first, names[0], table, name) for table, name in zip(tables[1:], names[1:], strict=True))]


def _to(first: Predictions, first_name: str, table: Predictions, name: str) -> Predictions:
    where = f"{first_name}, {name}"
    if table.classes != first.classes:
        raise BadInput(
            f"the classes differ: {first.classes} and {table.classes}", where, "give runs of the same classes"
        )
    if table.keys != first.keys:
        place = {key: row for row, key in enumerate(table.keys)}
        missing = sum(key not in place for key in first.keys)
        extra = len(place) - (len(first.keys) - missing)
        if missing or extra:
            raise BadInput(
                f"the samples differ: {missing:,} of {len(first.keys):,} are only in the first, {extra:,} of "
                f"{len(table.keys):,} only in the second",
                where,
                "give runs that predict the same samples",
            )
        rows = np.array([place[key] for key in first.keys], dtype=np.int64)
    else:
        rows = np.arange(len(first.ids))
    labels = table.labels[rows]
    wrong = int((labels != first.labels).sum())
    if wrong:
        raise BadInput(f"{wrong:,} of {len(labels):,} samples have other labels", where, "give runs on the same labels")
    return replace(table, ids=first.ids, keys=first.keys, labels=labels, groups=first.groups, logits=table.logits[rows])
