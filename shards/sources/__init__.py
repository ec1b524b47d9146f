"""What people have on disk as one list of (file, class, group, part): folders, tables, archives, known data sets."""

from __future__ import annotations

from shards.sources.folder import list_folder
from shards.sources.items import Item, as_text
from shards.sources.listing import Items, Listing
from shards.sources.table import list_table

__all__ = ["Item", "Items", "Listing", "as_text", "list_folder", "list_table"]
