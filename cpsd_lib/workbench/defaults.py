"""What a training is like unless a parameter file has other values: three named recipes, and two methods."""

from dataclasses import asdict

from cpsd_lib.training import Training

# What the released codes of CPSD and L2D have in common.
_RELEASED = {"gamma_pos": 0, "epochs": 80, "optimizer": "adam", "weight_decay": 1e-4, "ema_warmup": False}
_RELEASED |= {"view": "release", "precision": "float16"}
# Units: epochs and batch_size (images) are counts, lr and weight_decay per step, pct_start a fraction of all steps.
RECIPES = {
    # Fine-tunes small data well on one machine: the defaults of a Training.
    "default": {
        "train": asdict(Training())
        | {"gamma_neg": 4, "gamma_pos": 0, "clip": 0.05, "batch_size": 32, "view": "default"},
    },
    # CPSD's, as its released code has it.
    "release": {
        "train": _RELEASED | {"gamma_neg": 4, "clip": 0.05, "batch_size": 24, "pct_start": 0.1, "ema_decay": 0.9997},
        "teachers": {"lr": 1e-4},
        "student": {"lr": 1e-5},
        "model": {"normalize": "none"},
    },
    # L2D's, as its released code has it: BCE (ASL without its focus and its clip), inputs in [0, 1], no moving average.
    "l2d": {
        "train": _RELEASED
        | {"gamma_neg": 0, "clip": 0, "batch_size": 64, "lr": 1e-4, "pct_start": 0.2, "ema_decay": 0},
        "teachers": {"stop_after": 30},
        "model": {"head": "ml_decoder", "normalize": "none"},
    },
}


def method_sections(method, teachers):
    """Return {section: settings} that `method` adds to the recipe, for the baseline's settings `teachers`; none for "paper".

    shared_trunk (beyond the papers): the teachers of parts are tails on the trained baseline's frozen stages but the last,
    the student starts from the baseline, and both train a third of its epochs.
    """
    epochs = [teachers[name] for name in ("epochs", "stop_after") if teachers.get(name) is not None]
    valid = epochs and all(isinstance(count, int) for count in epochs)
    if method != "shared_trunk" or not valid:  # Params names what is wrong
        return {"teachers": {}, "student": {}}
    third = max(1, round(min(epochs) / 3))
    return {
        "teachers": {"start": "baseline", "frozen_stages": -1, "more_epochs": third},
        "student": {"start": "baseline", "epochs": third},
    }
