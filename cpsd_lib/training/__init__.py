"""Training: THE loop once, batches of seeded views, moving average, checkpoints, and the store of soft targets.

`fit(models, Batches(images, targets), Training(epochs=6))` needs no folder and no parameter file.
"""

from cpsd_lib.support import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "settings": "TRAINING_VERSION Training",
        "batches": "Batches predict_logits",
        "prediction": "calibrate label predict",
        "learner": "Learner",
        "pseudo": "PseudoLabels",
        "loop": "Validation fit",
        "soft_targets": "computed view_logits",
    },
)
