"""Where each image comes from as a whole (hospital, microscope, published set), for tests on a source never seen."""

from __future__ import annotations

import re
from dataclasses import replace

from shards.definitions import Definition
from shards.sources.items import Listing, compile_pattern, find_group


def with_origins(listing: Listing, definition: Definition | None, pattern: str = "") -> Listing:
    """Return the listing with each item's origin as a pattern tells it, the definition's own without one.

    Items keep the origin that they have (the column of a table, the name of their root) where there is neither.

    Raises:
        BadInput: not a regular expression.
    """
    compiled = compile_pattern(pattern, "--source-pattern")
    if compiled:
        return replace(listing, items=[replace(i, origin=find_group(compiled, i.source)) for i in listing.items])
    if definition is None or not definition.source:
        return listing
    found = [re.search(definition.source, item.source, re.IGNORECASE) for item in listing.items]
    named = [match.group("source") or "" if match else "" for match in found]
    return replace(listing, items=[replace(i, origin=name) for i, name in zip(listing.items, named, strict=True)])
