"""Explorers for a live notebook; where nobody can turn a control, each shows the picture of its first settings."""

from cpsd_lib.widgets.cams import cam_browser
from cpsd_lib.widgets.parts import partition_explorer
from cpsd_lib.widgets.thresholds import threshold_explorer

__all__ = ["cam_browser", "partition_explorer", "threshold_explorer"]
