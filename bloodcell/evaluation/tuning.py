"""What temperatures and thresholds may be chosen on: predictions of splits that the judged samples are not in.

With folds every judged sample has the network of its own fold, so it has the validation split of that fold too: a
sample of the pooled test splits is judged with what was chosen on its own fold's validation split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bloodcell.evaluation.predictions import Predictions
from shards.errors import BadInput, Fault


@dataclass(frozen=True, eq=False)
class Tuning:
    """Validation predictions and which of them belong to which judged sample.

    Attributes:
        tables: predictions of one or several validation splits, each by the network that is judged with it.
        part: int64 [judged samples], index into `tables`.
    """

    tables: tuple[Predictions, ...]
    part: np.ndarray

    @classmethod
    def of(cls, judged: Predictions, tables: Sequence[Predictions], part: np.ndarray | None = None) -> Tuning:
        """Return the tuning of `judged`, proven to hold none of its samples.

        Args:
            judged: the predictions to judge.
            tables: of the validation splits; with several, `part` says which belongs to which sample.
            part: integers [judged samples], index into `tables`; left out if there is one table.

        Raises:
            BadInput: a table is empty, has other classes, or shares samples with those that are judged with it.
            Fault: `part` does not fit.
        """
        if not tables or (part is None and len(tables) > 1):
            raise Fault(f"{len(tables)} validation tables, but no word which belongs to which sample", judged.split)
        index = np.zeros(len(judged.ids), dtype=np.int64) if part is None else np.asarray(part, dtype=np.int64)
        if len(index) != len(judged.ids) or np.any((index < 0) | (index >= len(tables))):
            raise Fault(f"validation tables are numbered 0 to {len(tables) - 1}, one for each sample", judged.split)
        for number, table in enumerate(tables):
            _check(judged, judged.ids[index == number], table)
        return cls(tuple(tables), index)

    def about(self) -> list[dict[str, Any]]:
        """Return run, data, split, samples and fingerprint of each table."""
        return [
            {"run": t.run, "data": t.data, "split": t.split, "samples": len(t.ids), "fingerprint": t.fingerprint}
            for t in self.tables
        ]


def _check(judged: Predictions, ids: np.ndarray, table: Predictions) -> None:
    where, fix = f"{table.run} {table.split}", "give the predictions of the validation split"
    if not len(table.ids):
        raise BadInput("the validation predictions are empty", where, fix)
    if table.classes != judged.classes:
        raise BadInput(f"the validation classes are {table.classes}, the judged ones {judged.classes}", where, fix)
    if table.fingerprint == judged.fingerprint:
        shared = len(np.intersect1d(ids, table.ids, assume_unique=True))
        if shared:
            raise BadInput(f"{shared:,} judged samples would also choose temperatures and thresholds", where, fix)
