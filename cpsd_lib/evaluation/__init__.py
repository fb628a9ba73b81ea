"""How good a model or a partition is, and how sure that is: scores, bootstrap, calibration, thresholds, activation maps.

Everything takes arrays (or a model and images) and returns arrays or data frames.
"""

from cpsd_lib.support import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "metrics": "average_precision averages best_thresholds check_probabilities decisions mean_average_precision of_classes "
        "precision_recall_f1",
        "bootstrap": "bootstrap_f1 bootstrap_interval bootstrap_mean paired_bootstrap",
        "calibration": "expected_calibration_error fit_calibration reliability",
        "cam": "ACTIVATION ATTENTION GRADIENT attention_maps class_activation inside_boxes map_captions map_kinds map_places "
        "peaks_inside share_inside stack_maps summarise_shares",
        "partitions": "PAPER_EXPONENT match overlap partition_numbers",
    },
)
