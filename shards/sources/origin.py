"""Where each image comes from as a whole (hospital, microscope, published set), for tests on a source never seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from shards.definitions import Definition
from shards.sources.items import Item, compile_pattern, find_group
from shards.sources.listing import Items, Listing


def with_origins(listing: Listing, definition: Definition | None, pattern: str = "") -> Listing:
    """Return the listing with each item's origin as a pattern tells it, the definition's own without one.

    Items keep the origin that they have (the column of a table, the name of their root) where there is neither.

    Raises:
        BadInput: not a regular expression.
    """
    compiled = compile_pattern(pattern, "--source-pattern")
    if compiled:
        return _named(listing, lambda source: find_group(compiled, source))
    if definition is None or not definition.source:
        return listing
    own = re.compile(definition.source, re.IGNORECASE)

    def name(source: str) -> str:
        match = own.search(source)
        return (match.group("source") or "") if match else ""

    return _named(listing, name)


def _named(listing: Listing, name: Callable[[str], str]) -> Listing:
    items: Iterator[Item] = (replace(item, origin=name(item.source)) for item in listing.items)
    return replace(listing, items=Items.of(items))
