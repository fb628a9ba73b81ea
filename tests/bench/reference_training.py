"""Training the straightforward way: one model at a time, its teachers asked anew in every step, raw and EMA validated.

Models, losses, optimizer, schedule, precision and memory format are ours, so that the results can be compared: what
differs is how the work is organised. Teachers are in eval mode; in train mode, as the release had them, nobody could store
what they say.
"""

import copy

import numpy as np
import torch

from bench import reference, reference_views
from cpsd_lib.data.augment import views
from cpsd_lib.objectives import Batch
from cpsd_lib.support import pick_precision
from cpsd_lib.training.learner import optimizer_of

INPUT, TEACH, ASK, LEARN, CHECK = (
    *("photos and views", "training teachers", "asking teachers"),
    *("training students", "validation, files"),
)
STAGES = (INPUT, TEACH, ASK, LEARN, CHECK)


def train(model, objective, epoch_of, steps, recipe, device, watch, stage, validate=None):
    """Train `model` in place; return (averages, scores) of its epochs: the state's moving average {name: tensor}, its score.

    epoch_of(number) yields that epoch's `steps` Batches. recipe: TrainParams. validate(model) -> score: asked twice an
    epoch, of the raw weights and of the average; None scores nothing. watch: Stopwatch, whose `stage` the steps are.
    """
    model = model.to(device, memory_format=torch.channels_last)
    precision = pick_precision(recipe.precision, device)
    optimizer, schedule = optimizer_of(model, recipe, steps)
    averaged = copy.deepcopy(model)
    shadow = averaged.state_dict()  # its tensors are the averaged model's own
    step, kept, scores = 0, [], []
    for epoch in range(recipe.epochs):
        model.train()
        for batch in epoch_of(epoch):
            watch.switch(stage)
            with torch.autocast(device.type, precision, enabled=precision is not None):
                output = model(batch.images)
            sum(objective(output, batch).values()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            step += 1
            warm = (1 + step) / (10 + step) if recipe.ema_warmup else 1.0
            reference.average_tensor_by_tensor(shadow, model, min(recipe.ema_decay, warm))
        if validate is not None:
            watch.switch(CHECK)
            validate(model.eval())
            scores.append(validate(averaged.eval()))
        kept.append({name: tensor.clone() for name, tensor in shadow.items()})
    return kept, scores


def ask(teachers, images, precision):
    """Return {branch: merged logits [B, C]} of `images` by {branch: (experts, partition)}, one expert after the other."""
    with torch.no_grad(), torch.autocast(images.device.type, precision, enabled=precision is not None):
        return {
            branch: partition.merge([expert(images).logits.float() for expert in experts])
            for branch, (experts, partition) in teachers.items()
        }


def asked(batches, teachers, precision, watch):
    """Yield the Batches of an epoch with what the teachers say of each, asked now."""
    for batch in batches:
        watch.switch(ASK)
        soft = ask(teachers, batch.images, precision)
        yield Batch(batch.images, batch.targets, batch.indices, soft)
        watch.switch(INPUT)


def epoch_from_files(photos, view, recipe, size, seed, number, device, watch):
    """Yield one epoch's Batches: every photo of it opened, resized and augmented now; view: ViewRecipe."""
    watch.switch(INPUT)
    rows = photos.rows[views.permutation(seed, number, photos.training)]
    batch = min(recipe.batch_size, len(rows))
    made = reference_views.drawn(view, seed, number, rows)
    for start in range(0, len(rows) - batch + 1, batch):
        chosen = range(start, start + batch)
        pictures = [made(i, reference_views.decoded(photos.paths[rows[i]], size)) for i in chosen]
        images = reference_views.as_tensor(pictures).to(device).contiguous(memory_format=torch.channels_last)
        targets = torch.from_numpy(photos.targets[rows[start : start + batch]]).float().to(device)
        yield Batch(images, targets, rows[start : start + batch])
        watch.switch(INPUT)


def logits_from_files(model, photos, rows, size, device, batch_size=128, precision=None):
    """Return logits [n, C] (numpy) of `rows`, every photo opened and resized now."""
    found = []
    for start in range(0, len(rows), batch_size):
        pictures = [reference_views.decoded(photos.paths[row], size) for row in rows[start : start + batch_size]]
        images = reference_views.as_tensor(pictures).to(device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision is not None):
            found.append(model(images).logits.float().cpu().numpy())
    return np.concatenate(found)
