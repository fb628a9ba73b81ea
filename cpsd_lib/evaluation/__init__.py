"""How good a model or a partition is, and how sure that is: scores, bootstrap, calibration, thresholds, activation maps.

Everything takes arrays (or a model and images) and returns arrays or data frames.
"""

from cpsd_lib.support import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "metrics": "average_precision mean_average_precision precision_recall_f1 check_probabilities",
        "bootstrap": "bootstrap_interval paired_bootstrap",
        "calibration": "expected_calibration_error reliability",
        "thresholds": "best_thresholds",
        "cam": "attention_maps class_activation",
        "partitions": "PAPER_EXPONENT match overlap singletons sizes",
    },
)
