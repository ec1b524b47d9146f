"""The reports: self-contained pages on what was trained, how well it does and where it errs, and the same as data."""

from __future__ import annotations

from bloodcell.report.combined import write_combined_report
from bloodcell.report.files import FILES
from bloodcell.report.page import write_run_report

__all__ = ["FILES", "write_combined_report", "write_run_report"]
