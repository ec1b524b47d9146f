"""Templates to one self-contained HTML page: the jinja environment, the number formats and the writing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined

from shards.atomic import open_atomic

THIN = "\u202f"
"""Narrow no-break space, between a number and its unit."""

NONE = "–"
"""What stands where a value is undefined."""


def environment(*loaders: BaseLoader) -> Environment:
    """Return the environment of a report; `loaders` are asked for a template before this package's own."""
    pages = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader("shards", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (count, percent, decimal, interval, size, duration, shorten, plain, plural)
    pages.filters.update({function.__name__: function for function in formats})
    return pages


def write_page(path: Path, pages: Environment, template: str, content: dict[str, Any]) -> Path:
    """Render `template` with `content` and write it atomically; return `path`.

    Raises:
        EnvironmentFault: the disk is full or fails.
    """
    text = pages.get_template(template).render(content)
    with open_atomic(path) as file:
        # File names that are no valid UTF-8 arrive as lone surrogates, which cannot be encoded otherwise.
        file.write(text.encode("utf-8", "backslashreplace"))
    return path


def count(value: float) -> str:
    """Return a whole number with separators of thousands: 12,345."""
    return f"{value:,.0f}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as percent; what is not quite 0 or 1 is never rounded to it."""
    if share is None or not math.isfinite(share):
        return NONE
    step = 10**-digits
    if 0 < share < 1 and share * 100 > 100 - step / 2:
        return f">{THIN}{100 - step:.{digits}f}{THIN}%"
    if 0 < share < 1 and share * 100 < step / 2:
        return f"<{THIN}{step:.{digits}f}{THIN}%"
    return f"{share * 100:.{digits}f}{THIN}%"


def decimal(value: float | None, digits: int = 3) -> str:
    """Return a number with a fixed count of decimals."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def interval(low: float | None, high: float | None, as_percent: bool = True) -> str:
    """Return 'low–high' in percent or as decimals, 'low to high' below 0; empty where a bound is undefined."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    dash = " to " if low < 0 else "–"
    return f"{low * 100:.1f}{dash}{high * 100:.1f}{THIN}%" if as_percent else f"{low:.3f}{dash}{high:.3f}"


def size(bytes_: float) -> str:
    """Return a number of bytes in the unit that suits it (1 MB is 10⁶ bytes)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_ >= factor:
            return f"{bytes_ / factor:,.1f}{THIN}{unit}"
    return f"{bytes_:.0f}{THIN}bytes"


def duration(seconds: float) -> str:
    """Return seconds as '2 h 05 min', '3 min 12 s' or '4.2 s'."""
    if seconds < 60:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}{THIN}h {minutes:02}{THIN}min" if hours else f"{minutes}{THIN}min {whole % 60:02}{THIN}s"


def shorten(text: object, limit: int = 240) -> str:
    """Return the text, or its beginning and its end where it is longer than `limit` characters."""
    whole = str(text)
    return whole if len(whole) <= limit else f"{whole[: limit // 2]} … {whole[-limit // 2 :]}"


def plain(value: object) -> str:
    """Return a setting as a person would write it: yes and no, numbers without tails, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return NONE
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or NONE
    return str(value)


def plural(number: int, one: str, many: str = "") -> str:
    """Return the number with its noun: '1 image', '2 images'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return a nested dict as (dotted name, value) in its own order; an empty dict gives nothing."""
    rows: list[tuple[str, Any]] = []
    for name, item in value.items():
        if isinstance(item, dict):
            rows += flatten(item, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", item))
    return rows
