"""Predict a long list chunk by chunk, on any number of ranks; whatever stops it, the same command goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloodcell.engine.agree import on_first_rank, raise_together, share
from bloodcell.predict.classifier import Answer, Classifier, Picture, looked
from bloodcell.predict.inputs import Entry, Inputs, list_inputs
from bloodcell.predict.seen import Seen, seen_by
from bloodcell.predict.table import join, rows
from bloodcell.ranks import Ranks
from shards.atomic import disk_errors, open_atomic, write_json
from shards.console import progress, say
from shards.errors import BadInput, Stop
from shards.images import UnusableImageError

SCHEMA = "bloodcell/predict/1"


@dataclass(frozen=True)
class PredictOptions:
    """What changes the rows of the table: a list that was begun with others is not taken up."""

    weights: str
    orientations: int
    temperature: float
    threshold: str
    quantile: str
    batch: int


def predict(
    classifier: Classifier,
    run: Path,
    paths: Sequence[Path],
    lines: Callable[[], Iterable[bytes]],
    output: Path,
    ranks: Ranks,
) -> dict[str, Any]:
    """Write the table of answers; return its summary on the first rank, {} on the others. Collective.

    OUTPUT.parts/ holds the list and a table for each chunk that is done, and goes when all are joined.

    Args:
        classifier: the network, on this rank's device.
        run: where it came from: a run folder or a weights file.
        paths, lines: as of inputs.list_inputs; only the first rank looks at them.
        output: the table to write.
        ranks: this process's place.

    Raises:
        BadInput: nothing to predict, or the table was begun with other images or another network.
        EnvironmentFault: the disk is full or fails.
    """
    folder = output.with_name(output.name + ".parts")
    begin = time.perf_counter()
    on_first_rank(ranks, lambda: _begin(folder, _options(classifier), paths, lines))
    inputs = Inputs(folder / "inputs.arrow", *json.loads(share(_sizes(folder) if ranks.first else "")))
    todo = json.loads(share(json.dumps(_undone(folder, inputs)) if ranks.first else ""))
    if ranks.first and len(todo) < inputs.chunks:
        say(f"{output}: {inputs.chunks - len(todo):,} of {inputs.chunks:,} chunks were done before")
    seen, at_hand = seen_by(run)
    _work(classifier, seen, folder, inputs, todo, ranks)

    def finish() -> dict[str, Any]:
        parts = [_part(folder, number) for number in range(inputs.chunks)]
        join(parts, output, classifier.classes)
        summary = _summary(parts, inputs, at_hand)
        shutil.rmtree(folder)
        return summary

    summary = on_first_rank(ranks, finish)
    if summary is None:
        return {}
    rate = inputs.images(todo) / (time.perf_counter() - begin)
    return {"output": str(output), **summary, "images_per_s": round(rate, 2)}


def _begin(folder: Path, options: PredictOptions, paths: Sequence[Path], lines: Callable[[], Iterable[bytes]]) -> None:
    """Write the list and the plan, or check that those of an earlier start are the same."""
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise BadInput(f"the table cannot be written: {error.strerror}", folder, "choose another file") from error
    fresh = not (folder / "plan.json").exists()
    try:
        inputs = list_inputs(paths, lines(), folder / ("inputs.arrow" if fresh else "inputs.new"))
    except Stop:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    plan = {"schema": SCHEMA, **asdict(options), "inputs": inputs.digest, "sizes": [inputs.rows, inputs.passed_over]}
    if fresh:
        write_json(folder / "plan.json", plan)
        return
    inputs.path.unlink()
    before = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    differing = sorted(name for name in plan if before.get(name) != plan[name] and name != "sizes")
    if differing:
        raise BadInput(
            f"the table was begun with other {' and '.join(differing)}", folder, "remove that folder to begin anew"
        )


def _options(classifier: Classifier) -> PredictOptions:
    known = classifier.certainty
    batch = classifier.config.data.micro_batch
    numbers = (known.temperature, repr(known.threshold), repr(known.quantile))
    return PredictOptions(classifier.weights, classifier.orientations, *numbers, batch)


def _sizes(folder: Path) -> str:
    return json.dumps(json.loads((folder / "plan.json").read_text(encoding="utf-8"))["sizes"])


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.parquet"


def _undone(folder: Path, inputs: Inputs) -> list[int]:
    return [number for number in range(inputs.chunks) if not _part(folder, number).exists()]


def _work(classifier: Classifier, seen: Seen, folder: Path, inputs: Inputs, todo: Sequence[int], ranks: Ranks) -> None:
    """Do the chunks in rounds, one for each rank, so that no rank is far ahead and a failure is everybody's."""
    bar = _Bar(inputs.images(todo[:: ranks.world])) if ranks.first else None
    try:
        for first in range(0, len(todo), ranks.world):
            problem: Exception | None = None
            try:
                for number in todo[first : first + ranks.world][ranks.rank : ranks.rank + 1]:
                    entries = inputs.chunk(number)
                    answers = classifier.stream(entries, _see)
                    found = list(bar.over(answers) if bar else answers)
                    _write(_part(folder, number), entries, found, seen, classifier.classes)
            except Exception as error:
                problem = error
            raise_together(problem)
    finally:
        if bar:
            bar.close()


def _see(entry: Entry) -> Picture:
    try:
        return looked(entry.read())
    except UnusableImageError as error:
        return Picture(None, "", f"{error.reason}: {error.detail}")


def _write(path: Path, entries: Sequence[Entry], answers: Sequence[Answer], seen: Seen, classes: Sequence[str]) -> None:
    parts = seen([answer.sha256 for answer in answers])
    table = rows([entry.source for entry in entries], answers, parts, classes)
    with open_atomic(path) as file:
        pq.write_table(table, file, compression="zstd")


def _summary(parts: Sequence[Path], inputs: Inputs, at_hand: bool) -> dict[str, Any]:
    """Count what the parts say."""
    classes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    met: Counter[str] = Counter()
    uncertain = 0
    for part in parts:
        table = pq.read_table(part, columns=["prediction", "uncertain", "seen", "reason"], partitioning=None)
        classes.update(name for name in table.column("prediction").to_pylist() if name is not None)
        reasons.update(text.partition(":")[0] for text in table.column("reason").to_pylist() if text is not None)
        met.update(name for name in table.column("seen").to_pylist() if name is not None)
        uncertain += pc.sum(pc.cast(table.column("uncertain"), pa.int64())).as_py() or 0
    predicted = sum(classes.values())
    return {
        "images": inputs.rows,
        "predicted": predicted,
        "refused": inputs.rows - predicted,
        "uncertain": uncertain,
        "passed_over": inputs.passed_over,
        "classes": dict(sorted(classes.items())),
        "reasons": dict(sorted(reasons.items())),
        "seen": dict(sorted(met.items())) if at_hand else None,
    }


class _Bar:
    """One progress display over several iterators."""

    def __init__(self, total: int) -> None:
        self._items: list[Any] = []
        self._shown = progress(self._feed(), "predicting", total)

    def over(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items, each shown as done."""
        for item in items:
            self._items.append(item)
            yield next(self._shown)

    def close(self) -> None:
        """End the display."""
        next(self._shown, None)

    def _feed(self) -> Iterator[Any]:
        while self._items:
            yield self._items.pop()
