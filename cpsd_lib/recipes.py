"""What a training is like unless a parameter file says otherwise: three named recipes."""

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
