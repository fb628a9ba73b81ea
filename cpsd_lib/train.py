"""THE loop, once: teachers side by side or one student, with EMA, validation and history."""

import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cpsd_lib.batches import predict
from cpsd_lib.checkpoint import one_trainer, resume, write_checkpoint
from cpsd_lib.files import atomic
from cpsd_lib.hardware import derive_seed, pick_precision
from cpsd_lib.learner import make_track
from cpsd_lib.metrics import mean_average_precision
from cpsd_lib.progress import bar
from cpsd_lib.weights import load_learner, save_learner

CHECK_EVERY = 20  # steps between looks at the loss on a GPU, where each look waits for the device


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Validation:
    """Images that select the best epoch: a held-out part of TRAIN, or the test split under `protocol: paper`."""

    images: np.ndarray
    targets: np.ndarray  # [N, C]
    rows: np.ndarray
    raw_too: bool = False  # the release also chose between raw and EMA weights


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
    with one_trainer(folder):
        entries = {learner.name: load_learner(learner, folder) for learner in learners}
        todo = [learner for learner in learners if entries[learner.name] is None]
        finished = [name for name, entry in entries.items() if entry is not None]
        if todo:
            for leftover in folder.glob(".*.tmp"):  # half-written by a killed process; ours alone under the lock
                leftover.unlink(missing_ok=True)
            tracks = [make_track(learner, recipe, batches.steps, batches.device) for learner in todo]
            state = resume(folder / "last.ckpt", tracks, batches.device)
            _train(tracks, batches, recipe, folder, seed, state, validation, files, desc, finished)
            for track in tracks:
                entries[track.learner.name] = _save(track, folder, about, state, len(tracks))
            (folder / "last.ckpt").unlink(missing_ok=True)
        return entries


def _train(tracks, batches, recipe, folder, seed, state, validation, files, desc, finished):
    precision = pick_precision(recipe.precision, batches.device)
    checkpoint = folder / "last.ckpt"
    pending = []  # (rows, {learner: loss}) not looked at yet
    look_every = CHECK_EVERY if batches.device.type == "cuda" else 1
    saved_at = began = time.perf_counter()
    before = state["seconds"] + batches.seconds_asked  # the teachers' time is theirs, not the student's
    done = state["epoch"] * batches.steps + state["step"]
    last_epoch = recipe.trained_epochs
    with bar(last_epoch * batches.steps, desc, "step", initial=done) as progress:
        while state["epoch"] < last_epoch:
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
                    progress.note(f"epoch {state['epoch'] + 1}/{last_epoch}")
                if due:
                    state["seconds"] = before + now - began - batches.seconds_asked
                    write_checkpoint(checkpoint, tracks, state)
                    saved_at = time.perf_counter()
                progress.update(1)
            _end_epoch(tracks, batches, recipe, state, validation, precision)
            state["seconds"] = before + time.perf_counter() - began - batches.seconds_asked
            _write_history(folder / "history.csv", state["history"], finished)
    state["seconds"] = before + time.perf_counter() - began - batches.seconds_asked


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
        state["epoch"] % recipe.validate_every == 0 or state["epoch"] == recipe.trained_epochs
    )
    scores = _validate(tracks, state["epoch"], validation, batches.device, precision) if validated else {}
    for track in tracks:
        name = track.learner.name
        row = {"epoch": state["epoch"], "learner": name, "lr": track.schedule.get_last_lr()[0]}
        images = batches.steps * batches.batch_size
        row |= {loss: (total / images).item() for loss, total in track.sums.items()}
        track.sums = {}
        state["history"].append(row | scores.get(name, {}))


def _validate(tracks, epoch, validation, device, precision):
    """Score all tracks in one pass over the images, which a trunk they share sees once; return {learner's name: scores}."""
    asked = []
    for track in tracks:
        model = track.learner.model.eval()
        weights = {"ema": track.ema.state()} | ({"raw": model.state_dict()} if validation.raw_too else {})
        asked += [(track, kind, state) for kind, state in weights.items()]

    def forward(images):
        found = [torch.func.functional_call(t.learner.model, state, (images,)).logits for t, _, state in asked]
        return torch.cat([logits.float() for logits in found], 1)

    logits = predict(forward, validation.images, validation.rows, device, precision=precision)
    ends = np.cumsum([len(track.learner.columns) for track, _, _ in asked])
    scores = {track.learner.name: {} for track in tracks}
    for (track, kind, state), own in zip(asked, np.split(logits, ends[:-1], axis=1), strict=True):
        targets = validation.targets[validation.rows][:, track.learner.columns]
        scores[track.learner.name][f"val_map_{kind}"] = score = 100 * mean_average_precision(own, targets)
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
    """Put a learner's selected weights into its model and write them; return what stands beside them."""
    model = track.learner.model
    best = track.best or {"kind": "ema", "epoch": state["epoch"], "score": None, "state": track.ema.state()}
    model.load_state_dict(best["state"])
    model.eval()
    chosen = {"weights": best["kind"], "epoch": best["epoch"], "val_map": best["score"]}
    # Side by side all learners run the same backbone on the same batch: the time is shared out evenly.
    return save_learner(track.learner, folder, about | chosen | {"seconds": state["seconds"] / side_by_side})
