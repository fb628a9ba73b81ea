"""What a training is like unless a parameter file says otherwise: two named recipes."""

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
    "release": {
        "train": _ASL
        | {"epochs": 80, "batch_size": 24, "optimizer": "adam", "weight_decay": 1e-4, "pct_start": 0.1}
        | {"ema_decay": 0.9997, "ema_warmup": False, "view": "release", "precision": "float16"},
        "teachers": {"lr": 1e-4},
        "student": {"lr": 1e-5},
        "model": {"normalize": "none"},
    },
}
