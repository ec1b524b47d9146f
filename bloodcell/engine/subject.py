"""A finished run applied to its own set or another one: its table of predictions, used again where it still holds."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import nn

from bloodcell.config import Config
from bloodcell.data.shardset import ShardSet
from bloodcell.engine.agree import on_first_rank, share
from bloodcell.engine.evaluate import MODEL_FILE, check_classes, load_model
from bloodcell.engine.inference import ALL, Inference
from bloodcell.engine.resolve import resolve
from bloodcell.engine.setup import make_inference, make_view
from bloodcell.evaluation.external import LabelMap, read_label_map
from bloodcell.evaluation.predictions import Predictions
from bloodcell.evaluation.source import Source, digest, read_sourced, write_sourced
from bloodcell.ranks import Ranks, choose_device
from bloodcell.runfolder import RunFolder
from shards.console import say
from shards.errors import BadInput
from shards.format import DatasetInfo, read_dataset

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, eq=False)
class Subject:
    """One run and what it is shown; made by open_subject().

    Attributes:
        run: the run folder.
        config: resolved for this machine; data.set is the set that is predicted.
        info: dataset.json of that set, None if the run's own set is not at hand.
        other: it is not the run's own set.
        labels: how its classes become those of the run, None where they are the same.
        orientations: in how many orientations each image is shown.
        ranks: this process's place.
    """

    run: RunFolder
    config: Config
    info: DatasetInfo | None
    other: bool
    labels: LabelMap | None
    orientations: int
    ranks: Ranks

    @property
    def fold(self) -> int:
        """Which fold of a cross-validation set the run was trained on, -1 where there are none."""
        return self.config.data.fold

    @cached_property
    def fingerprint(self) -> str:
        """Of the set that is predicted."""
        return self.info.fingerprint if self.other and self.info else str(self.run.stored()["fingerprint"])

    @cached_property
    def weights(self) -> str:
        """sha256 of the run's weights."""
        return digest(self.run.path / MODEL_FILE)

    @cached_property
    def folder(self) -> Path:
        """Where tables and results go: the run folder, external/<set> in it, tta8 in either."""
        path = self.run.path
        if self.other:
            name = Path(self.config.data.set).name
            path = path / "external" / name
            if not all(of == self.fingerprint for of in _fingerprints(path)):  # another set of the same name
                path = path.with_name(f"{name}-{self.fingerprint[:8]}")
        return path / f"tta{self.orientations}" if self.orientations > 1 else path

    @property
    def home(self) -> Path:
        """Where the tables of the run's own set lie that were made in the same way."""
        return self.run.path / f"tta{self.orientations}" if self.orientations > 1 else self.run.path

    @cached_property
    def shards(self) -> ShardSet:
        """The set that is predicted, opened."""
        shards = ShardSet.open(Path(self.config.data.set))
        if not self.other and shards.info.fingerprint != self.fingerprint:
            raise BadInput(
                "the set is not the one the run was trained on", self.config.data.set, "name the set with --data"
            )
        return shards

    @cached_property
    def model(self) -> nn.Module:
        """The trained network, on its device."""
        model, classes = load_model(self.run, self.config)
        if self.labels is None:
            check_classes(classes, self.shards)
        return model.to(choose_device(self.ranks, self.config.engine.device))

    @cached_property
    def inference(self) -> Inference:
        """How the network is applied."""
        device = choose_device(self.ranks, self.config.engine.device)
        name = self.run.path.resolve().name
        plain = make_inference(self.config, name, self.shards, make_view(self.config), device, self.ranks)
        return replace(plain, orientations=self.orientations, labels=self.labels)

    def split(self, name: str) -> str:
        """Return the set's name of a split ("fold3/test"); raises BadInput if there is none, or it is empty."""
        own = name if self.other or self.fold < 0 else f"fold{self.fold}/{name}"
        if self.other and name == ALL:
            return ALL
        if self.info is not None and not self.info.count(own):
            raise BadInput(f"split {own!r} has no samples", self.config.data.set, "choose another split")
        return own

    def path(self, name: str) -> Path:
        """Return the path of the table of a split."""
        return self.folder / "predictions" / f"{name.replace('/', '-')}.parquet"

    def table(self, name: str, anew: bool) -> tuple[Predictions | None, bool]:
        """Return the table of a split (None but on the first rank) and whether an older one was used. Collective.

        Args:
            name: train, val or test; of another set any of its splits, or ALL.
            anew: predict although an older table holds.

        Raises:
            BadInput: no such split, the set is not at hand, or its classes are not the run's.
        """
        split, path = self.split(name), self.path(name)
        source = Source(
            self.weights, self.fingerprint, split, self.orientations, self.labels.digest if self.labels else ""
        )
        found = on_first_rank(self.ranks, lambda: "as asked" if anew else read_sourced(path, source))
        reason = share(found if isinstance(found, str) else "")
        if not reason:
            return (None if isinstance(found, str) else found), True
        if self.ranks.first:
            say(f"{self.run.path}: predicting {name} ({reason})")
        predictions = self.inference(self.model, split)

        def write() -> None:
            assert predictions is not None
            write_sourced(path, predictions, source, self.config.engine.precision)

        on_first_rank(self.ranks, write)
        return predictions, False


def open_subject(
    path: Path, data: Path | None, labels: Path | None, orientations: int, device: Device, ranks: Ranks
) -> Subject:
    """Return a run applied to its own set, or to `data`.

    Args:
        path: the run folder.
        data: another set, or the run's own where it lies now; None is where it lay.
        labels: label map for another set with other classes.
        orientations: 1, or how many test-time augmentation shows.
        device: auto, cpu or cuda.
        ranks: this process's place.

    Raises:
        BadInput: no run, unfinished, no such set, or classes that do not fit.
    """
    run = RunFolder(path)
    stored, config = run.stored(), run.config()
    if not (path / MODEL_FILE).exists():
        raise BadInput("the run has no model.safetensors", path, "finish the training first (start it again)")
    place = data or Path(config.data.set)
    info = read_dataset(place) if data is not None or (place / "dataset.json").exists() else None
    other = info is not None and info.fingerprint != stored["fingerprint"]
    if other and data is None:
        raise BadInput("the set is not the one the run was trained on", place, "name the set with --data")
    # This machine's devices and threads, not those of the training.
    engine = replace(config.engine, device=device, threads=0, precision="fp32")
    config = resolve(replace(config, engine=engine, data=replace(config.data, set=str(place), threads=0)), ranks)
    return Subject(run, config, info, other, _label_map(info, other, labels, stored["classes"]), orientations, ranks)


def _label_map(info: DatasetInfo | None, other: bool, file: Path | None, classes: list[str]) -> LabelMap | None:
    if file is None:
        if other and info is not None and info.classes != classes:
            raise BadInput(
                f"the set has classes {info.classes}, the run was trained on {classes}",
                "--data",
                "say with --labels MAP.csv (columns label,class) which are which",
            )
        return None
    if not other or info is None:
        raise BadInput("a label map is for another set than the run's own", file, "name that set with --data")
    return read_label_map(file, info.classes, classes)


def _fingerprints(folder: Path) -> list[str]:
    """Return the fingerprints in the notes beside the tables of a folder."""
    found = []
    for path in sorted((folder / "predictions").glob("*.json")):
        try:
            found.append(str(json.loads(path.read_text(encoding="utf-8"))["fingerprint"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
