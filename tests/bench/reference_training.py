"""Training the straightforward way: one model at a time, its teachers computed in every step, raw and EMA validated.

Models, losses, optimizer, schedule, precision and memory format are ours, so that the results can be compared: what
differs is how the work is organised. Teachers are in eval mode; in train mode, as the release had them, their logits
would depend on the batch and nobody could store them.
"""

import copy

import numpy as np
import torch

from bench import reference, reference_views
from bench.timing import INPUT, SOFT, VALIDATION
from bench.workspace import SEED, TRAINING
from cpsd_lib.data import permutation
from cpsd_lib.training.batches import Batch
from cpsd_lib.training.learner import optimizer_of


def train(w, learner, batches, stage=None, validated=False):
    """Train a Learner for an epoch of Batches; leave the moving average of its weights in its model.

    validated: raw weights and average are scored, as the release had it. stage: what the time of the steps counts as.
    """
    model = learner.model.to(w.device, memory_format=torch.channels_last).train()
    optimizer, schedule = optimizer_of(model, TRAINING, w.steps)
    averaged = copy.deepcopy(model)
    shadow = averaged.state_dict()  # its tensors are the averaged model's own
    for step, batch in enumerate(batches, 1):
        w.switch(stage)
        with w.autocast():
            output = model(batch.images)
        sum(learner.objective(output, batch.targets, batch.soft).values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        reference.average_tensor_by_tensor(shadow, model, min(TRAINING.ema_decay, (1 + step) / (10 + step)))
    w.switch(VALIDATION)
    for one in (model, averaged) if validated else ():
        _score(w, one.eval(), learner.class_indices)
    model.load_state_dict(shadow)


def with_teachers(w, batches, teachers):
    """Yield the Batches of an epoch and soft targets of {branch: PartTeachers}, computed now, expert by expert."""
    for batch in batches:
        w.switch(SOFT)
        with torch.no_grad(), w.autocast():
            soft = {
                branch: one.partition.merge([expert(batch.images).logits.float() for expert in one.experts])
                for branch, one in teachers.items()
            }
        yield Batch(batch.images, batch.targets, batch.indices, soft)
        w.switch(INPUT)


def epoch_from_files(w, view):
    """Yield the Batches of an epoch: every photo opened, resized and augmented now; view: a name in VIEWS."""
    w.switch(INPUT)
    order = permutation(SEED, 0, len(w.trained_on))[: w.steps * w.settings.batch]
    for chosen in np.split(order, w.steps):
        images = reference_views.tensor_of(w, chosen, view)
        yield Batch(images, torch.from_numpy(w.targets[chosen]).float().to(w.device), chosen)
        w.switch(INPUT)


def _score(w, model, classes):
    images = reference_views.tensor_of(w, w.held_out)
    with torch.inference_mode(), w.autocast():
        logits = model(images).logits.float().cpu().numpy()
    return reference.mean_average_precision(logits, w.targets[w.held_out][:, classes])
