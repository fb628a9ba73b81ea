"""Figures in one colour-blind-safe style, and explorers for a live notebook; all of them take arrays and data frames.

Where nobody can turn a control, an explorer shows the picture of its first settings.
"""

from cpsd_lib.support import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {"cams": "cam_browser", "parts": "partition_explorer", "thresholds": "threshold_explorer"},
)
