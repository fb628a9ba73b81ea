"""THE loop, once: experts side by side or one student, with moving average, validation, checkpoints and history."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from cpsd_lib.evaluation import mean_average_precision
from cpsd_lib.objectives import Supervised
from cpsd_lib.support import Interrupted, atomic, bar, derive_seed, pick_precision
from cpsd_lib.training.batches import predict_logits
from cpsd_lib.training.checkpoint import CHECKPOINT, copy_of, interrupt_waits, one_trainer, resume, write_checkpoint
from cpsd_lib.training.learner import Learner, start_state
from cpsd_lib.training.settings import Training

CHECK_EVERY = 20  # steps between looks at the loss on a GPU, where each look waits for the device


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Validation:
    """Images that select the best epoch: a held-out part of TRAIN, or the test split under `protocol: paper`."""

    images: np.ndarray
    targets: np.ndarray  # [N, C]
    indices: np.ndarray
    raw_too: bool = False  # the release also chose between raw and EMA weights


def fit(
    models,
    batches,
    training=Training(),  # noqa: B008 (frozen)
    folder=None,
    *,
    objective=Supervised(),  # noqa: B008 (frozen)
    validation=None,
    pseudo=None,
    files=None,
    desc="training",
):
    """Train one or several models side by side on the same batches; leaves the selected weights in them, in eval mode.

    models: an nn.Module, a list of them, which all learn `objective`, or Learners with an objective each. batches: Batches,
    whose seed is that of dropout too. validation: Validation, or None to keep the moving average at the end.
    pseudo: PseudoLabels of images without labels, for one learner; None: such images have no loss of labels.
    folder: where history.csv and the last checkpoint are written, from which the same learners (by name) go
    on; a training that is finished is read from there. None: nothing is written. files [N]: names to blame when the loss
    is not finite. A learner's weights do not depend on who trains beside it. Returns {learner's name: kind and epoch of its
    weights, val_map, seconds, history (a dict an epoch)}.
    Raises Diverged when the loss is not finite, RuntimeError when another process trains in this folder.
    """
    learners = _learners(models, objective)
    # cuDNN's default algorithms add in another order each time. ResNet-101 at 448 px on an H200: 677 images/s either way.
    torch.backends.cudnn.deterministic = True
    with one_trainer(folder) if folder else nullcontext():
        states = [start_state(learner, training, batches.steps, batches.device) for learner in learners]
        described = _described(states, batches, training, validation, pseudo)
        progress = resume(folder, states, described, batches.device)
        _train(states, batches, training, folder and Path(folder), described, progress, validation, pseudo, files, desc)
    return {state.learner.name: _select(state, progress, len(states)) for state in states}


def _learners(models, objective):
    models = [models] if isinstance(models, (nn.Module, Learner)) else list(models)
    named = [
        one if isinstance(one, Learner) else Learner(f"model{number}" if len(models) > 1 else "model", one, objective)
        for number, one in enumerate(models)
    ]
    if len({learner.name for learner in named}) < len(named) or not named:
        raise ValueError(f"models must be at least one, of different names; got {[learner.name for learner in named]}")
    return named


def _described(states, batches, training, validation, pseudo):
    """What must be the same for a checkpoint to be gone on from, JSON-able."""
    settings = {name: value for name, value in asdict(training).items() if name != "checkpoint_seconds"}
    shown = [batches.seed, batches.batch_size, batches.indices.tolist(), asdict(batches.recipe), batches.stored_views]
    learners = [state.learner.name for state in states]
    chosen_by = validation and [validation.indices.tolist(), validation.raw_too]
    described = {"learners": learners, "settings": settings, "seed": batches.seed, "batches": shown}
    return described | {"validation": chosen_by} | ({"pseudo": pseudo.described} if pseudo else {})


def _train(states, batches, training, folder, described, progress, validation, pseudo, files, desc):
    precision = pick_precision(training.precision, batches.device)
    checkpoint = folder / CHECKPOINT if folder else None
    pending = []  # (image indices, {learner: loss}) not looked at yet
    whole, writing = True, None  # whether all learners made the same steps; the checkpoint that is being written
    look_every = CHECK_EVERY if batches.device.type == "cuda" else 1
    saved_at = began = time.perf_counter()
    every = training.checkpoint_seconds
    before = progress["seconds"] + batches.soft_seconds  # the teachers' time is theirs, not the student's
    done = progress["epoch"] * batches.steps + progress["step"]
    last_epoch = training.trained_epochs
    if progress["epoch"] == last_epoch:
        return
    if done:
        print(f"{desc}: resumed at step {done:,} of {last_epoch * batches.steps:,}", flush=True)

    def spent():
        return before + time.perf_counter() - began - batches.soft_seconds

    def write():  # a copy, by a thread: the training goes on
        progress["seconds"] = spent()
        return writer.submit(timed, copy_of(states, progress, described))

    def timed(content):
        started = time.perf_counter()
        write_checkpoint(checkpoint, content)
        return time.perf_counter() - started

    @contextmanager
    def kept_when_interrupted():
        try:
            yield
        except KeyboardInterrupt:
            if checkpoint and whole:  # an epoch whose end was interrupted is validated again
                if pending:
                    _check_finite(pending, states, progress, checkpoint, files)
                write().result()
            at = f"{progress['epoch'] * batches.steps + progress['step']:,} of {last_epoch * batches.steps:,}"
            way = "run it again and it goes on from its checkpoint" if folder else "nothing is kept without a folder"
            raise Interrupted(f"{desc}: stopped at step {at}; {way}") from None

    shown = bar(last_epoch * batches.steps, desc, "step", initial=done)
    with ThreadPoolExecutor(1) as writer, shown as shown, kept_when_interrupted():
        while progress["epoch"] < last_epoch:
            if pseudo:
                pseudo.label(states, batches, progress, precision)
            for batch in batches.epoch(progress["epoch"], progress["step"]):
                step = progress["epoch"] * batches.steps + progress["step"]
                whole = False  # a second Ctrl-C, within a step, leaves some learners a step ahead of the others
                with interrupt_waits() as interrupted:
                    losses = {
                        state.learner.name: _step(state, batch, precision, batches.seed, step) for state in states
                    }
                    progress["step"], whole = progress["step"] + 1, True
                pending.append((batch.indices, losses))
                due = checkpoint is not None and time.perf_counter() - saved_at >= every
                if due and writing:  # eleven ResNet-101 are 7.5 GB: one write at a time, 2 % of the time at most
                    took = writing.result()
                    every = every and max(training.checkpoint_seconds, 50 * took)
                    due = time.perf_counter() - saved_at >= every
                last_step = progress["step"] == batches.steps
                if len(pending) >= look_every or due or last_step:
                    # What is kept on disk is finite, weights too.
                    _check_finite(pending, states if due or last_step else [], progress, checkpoint, files)
                    pending = []
                    shown.note(f"epoch {progress['epoch'] + 1}/{last_epoch}")
                if due:
                    writing, saved_at = write(), time.perf_counter()
                shown.update(1)
                if interrupted:
                    raise KeyboardInterrupt
            _end_epoch(states, batches, training, progress, validation, precision)
            progress["seconds"] = spent()
            if folder:
                with atomic(folder / "history.csv") as temporary:
                    pd.DataFrame(progress["history"]).to_csv(temporary, index=False)
        if checkpoint:
            write().result()


def _step(state, batch, precision, seed, step):
    # Dropout draws from a seed of its own: a learner trained alone or beside others, resumed or not, draws the same.
    torch.manual_seed(derive_seed(seed, *(state.learner.draws or (state.learner.name,)), step))
    state.learner.model.train()
    with torch.autocast(batch.images.device.type, precision, enabled=precision is not None):
        output = state.forward(batch.images)
    named = state.learner.objective(output, batch.targets, batch.soft)
    loss = sum(named.values())
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.schedule.step()
    state.ema.update(step + 1)
    for name, value in named.items():
        state.sums[name] = state.sums.get(name, 0.0) + value.detach().double()
    return loss.detach()


def _check_finite(pending, states, progress, checkpoint, files):
    """Raise Diverged for the first of the losses in `pending`, or of the weights of `states`, that is not finite."""
    losses = [(indices, name, loss) for indices, of_batch in pending for name, loss in of_batch.items()]
    values = torch.stack([loss for *_, loss in losses]).tolist()  # one wait for the device
    faults = [
        (f"the loss of {name} is {value}", indices)
        for (indices, name, _), value in zip(losses, values, strict=True)
        if not math.isfinite(value)
    ]
    # A finite loss can have an infinite gradient; only the next loss would show it, after a checkpoint of NaNs.
    for state in states:
        norms = torch._foreach_norm([p.detach() for p in state.learner.model.parameters()])
        if not torch.stack(norms).isfinite().all():
            faults.append((f"the weights of {state.learner.name} are not finite", pending[-1][0]))
    if not faults:
        return
    what, indices = faults[0]
    shown = ", ".join(str(index if files is None else files[index]) for index in indices)
    kept = (
        f"the last good checkpoint is {checkpoint}" if checkpoint and checkpoint.exists() else "there was no checkpoint"
    )
    raise Diverged(
        f"{what} in epoch {progress['epoch'] + 1}, on the batch of {shown}; {kept}. Lower lr, or use precision=float32, "
        "and start again"
    )


def _end_epoch(states, batches, training, progress, validation, precision):
    epoch, lines = progress["epoch"] + 1, []
    validated = validation is not None and (epoch % training.validate_every == 0 or epoch == training.trained_epochs)
    scores = _validate(states, epoch, validation, batches.device, precision) if validated else {}
    for state in states:
        name = state.learner.name
        line = {"epoch": epoch, "learner": name, "lr": state.schedule.get_last_lr()[0]}
        images = batches.steps * batches.batch_size
        line |= {loss: (total / images).item() for loss, total in state.sums.items()}
        lines.append(line | scores.get(name, {}))
    with interrupt_waits() as interrupted:  # all at once, or the epoch is not over
        for state in states:
            state.sums = {}
        progress["history"] += lines
        progress["epoch"], progress["step"] = epoch, 0
    if interrupted:
        raise KeyboardInterrupt


def _validate(states, epoch, validation, device, precision):
    """Score all states in one pass over the images, which a trunk they share sees once; return {learner's name: scores}."""
    scored = []
    for state in states:
        model = state.learner.model.eval()
        weights = {"ema": state.ema.state} | ({"raw": model.state_dict()} if validation.raw_too else {})
        scored += [(state, kind, tensors) for kind, tensors in weights.items()]

    models = [partial(torch.func.functional_call, state.learner.model, tensors) for state, _, tensors in scored]
    logits = predict_logits(models, validation.images, validation.indices, device, precision=precision)
    scores, targets = {state.learner.name: {} for state in states}, validation.targets[validation.indices]
    for (state, kind, tensors), found in zip(scored, logits, strict=True):
        mine = targets if state.learner.class_indices is None else targets[:, state.learner.class_indices]
        scores[state.learner.name][f"val_map_{kind}"] = score = 100 * mean_average_precision(found, mine)
        score = None if math.isnan(score) else score  # no known positive among the images: nothing to choose by
        # Without a score the latest EMA is kept, as under `last`.
        best = state.best
        if not best or (score is None and kind == "ema") or (score is not None and score > best["score"]):
            kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            state.best = {"score": score, "epoch": epoch, "kind": kind, "state": kept}
    return scores


def _select(state, progress, side_by_side):
    """Put a learner's selected weights into its model; return which they are and the seconds they took."""
    model = state.learner.model
    best = state.best or {"kind": "ema", "epoch": progress["epoch"], "score": None, "state": state.ema.state}
    model.load_state_dict(best["state"])
    model.eval()
    chosen = {"weights": best["kind"], "epoch": best["epoch"], "val_map": best["score"]}
    chosen["history"] = [line for line in progress["history"] if line["learner"] == state.learner.name]
    # Side by side all learners run the same backbone on the same batch: the time is shared out evenly.
    return chosen | {"seconds": progress["seconds"] / side_by_side}
