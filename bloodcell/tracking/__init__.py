"""What a run tells about itself: `metrics.jsonl` is the truth, Weights & Biases and TensorBoard are views of it."""

from __future__ import annotations

from bloodcell.tracking.metrics_log import MetricsLog, read_metrics
from bloodcell.tracking.tracker import Tracker, check_tracking, open_tracker
from bloodcell.tracking.view import View

__all__ = ["MetricsLog", "Tracker", "View", "check_tracking", "open_tracker", "read_metrics"]
