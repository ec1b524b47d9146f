"""Answers as a piece of HTML: cards with cell, map and probabilities, the table, and CSV files to keep."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.csv
from jinja2 import PackageLoader

from bloodcell.app.limits import Limits
from bloodcell.app.model import Model
from bloodcell.app.pictures import SIDE, enlarged, pictures_of, square
from bloodcell.explain.sheets import overlay, uri
from bloodcell.predict.classifier import Answer, Picture
from bloodcell.predict.table import rows
from shards.document import environment, percent, plural

CARDS = 24
"""Images that are shown with their maps; the table has all."""

BARS = 12
"""Classes of an answer that are shown, the likeliest first; the file has all."""


@dataclass(frozen=True)
class Told:
    """What one model says about all images."""

    model: Model
    answers: list[Answer]
    parts: list[str]
    maps: list[str]


@dataclass(frozen=True)
class Shown:
    """A piece of the page: one line that sums it up, and the rest."""

    summary: str
    html: str


def answer(models: Sequence[Model], names: Sequence[str], paths: Sequence[Path], limits: Limits) -> Shown:
    """Return what the models say about some files.

    Args:
        models: one or two.
        names: of the files, for people.
        paths: of the files.
        limits: of a request.
    """
    pictures = pictures_of(paths, limits)
    places = [place for place, picture in enumerate(pictures) if picture.rgb is not None][:CARDS]
    squares = [square(_rgb(pictures[place])) for place in places]
    told = [_told(model, pictures, places, squares) for model in models]
    content = {
        "told": told,
        "names": names,
        "cards": [_card(told, names[place], place, row, squares[row]) for row, place in enumerate(places)],
        "refused": [(names[place], one.reason) for place, one in enumerate(pictures) if one.rgb is None],
        "files": [_file(one, names) for one in told],
        "more": sum(picture.rgb is not None for picture in pictures) - len(places),
    }
    return Shown(_summary(told, pictures), _PAGES.get_template("answers.html").render(content))


def table(model: Model, names: Sequence[str], answers: Sequence[Answer], parts: Sequence[str]) -> bytes:
    """Return the rows that `predict` would write, as CSV."""
    file = io.BytesIO()
    pyarrow.csv.write_csv(rows(names, answers, parts, model.classifier.classes), file)
    return file.getvalue()


def _rgb(picture: Picture) -> Any:
    assert picture.rgb is not None
    return picture.rgb


def _told(model: Model, pictures: Sequence[Picture], places: Sequence[int], squares: Sequence[Any]) -> Told:
    answers = model.answers(pictures)
    maps = model.maps([_rgb(pictures[place]) for place in places], [answers[place] for place in places])
    drawn = [overlay(cell, enlarged(heat, cell.shape[0]), SIDE) for cell, heat in zip(squares, maps, strict=bool(maps))]
    return Told(model, answers, model.parts(answers), drawn)


def _card(told: Sequence[Told], name: str, place: int, row: int, cell: Any) -> dict[str, Any]:
    opinions = [
        {
            "model": one.model,
            "answer": one.answers[place],
            "part": one.parts[place],
            "map": one.maps[row] if one.maps else "",
            "bars": _bars(one.answers[place]),
        }
        for one in told
    ]
    labels = {one.answers[place].label for one in told}
    return {"name": name, "picture": uri(cell, SIDE), "opinions": opinions, "disagree": len(labels) > 1}


def _bars(answer: Answer) -> list[tuple[str, float]]:
    return sorted(answer.probabilities.items(), key=lambda item: -item[1])[:BARS]


def _file(told: Told, names: Sequence[str]) -> dict[str, str]:
    content = base64.b64encode(table(told.model, names, told.answers, told.parts)).decode("ascii")
    return {"name": f"{told.model.name}.csv", "uri": f"data:text/csv;charset=utf-8;base64,{content}"}


def _summary(told: Sequence[Told], pictures: Sequence[Picture]) -> str:
    refused = sum(picture.rgb is None for picture in pictures)
    text = f"{plural(len(pictures), 'image')}: {len(pictures) - refused:,} answered"
    if refused:
        text += f", {refused:,} without an answer"
    for one in told:
        who = f" by {one.model.name}" if len(told) > 1 else ""
        unsure = sum(bool(found.uncertain) for found in one.answers)
        if unsure:
            text += f", {unsure:,} uncertain{who}: show to an expert"
    split = sum(len({one.answers[place].label for one in told}) > 1 for place in range(len(pictures)))
    return text + (f"; the models disagree on {split:,}." if split else ".")


_PAGES = environment(PackageLoader("bloodcell.app", "templates"))
_PAGES.filters["chance"] = lambda share: percent(share, 1)
