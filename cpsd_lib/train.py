"""THE loop, once: teachers side by side or one student, with EMA, history, checkpoint and resume."""

import contextlib
import csv
import hashlib
import math
import pickle
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import nn

from cpsd_lib.batches import predict
from cpsd_lib.files import atomic, read_json, sha256, write_json
from cpsd_lib.metrics import mean_average_precision
from cpsd_lib.progress import bar

CHECK_EVERY = 20  # steps between looks at the loss on a GPU, where each look waits for the device
LOCK_SECONDS = 30  # a killed runner's kernel may live a second longer: wait for it rather than write beside it


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass
class Learner:
    """A model, what it learns, and the columns [P] of the targets that its logits stand for."""

    name: str
    model: nn.Module
    objective: object  # (Output, Batch) -> {name: scalar loss}
    columns: list
    made_of: dict  # JSON-able: all that determines the trained weights; finished weights made of the same are loaded


@dataclass(frozen=True)
class Validation:
    """Images that select the best epoch: a held-out part of TRAIN, or the test split under `protocol: paper`."""

    images: np.ndarray
    targets: np.ndarray  # [N, C]
    rows: np.ndarray
    raw_too: bool = False  # the release also chose between raw and EMA weights


def derive_seed(*parts):
    """Return a 63-bit seed that is a function of `parts` and nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def pick_device(name):
    """Return the torch device for "auto" (a GPU when there is one), "cpu" or "cuda:N"."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name} was asked for, but torch sees no GPU; use device=auto or device=cpu")
    return torch.device(name)


def pick_precision(name, device):
    """Return the autocast dtype, or None for float32.

    "auto" is bfloat16 on GPUs that have it, else float32. On a CPU it is float32: MobileNetV2 at 128 px, channels_last,
    two Zen cores with avx512_bf16, takes 7.6 ms an image either way. float16 needs a GPU and is float32 elsewhere.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if name == "float16" and device.type != "cuda":
        return None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


class Ema:
    """A moving average of a model's whole state, buffers too."""

    def __init__(self, model, decay, warmup):
        self.decay, self.warmup = decay, warmup
        self.names = list(model.state_dict())
        self._live = list(model.state_dict().values())
        self.shadow = [tensor.detach().clone() for tensor in self._live]
        floats = [i for i, tensor in enumerate(self._live) if tensor.is_floating_point()]
        self._floats = [self.shadow[i] for i in floats], [self._live[i] for i in floats]
        self._counts = [(self.shadow[i], self._live[i]) for i in range(len(self._live)) if i not in set(floats)]

    @torch.no_grad()
    def update(self, step):
        """Move the average towards the live weights after `step` (from 1) updates."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(*self._floats, 1 - decay)
        for shadow, live in self._counts:
            shadow.copy_(live)

    def state(self):
        """Return {name: tensor} of the average."""
        return dict(zip(self.names, self.shadow, strict=True))


@dataclass
class _Track:
    """A learner and all that its training carries from step to step."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    schedule: object
    scaler: torch.amp.GradScaler
    ema: Ema
    forward: object
    sums: dict = field(default_factory=dict)  # named losses of this epoch, float64 on the device
    best: dict = field(default_factory=dict)  # score, epoch, kind, state: the best validated weights

    def state(self):
        return {
            "model": self.learner.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.shadow,
            "sums": self.sums,
            "best": self.best,
        }

    def load(self, state):
        self.learner.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        for shadow, saved in zip(self.ema.shadow, state["ema"], strict=True):
            shadow.copy_(saved)
        self.sums, self.best = state["sums"], state["best"]


def fit(learners, batches, recipe, folder, *, seed, about, validation=None, files=None, desc="training"):
    """Train `learners` side by side on the same batches and leave the selected weights in them, in eval mode.

    batches: Batches. recipe: TrainParams. about: JSON-able dict written beside the weights. validation: Validation, or
    None to keep the EMA at the end. files [N]: names to blame when the loss is not finite.
    A learner whose finished weights are in `folder` is loaded, not trained; the others go on from the last checkpoint
    when it was made of the same, and start anew when it was not. A learner's weights do not depend on who trains beside it.
    Returns {learner's name: what is written beside its weights}.
    Raises Diverged when the loss is not finite, RuntimeError when another process trains in this folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _one_trainer(folder):
        entries = {learner.name: load_learner(learner, folder) for learner in learners}
        todo = [learner for learner in learners if entries[learner.name] is None]
        finished = [name for name, entry in entries.items() if entry is not None]
        if todo:
            for leftover in folder.glob(".*.tmp"):  # half-written by a killed process; ours alone under the lock
                leftover.unlink(missing_ok=True)
            tracks = [_track(learner, batches, recipe) for learner in todo]
            state = _resume(folder / "last.ckpt", tracks, batches.device)
            _train(tracks, batches, recipe, folder, seed, state, validation, files, desc, finished)
            for track in tracks:
                entries[track.learner.name] = _save(track, folder, about, state, len(tracks))
            (folder / "last.ckpt").unlink(missing_ok=True)
        return entries


@contextlib.contextmanager
def _one_trainer(folder):
    lock = FileLock(folder / ".lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"another process trains in {folder}; wait for it, or stop it, and start again") from None
    with lock:
        lock.release()  # `with` counted a second acquisition
        yield


def _track(learner, batches, recipe):
    device = batches.device
    model = learner.model.to(device, memory_format=torch.channels_last)
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    optimizer = kind(groups, lr=recipe.lr, fused=True)
    total = recipe.epochs * batches.steps
    # torch divides by pct_start * total - 1, which very short trainings would make zero.
    pct_start = min(max(recipe.pct_start, 1.5 / total), 0.99)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=total, pct_start=pct_start)
    half = pick_precision(recipe.precision, device) is torch.float16
    ema = Ema(model, recipe.ema_decay, recipe.ema_warmup)
    return _Track(
        learner, optimizer, schedule, torch.amp.GradScaler(device.type, enabled=half), ema, _forward(model, recipe)
    )


def _forward(model, recipe):
    if not recipe.compile:
        return model
    torch._dynamo.config.suppress_errors = True  # a graph that does not compile runs eagerly, and torch says so
    return torch.compile(model)


def _resume(path, tracks, device):
    """Return the loop's state, from the checkpoint when it was made of the same; unreadable, it is as good as none."""
    fresh = {"epoch": 0, "step": 0, "seconds": 0.0, "history": []}
    if not path.exists():
        return fresh
    try:
        # torch.save writes a zip; anything else is not handed to torch's old unpickler.
        saved = torch.load(path, map_location=device, weights_only=True) if zipfile.is_zipfile(path) else None
    except (RuntimeError, pickle.UnpicklingError):
        saved = None
    if saved is None:
        print(f"{path} cannot be read; this training starts anew")
        return fresh
    made_of = _made_of(tracks)
    # Killed while the finished weights were being written, some learners of the checkpoint need no training any more.
    if {name: saved["made_of"].get(name) for name in made_of} != made_of:
        return fresh
    for track in tracks:
        track.load(saved["tracks"][track.learner.name])
    state = {name: saved[name] for name in fresh}
    state["seconds"] *= len(tracks) / len(saved["tracks"])
    state["history"] = [row for row in saved["history"] if row["learner"] in made_of]
    return state


def _made_of(tracks):
    return {track.learner.name: track.learner.made_of for track in tracks}


def _checkpoint(path, tracks, state):
    with atomic(path) as temporary:
        torch.save(
            state | {"made_of": _made_of(tracks), "tracks": {t.learner.name: t.state() for t in tracks}}, temporary
        )


def _train(tracks, batches, recipe, folder, seed, state, validation, files, desc, finished):
    precision = pick_precision(recipe.precision, batches.device)
    checkpoint = folder / "last.ckpt"
    pending = []  # (rows, {learner: loss}) not looked at yet
    look_every = CHECK_EVERY if batches.device.type == "cuda" else 1
    saved_at = began = time.perf_counter()
    before = state["seconds"]
    done = state["epoch"] * batches.steps + state["step"]
    with bar(recipe.epochs * batches.steps, desc, "step", initial=done) as progress:
        while state["epoch"] < recipe.epochs:
            for batch in batches.epoch(state["epoch"], state["step"]):
                step = state["epoch"] * batches.steps + state["step"]
                losses = {t.learner.name: _step(t, batch, precision, seed, step) for t in tracks}
                state["step"] += 1
                pending.append((batch.rows, losses))
                now = time.perf_counter()
                due = now - saved_at >= recipe.checkpoint_seconds
                last_step = state["step"] == batches.steps
                if len(pending) >= look_every or due or last_step:
                    _look(pending, state, checkpoint, files)
                    if due or last_step:  # what is kept on disk is finite
                        _look_at_weights(tracks, batch.rows, state, checkpoint, files)
                    pending = []
                    progress.note(f"epoch {state['epoch'] + 1}/{recipe.epochs}")
                if due:
                    state["seconds"] = before + now - began
                    _checkpoint(checkpoint, tracks, state)
                    saved_at = time.perf_counter()
                progress.update(1)
            _end_epoch(tracks, batches, recipe, state, validation, precision)
            state["seconds"] = before + time.perf_counter() - began
            _write_history(folder / "history.csv", state["history"], finished)
    state["seconds"] = before + time.perf_counter() - began


def _step(track, batch, precision, seed, step):
    # Dropout draws from a seed of its own: a learner trained alone or beside others, resumed or not, draws the same.
    torch.manual_seed(derive_seed(seed, track.learner.name, step))
    track.learner.model.train()
    with torch.autocast(batch.images.device.type, precision, enabled=precision is not None):
        output = track.forward(batch.images)
    named = track.learner.objective(output, batch)
    loss = sum(named.values())
    track.scaler.scale(loss).backward()
    track.scaler.step(track.optimizer)
    track.scaler.update()
    track.optimizer.zero_grad(set_to_none=True)
    track.schedule.step()
    track.ema.update(step + 1)
    for name, value in named.items():
        track.sums[name] = track.sums.get(name, 0.0) + value.detach().double()
    return loss.detach()


def _look(pending, state, checkpoint, files):
    names = list(pending[0][1])
    values = torch.stack([losses[name] for _, losses in pending for name in names]).cpu()
    for position, finite in enumerate(torch.isfinite(values).tolist()):
        if not finite:
            rows, name = pending[position // len(names)][0], names[position % len(names)]
            raise _diverged(f"the loss of {name} is {values[position].item()}", rows, state, checkpoint, files)


def _look_at_weights(tracks, rows, state, checkpoint, files):
    # A finite loss can have an infinite gradient; only the next loss would show it, after a checkpoint of NaNs.
    for track in tracks:
        norms = torch._foreach_norm([p.detach() for p in track.learner.model.parameters()])
        if not torch.stack(norms).isfinite().all():
            raise _diverged(f"the weights of {track.learner.name} are not finite", rows, state, checkpoint, files)


def _diverged(what, rows, state, checkpoint, files):
    shown = ", ".join(str(files[row]) if files is not None else str(row) for row in rows)
    kept = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there was no checkpoint yet"
    return Diverged(
        f"{what} in epoch {state['epoch'] + 1}, on the batch of {shown}; {kept}. Lower lr, or use precision=float32, "
        "and start again"
    )


def _end_epoch(tracks, batches, recipe, state, validation, precision):
    state["epoch"], state["step"] = state["epoch"] + 1, 0
    validated = validation is not None and (
        state["epoch"] % recipe.validate_every == 0 or state["epoch"] == recipe.epochs
    )
    for track in tracks:
        row = {"epoch": state["epoch"], "learner": track.learner.name, "lr": track.schedule.get_last_lr()[0]}
        images = batches.steps * batches.batch_size
        row |= {name: (total / images).item() for name, total in track.sums.items()}
        track.sums = {}
        if validated:
            row |= _validate(track, state["epoch"], validation, batches.device, precision)
        state["history"].append(row)


def _validate(track, epoch, validation, device, precision):
    model = track.learner.model.eval()
    weights = {"ema": track.ema.state()} | ({"raw": model.state_dict()} if validation.raw_too else {})
    scores = {}
    for kind, state in weights.items():
        forward = lambda images, state=state: torch.func.functional_call(model, state, (images,)).logits  # noqa: E731
        logits = predict(forward, validation.images, validation.rows, device, precision=precision)
        targets = validation.targets[validation.rows][:, track.learner.columns]
        scores[f"val_map_{kind}"] = score = 100 * mean_average_precision(logits, targets)
        score = None if math.isnan(score) else score  # no known positive among the images: nothing to choose by
        # Without a score the latest EMA is kept, as under `last`.
        if not track.best or (score is None and kind == "ema") or (score is not None and score > track.best["score"]):
            kept = {name: tensor.detach().clone() for name, tensor in state.items()}
            track.best = {"score": score, "epoch": epoch, "kind": kind, "state": kept}
    return scores


def _write_history(path, history, finished):
    # The lines of learners that were finished before stay; those of learners nobody asks for any more go.
    before = []
    if path.exists() and finished:
        with open(path, newline="") as file:
            before = [row for row in csv.DictReader(file) if row["learner"] in finished]
    rows = before + history
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _save(track, folder, about, state, side_by_side):
    """Write a learner's selected weights, then the JSON that makes them valid; return that JSON."""
    learner = track.learner
    best = track.best or {"kind": "ema", "epoch": state["epoch"], "score": None, "state": track.ema.state()}
    learner.model.load_state_dict(best["state"])
    learner.model.eval()
    path = folder / f"{learner.name}.safetensors"
    with atomic(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in learner.model.state_dict().items()}, temporary)
    entry = about | {
        "file": path.name,
        "sha256": sha256(path),
        "columns": [int(column) for column in learner.columns],
        "weights": best["kind"],
        "epoch": best["epoch"],
        "val_map": best["score"],
        # Side by side all learners run the same backbone on the same batch: the time is shared out evenly.
        "seconds": state["seconds"] / side_by_side,
        "made_of": learner.made_of,
    }
    write_json(path.with_suffix(".json"), entry)
    return entry


def load_learner(learner, folder):
    """Load finished weights into the learner and return their record; None when absent, changed, or made of other things."""
    record = Path(folder) / f"{learner.name}.json"
    if not record.exists() or read_json(record)["made_of"] != learner.made_of:
        return None
    return load_weights(learner.model, record)


def load_weights(model, record):
    """Load the weights that the JSON at `record` describes and return it; None when the file is gone or was changed."""
    entry = read_json(record)
    path = Path(record).with_name(entry["file"])
    if not path.exists() or sha256(path) != entry["sha256"]:
        return None
    model.load_state_dict(load_file(path))
    model.eval()
    return entry
