"""A finished run as a file for other programs, checked against the run before it is called done."""

from bloodcell.export.check import Check, check
from bloodcell.export.formats import FORMATS, write

__all__ = ["FORMATS", "Check", "check", "write"]
