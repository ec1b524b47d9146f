"""Which images are meant: the flags that scan and pack share, and the request that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.sources.gather import Request


@dataclass(frozen=True)
class SourceOptions:
    """Where the images, classes and groups come from; the help of every field is in its metadata."""

    dataset: str = field(default="", metadata={"help": "definition of a known data set: its name, or a .toml file"})
    also: tuple[str, ...] = field(default=(), metadata={"help": "a further folder or .npz; may be given several times"})
    labels: str = field(
        default="", metadata={"help": "table of label (as found) and class (as wanted) for all folders"}
    )
    trees: str = field(default="", metadata={"help": "with --dataset: which versions of its pictures, A,B or all"})
    table: str = field(default="", metadata={"help": "CSV, TSV or parquet with path, label and group columns"})
    group_column: str = field(default="", metadata={"help": "column of --table that names patient or slide"})
    group_pattern: str = field(default="", metadata={"help": "regular expression that finds the group in a path"})
    source_column: str = field(default="", metadata={"help": "column of --table that names the source"})
    source_pattern: str = field(
        default="", metadata={"help": "regular expression that finds the source in a path; else the name of its folder"}
    )

    def request(
        self,
        source: Path,
        scratch: Path,
        keep_splits: bool = False,
        merge_splits: bool = False,
        any_splits: bool = False,
        test_from: str = "",
    ) -> Request:
        """Return what to list: `source` and --also; the other arguments are as in the request."""
        from shards.sources.gather import Request  # flags are declared before anything that takes long is loaded

        return Request(
            (source, *map(Path, self.also)),
            scratch,
            **{name: getattr(self, name) for name in SOURCE_FLAGS},
            keep_splits=keep_splits,
            merge_splits=merge_splits,
            any_splits=any_splits,
            test_from=test_from,
        )


SOURCE_FLAGS = tuple(name for name in SourceOptions.__dataclass_fields__ if name != "also")
"""Names of the fields that take one value."""
