"""The embedded data set, drawn from a seed: labels from planted groups, and the pictures that show them."""

from cpsd_lib.support import exports

__getattr__, __dir__, __all__ = exports(__name__, {"scenes": "Scenes"})
