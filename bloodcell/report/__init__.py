"""The run's report: one self-contained page on what was trained, how well it does and where it errs."""

from __future__ import annotations

from bloodcell.report.page import write_run_report

__all__ = ["write_run_report"]
