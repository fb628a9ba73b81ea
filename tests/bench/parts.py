"""The parts of the benchmark: a Pair each, the reference against the functions of cpsd_lib as they are."""

import copy

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from bench import reference, reference_training, reference_views
from bench.timing import Pair, Stopwatch, Unwatched
from bench.workspace import apart, decode_once, distance, weights_of, worst
from cpsd_lib import losses
from cpsd_lib.data.augment import views
from cpsd_lib.data.augment.views import VIEWS
from cpsd_lib.evaluation import metrics
from cpsd_lib.models.classifier import build_model
from cpsd_lib.models.folding import fold_teachers
from cpsd_lib.objectives import SelfDistillation
from cpsd_lib.support import pick_device
from cpsd_lib.teachers import PartTeachers
from cpsd_lib.training.batches import predict
from cpsd_lib.training.learner import Ema, Learner
from cpsd_lib.training.soft_targets import SoftTargets, TargetSource, fill

DECAY, UPDATES = 0.9997, 5
# As a share of the way a student went. Half-precision targets leave it at 0.04 to 0.06 (mobilenetv2_100, 4 to 16 steps); one
# taught by the targets of other photos lay at 0.5 to 0.7 (0.2 in the smoke test), by those of other classes at 1.0.
STUDENTS_APART = 0.15


# ---- scores, losses, updates ---------------------------------------------------------------------------------------


def scoring(settings):
    """Return the Pairs of mAP: ours against a Python loop over tensors, a loop over classes, and scikit-learn."""
    scores, targets = _scores(*settings.scored, settings.seed)
    images = len(scores)
    few = slice(0, None, -(-scores.shape[1] // settings.walked))  # from the frequent to the rare
    tensors = torch.from_numpy(scores[:, few].copy()), torch.from_numpy(targets[:, few].copy())

    def pair(name, by_reference, chosen, goal):
        mine, labels = np.ascontiguousarray(scores[:, chosen]), np.ascontiguousarray(targets[:, chosen])
        return Pair(
            f"mAP: {name}",
            lambda: by_reference,
            lambda: lambda: metrics.average_precision(mine, labels),
            lambda a, b: np.abs(np.asarray(a) - b).max(),
            **{"tolerance": 1e-9, "compared": "AP of each class", "goal": goal},
            counted=f"{images:,} images x {mine.shape[1]} classes",
        )

    every = slice(None)
    return [
        pair("Python loop over tensors", lambda: reference.average_precision_walked(*tensors), few, 500),
        pair(
            "class by class in numpy", lambda: reference.average_precision_class_by_class(scores, targets), every, None
        ),
        pair("scikit-learn", lambda: average_precision_score(targets, scores, average=None), every, 10),
    ]


def _scores(images, classes, seed):
    """Return scores float32 without ties (their order would be the reference's luck) and targets int8, both [N, C]."""
    rng = np.random.default_rng(seed)
    often = 0.5 * np.arange(1, classes + 1) ** -0.9  # the few frequent classes and the many rare ones of real photos
    targets = (rng.random((images, classes)) < often).astype(np.int8)
    targets[0] = 1
    rank = np.argsort(np.argsort(rng.normal(size=(images, classes)) + 2 * targets, axis=0), axis=0)
    return (rank / images).astype(np.float32), targets


def embeddings(settings):
    """Return the Pair of LED's two losses and their gradient: ours against a loop over classes and one over images."""
    rng, device = np.random.default_rng(settings.seed), pick_device(settings.device)
    batch, classes, width = settings.led
    student, teacher = (
        torch.from_numpy(rng.normal(size=(batch, classes, width)).astype(np.float32)).to(device) for _ in range(2)
    )
    often = np.minimum(0.9, 3 * np.arange(1, classes + 1) ** -0.9 / (np.arange(1, classes + 1) ** -0.9).sum())
    targets = torch.from_numpy((rng.random((batch, classes)) < often).astype(np.float32)).to(device)

    def way(led):
        leaf = student.clone().requires_grad_()

        def work():
            of_classes, of_images = led(leaf, teacher, targets)
            (of_classes + of_images).backward()
            return torch.stack([of_classes, of_images]).detach(), leaf.grad

        return work

    return Pair(
        "LED and its gradient",
        lambda: way(reference.led_group_by_group),
        lambda: way(losses.led),
        lambda a, b: worst(relative(x, y) for x, y in zip(a, b, strict=True)),
        **{"tolerance": 1e-5, "compared": "both losses and the gradient, relative to the largest", "goal": 5},
        counted=f"{batch} images x {classes} classes x {width}, {int(targets.sum())} labels, forward and backward",
    )


def relative(a, b):
    """Return the largest difference of two tensors as a share of the first one's largest value."""
    return ((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item()


def averaging(settings):
    """Return the Pair of the moving average of a model's weights: all tensors at once against one after the other."""
    model = build_model(settings.averaged, 80).to(pick_device(settings.device))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=generator).to(p.device))

    def by_reference():
        shadow = {name: tensor.clone() for name, tensor in start.items()}

        def work():
            for _ in range(UPDATES):
                reference.average_tensor_by_tensor(shadow, model, DECAY)
            return shadow

        return work

    def by_ours():
        ema = Ema(model, DECAY, False)
        for shadow, name in zip(ema.shadow, ema.names, strict=True):
            shadow.copy_(start[name])

        def work():
            for step in range(UPDATES):
                ema.update(step + 1)
            return ema.state()

        return work

    return Pair(
        f"EMA of {settings.averaged}",
        *(by_reference, by_ours, lambda a, b: worst((a[n] - b[n]).abs().max().item() for n in a)),
        **{"tolerance": 1e-6, "compared": "all weights and counts", "goal": 10},
        counted=f"{UPDATES} updates of {len(start)} tensors",
    )


# ---- photos --------------------------------------------------------------------------------------------------------


def photos(workspace):
    """Return the Pairs of the input: a cache and one view of a batch for all teachers, against files again for each."""
    mine, size = workspace.photos.part(workspace.settings.images // 2), workspace.settings.size
    images, everyone = decode_once(mine, size, workspace.folder / "cache"), 2 * workspace.settings.k

    def decoded():
        return torch.cat([reference_views.as_tensor([reference_views.decoded(path, size)]) for path in mine.paths])

    def from_cache():
        return torch.cat([views.test_view(torch.from_numpy(images[[row]])) for row in range(len(images))])

    plain = Pair(
        "photos as they are, each time again",
        *(lambda: decoded, lambda: from_cache, levels_apart),
        **{"tolerance": 1, "compared": "levels of 255", "items": len(mine.paths), "unit": "photos"},
        counted=f"{len(mine.paths)} photos to {size} px: a validation's input; ours decoded before",
    )
    default = f"flip, crop, light and cutout; the {everyone} teachers' views of {mine.training} photos"
    release = f"cutout and RandAugment; the {everyone} teachers' views of {mine.training} photos"
    return [
        plain,
        _views(workspace, mine, images, "default", f"{default}; ours decoded before", 6),
        _views(workspace, mine, None, "default", f"{default}, one epoch; ours decodes first, for this epoch alone", 6),
        _views(workspace, mine, images, "release", f"{release}; ours decoded before", None),
    ]


def _views(workspace, mine, images, view, counted, goal):
    recipe, size, seed = workspace.recipe(view=view), workspace.settings.size, workspace.settings.seed
    everyone, device = 2 * workspace.settings.k, workspace.device

    def by_reference():
        for _ in range(everyone):
            epoch = reference_training.epoch_from_files(mine, VIEWS[view], recipe, size, seed, 0, device, Stopwatch())
            found = [batch.images for batch in epoch]
        return torch.cat(found)

    def by_ours():
        root = workspace.fresh()

        def work():
            pixels = decode_once(mine, size, root) if images is None else images
            return torch.cat([batch.images for batch in workspace.batches(recipe, mine, pixels).epoch(0)])

        return work

    steps = mine.training // recipe.batch_size
    return Pair(
        f"views of {everyone} teachers, {view}" + (", first decode counted" if images is None else ""),
        *(lambda: by_reference, by_ours, levels_apart),
        **{"tolerance": _rounding(view, device), "compared": "levels of 255", "goal": goal, "counted": counted},
        **{"items": steps * recipe.batch_size * everyone, "unit": "teacher-views"},
    )


def _rounding(view, device):
    if view == "default":
        return 3  # Pillow rounds to whole levels after each pass of the crop and after the light, ours once
    return 0 if device.type == "cpu" else 1e-3  # a GPU divides by 255 as a product with 1 / 255


def levels_apart(a, b):
    """Return the largest difference of two image tensors in [0, 1], in levels of 255."""
    return 255 * (a - b).abs().max().item()


# ---- training ------------------------------------------------------------------------------------------------------


def student(workspace):
    """Return (Pair of a student's epoch with stored targets against 2k teachers asked in each step, seconds to store them)."""
    recipe, device, k = workspace.recipe(), workspace.device, workspace.settings.k
    merged = {}
    for branch in ("co", "dis"):
        experts = [learner.model for learner in workspace.learners([branch], recipe)]
        merged[branch] = PartTeachers(experts, workspace.partitions[branch]).to(
            device, memory_format=torch.channels_last
        )
    watch, root = Stopwatch(), workspace.folder / "stored"
    stores = {
        branch: SoftTargets(root / f"{branch}.f16", {}, workspace.photos.rows, workspace.classes, 1)
        for branch in merged
    }
    watch.switch("fill")
    folded = fold_teachers(merged, workspace.image())
    stored = TargetSource(stores, lambda: folded, device, workspace.precision())
    fill(stored, workspace.batches(recipe), 1)
    watch.switch(None)
    start = weights_of(workspace.model(workspace.classes, "student"))
    objective = SelfDistillation({"co": 0.5, "dis": 0.5}, "mse", recipe.gamma_neg, recipe.gamma_pos, recipe.clip)

    def by_reference():
        model, batches, ignored = workspace.model(workspace.classes, "student"), workspace.batches(recipe), Unwatched()
        asked = {branch: (list(one.experts), one.partition) for branch, one in merged.items()}

        def epoch_of(number):
            return reference_training.asked(batches.epoch(number), asked, workspace.precision(), ignored)

        def work():
            arguments = (objective, epoch_of, batches.steps, recipe, device, ignored, "student")
            return reference_training.train(model, *arguments)[0][-1]

        return work

    def by_ours():
        model = workspace.model(workspace.classes, "student")
        batches = workspace.batches(recipe, soft=stored)
        learner = Learner("student", model, objective, list(range(workspace.classes)), {})

        def work():
            workspace.fit([learner], batches, recipe)
            return weights_of(model)

        return work

    pair = Pair(
        f"a student's epoch beside {2 * k} teachers",
        *(by_reference, by_ours, lambda a, b: apart(a, b, start)),
        **{"tolerance": STUDENTS_APART, "compared": "EMA weights, as a share of the way they went", "goal": 3.5},
        counted=f"{workspace.photos.training} photos from the cache on both sides; targets stored before",
    )
    return pair, watch.seconds["fill"]


def teachers(workspace):
    """Return the Pair of 2k teachers trained side by side on a batch against one after the other, both by our loop."""
    recipe, k = workspace.recipe(), workspace.settings.k
    mine = workspace.photos.part(max(recipe.batch_size, workspace.settings.images // 4))
    # Held-out photos lie elsewhere in the cache; the first rows are those of all photos.
    images = workspace.images[: mine.training]

    def way(together):
        learners, batches = workspace.learners(("co", "dis"), recipe), workspace.batches(recipe, mine, images)

        def work():
            for group in [learners] if together else [[learner] for learner in learners]:
                workspace.fit(group, batches, recipe)
            return [weights_of(learner.model) for learner in learners]

        return work

    bitwise = workspace.device.type == "cpu"  # a GPU's atomic additions have no order
    return Pair(
        f"{2 * k} teachers' epoch, side by side",
        *(lambda: way(False), lambda: way(True), distance),
        **{"tolerance": 0 if bitwise else 1e-4, "compared": "EMA weights of all"},
        counted=f"{mine.training} photos from the cache on both sides, our loop on both sides",
    )


def validation(workspace):
    """Return the Pair of an epoch's validation: the average alone against raw weights and average, class by class."""
    model = workspace.model(workspace.classes, "validated").to(workspace.device, memory_format=torch.channels_last)
    averaged, precision = copy.deepcopy(model).eval(), workspace.precision()
    model.eval()
    rows, device, images = workspace.photos.held_out, workspace.device, workspace.images
    targets = workspace.photos.targets[rows]

    def score(forward, average_precision):
        logits = predict(lambda batch: forward(batch).logits, images, rows, device, precision=precision)
        return logits, reference.mean_of_known(average_precision(logits, targets))

    def by_reference():
        score(model, reference.average_precision_class_by_class)
        return score(averaged, reference.average_precision_class_by_class)

    def by_ours():
        return score(averaged, metrics.average_precision)

    return Pair(
        "validation of an epoch",
        *(lambda: by_reference, lambda: by_ours),
        lambda a, b: worst([np.abs(a[0] - b[0]).max(), abs(a[1] - b[1])]),
        **{"tolerance": 1e-9, "compared": "the average's logits and mAP"},
        counted=f"{len(rows)} held-out photos from the cache on both sides; raw and EMA against EMA alone",
    )
