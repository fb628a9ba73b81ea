"""What a training is like unless a parameter file says otherwise: three named recipes, and two methods."""

_ASL = {"gamma_neg": 4, "gamma_pos": 0, "clip": 0.05}
# `default` fine-tunes small data well on one machine (METHOD 5); `release` is METHOD 1's recipe to the letter.
RECIPES = {
    "default": {
        "train": _ASL
        | {"epochs": 6, "batch_size": 32, "optimizer": "adamw", "lr": 5e-4, "weight_decay": 1e-2, "pct_start": 0.1}
        | {"ema_decay": 0.998, "ema_warmup": True, "view": "default"},
        "teachers": {},
        "student": {},
        "model": {},
    },
    # L2D's own (METHOD 2); its loss on labels is BCE, which is ASL without its focus and its clip. Inputs in [0, 1] and no
    # moving average, as its released code has it.
    "l2d": {
        "train": {"gamma_neg": 0, "gamma_pos": 0, "clip": 0}
        | {"epochs": 80, "batch_size": 64, "optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-4, "pct_start": 0.2}
        | {"ema_decay": 0, "ema_warmup": False, "view": "release", "precision": "float16"},
        "teachers": {"stop_after": 30},
        "student": {},
        "model": {"head": "ml_decoder", "normalize": "none"},
    },
    "release": {
        "train": _ASL
        | {"epochs": 80, "batch_size": 24, "optimizer": "adam", "weight_decay": 1e-4, "pct_start": 0.1}
        | {"ema_decay": 0.9997, "ema_warmup": False, "view": "release", "precision": "float16"},
        "teachers": {"lr": 1e-4},
        "student": {"lr": 1e-5},
        "model": {"normalize": "none"},
    },
}


def method_sections(method, teachers):
    """Return {section: settings} that `method` stands for beside the baseline's own settings, `teachers`; "paper" adds none.

    shared_trunk (beyond the papers): the teachers of parts are tails on the trained baseline's frozen stages but the last,
    the student starts from the baseline, and both train a third as long as it did.
    """
    epochs = [teachers[name] for name in ("epochs", "stop_after") if teachers.get(name) is not None]
    if (
        method != "shared_trunk" or not epochs or not all(isinstance(one, int) for one in epochs)
    ):  # Params names what is wrong
        return {"teachers": {}, "student": {}}
    third = max(1, round(min(epochs) / 3))
    return {
        "teachers": {"start": "baseline", "frozen_stages": -1, "more_epochs": third},
        "student": {"start": "baseline", "epochs": third},
    }
