"""The parts of the benchmark: a Pair each, the reference against the functions of cpsd_lib as they are."""

import copy

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from bench import reference, reference_training
from bench.timing import Pair, seconds, worst
from bench.workspace import SEED, TRAINING, apart
from cpsd_lib.evaluation import average_precision, mean_average_precision
from cpsd_lib.losses import led
from cpsd_lib.models import build_model
from cpsd_lib.objectives import SelfDistillation
from cpsd_lib.support import pick_device
from cpsd_lib.training import Learner, fit, predict_logits
from cpsd_lib.training.learner import Ema

DECAY, UPDATES = 0.9997, 5
# As a share of the way a student went. Half-precision targets leave it at 0.04 to 0.06 (mobilenetv2_100, 4 to 16
# steps); with the targets of other photos it lay at 0.5 to 0.7 (0.2 in the smoke test), of other classes at 1.0.
STUDENTS_APART = 0.15


def scoring(settings):
    """Return the Pairs of mAP: ours against a Python loop over tensors, a loop over classes, and scikit-learn."""
    targets = random_targets(*settings.scored)
    scores = (
        np.random.default_rng(SEED).normal(size=targets.shape) + 2 * targets
    )  # float64: no ties, whose order is luck
    few = slice(None, None, 5)  # from the frequent to the rare; 80 classes would take the loop a minute a run

    def pair(name, by_reference, classes=slice(None), goal=None):
        mine, labels = np.ascontiguousarray(scores[:, classes]), np.ascontiguousarray(targets[:, classes])
        return Pair(
            name=f"mAP: {name}",
            reference=lambda _: by_reference(mine, labels),
            ours=lambda _: average_precision(mine, labels),
            difference=lambda a, b: np.abs(a - b).max(),
            tolerance=1e-9,
            about=f"AP of each class of {len(mine):,} images x {mine.shape[1]} classes",
            goal=goal,
        )

    return [
        pair("Python loop over tensors", reference.average_precision_walked, few, goal=500),
        pair("class by class in numpy", reference.average_precision_class_by_class),
        pair("scikit-learn", lambda mine, labels: average_precision_score(labels, mine, average=None), goal=10),
    ]


def random_targets(images, classes):
    """Return targets int8 [N, C] with the few frequent and many rare classes of real photos, each with a positive."""
    frequencies = 0.5 * np.arange(1, classes + 1) ** -0.9
    targets = (np.random.default_rng(SEED).random((images, classes)) < frequencies).astype(np.int8)
    targets[0] = 1
    return targets


def embeddings(settings):
    """Return the Pair of LED's two losses and their gradient: ours against a loop over classes and one over images."""
    (batch, classes, width), device = settings.led, pick_device(settings.device)
    rng = np.random.default_rng(SEED)
    student, teacher = torch.from_numpy(rng.normal(size=(2, batch, classes, width)).astype(np.float32)).to(device)
    often = np.arange(1, classes + 1) ** -0.9  # three labels an image
    held = rng.random((batch, classes)) < np.minimum(0.9, 3 * often / often.sum())
    targets = torch.from_numpy(held.astype(np.float32)).to(device)

    def way(losses):
        def work(leaf):
            of_classes, of_images = losses(leaf, teacher, targets)
            (of_classes + of_images).backward()
            return of_classes.detach(), of_images.detach(), leaf.grad

        return work

    def relative(a, b):
        return ((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item()

    return Pair(
        name="LED and its gradient",
        prepare=lambda: student.clone().requires_grad_(),
        reference=way(reference.led_group_by_group),
        ours=way(led),
        difference=lambda a, b: worst(relative(x, y) for x, y in zip(a, b, strict=True)),
        tolerance=1e-5,
        about=f"both losses and the gradient of {batch} images x {classes} classes x {width}, relative to the largest",
        goal=5,
    )


def averaging(settings):
    """Return the Pair of the moving average of a model's weights: all tensors at once against one after the other."""
    start = build_model(settings.averaged, 80).to(pick_device(settings.device))
    moved = copy.deepcopy(start)
    torch.manual_seed(SEED)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(0.01 * torch.randn_like(p))

    def prepare():
        model = copy.deepcopy(start)
        ema = Ema(model, DECAY, warmup=False)
        model.load_state_dict(moved.state_dict())
        return ema

    def by_reference(ema):
        shadow = ema.state
        for _ in range(UPDATES):
            reference.average_tensor_by_tensor(shadow, moved, DECAY)
        return shadow

    def by_ours(ema):
        for step in range(UPDATES):
            ema.update(step + 1)
        return ema.state

    return Pair(
        name=f"EMA of {settings.averaged}",
        prepare=prepare,
        reference=by_reference,
        ours=by_ours,
        difference=lambda a, b: worst((a[name] - b[name]).abs().max().item() for name in a),
        tolerance=1e-6,
        about=f"{UPDATES} updates of {len(start.state_dict())} tensors",
        goal=10,
    )


def views(w, view, goal=None, decode=False):
    """Return the Pair of the input: a cache and one view of a batch for all teachers, against files again for each.

    decode: the first decode is in our time.
    """
    many = 2 * w.settings.k

    def by_reference(_):
        for _ in range(many):
            images = [batch.images for batch in reference_training.epoch_from_files(w, view)]
        return torch.cat(images)

    def by_ours(_):
        pixels = w.decoded() if decode else w.images
        return torch.cat([batch.images for batch in w.batches(view, pixels).epoch(0)])

    # Pillow rounds to whole levels after each pass of a crop and after the light, ours once; a GPU divides by 255 as a
    # product with 1 / 255.
    exact = 0 if w.device.type == "cpu" else 1e-3
    when = "ours decodes first, for this epoch alone" if decode else "ours decoded before"
    return Pair(
        name=f"views of {many} teachers, {view}" + (", first decode counted" if decode else ""),
        reference=by_reference,
        ours=by_ours,
        difference=levels_apart,
        tolerance=3 if view == "default" else exact,
        about=f"levels of 255 in the {many} teachers' views of {len(w.trained_on)} photos; {when}",
        goal=goal,
    )


def levels_apart(a, b):
    """Return the largest difference of two image tensors in [0, 1], in levels of 255."""
    return 255 * (a - b).abs().max().item()


def student(w):
    """Return the Pair of a student's epoch with stored soft targets against 2k teachers computed in each step."""
    teachers, start = w.teachers(w.experts(("co", "dis"))), w.student()
    took, soft = seconds(w.stored, teachers, w.batches())
    objective = SelfDistillation({"co": 0.5, "dis": 0.5})

    def by_reference(learner):
        reference_training.train(w, learner, reference_training.with_teachers(w, w.batches().epoch(0), teachers))
        return learner.model

    def by_ours(learner):
        fit(learner, w.batches(soft=soft), TRAINING)
        return learner.model

    return Pair(
        name=f"a student's epoch beside {2 * w.settings.k} teachers",
        prepare=lambda: Learner("student", w.student(), objective),
        reference=by_reference,
        ours=by_ours,
        difference=lambda a, b: apart([a], [b], [start]),
        tolerance=STUDENTS_APART,
        about=f"EMA weights, as a share of the way they went; {len(w.trained_on)} photos from the cache on both sides; "
        f"soft targets stored before, once, in {took:.3g} s",
        goal=3.5,
    )


def teachers(w):
    """Return the Pair of 2k teachers trained side by side on a batch against one after the other, both by our loop."""

    def experts():
        return w.experts(("co", "dis"))

    def trained(groups):
        for group in groups:
            fit(group, w.batches(), TRAINING)
        return [expert.model for group in groups for expert in group]

    def distance(a, b):
        states = (zip(x.state_dict().values(), y.state_dict().values(), strict=True) for x, y in zip(a, b, strict=True))
        return worst((mine - other).abs().max().item() for pairs in states for mine, other in pairs)

    return Pair(
        name=f"{2 * w.settings.k} teachers' epoch, side by side",
        prepare=experts,
        reference=lambda experts: trained([[expert] for expert in experts]),
        ours=lambda experts: trained([experts]),
        difference=distance,
        tolerance=0 if w.device.type == "cpu" else 1e-4,  # a GPU's atomic additions have no order
        about=f"EMA weights of all; {len(w.trained_on)} cached photos, our loop twice",
    )


def validation(w):
    """Return the Pair of an epoch's validation: the average alone against raw weights and average, class by class."""
    raw = w.student().to(w.device, memory_format=torch.channels_last).eval()
    averaged, indices = copy.deepcopy(raw), np.arange(len(w.paths))

    def score(model, by):
        (logits,) = predict_logits([model], w.images, indices, w.device, precision=w.precision)
        return logits, by(logits, w.targets)

    def by_reference(_):
        score(raw, reference.mean_average_precision)
        return score(averaged, reference.mean_average_precision)

    return Pair(
        name="validation of an epoch",
        reference=by_reference,
        ours=lambda _: score(averaged, mean_average_precision),
        difference=lambda a, b: worst([np.abs(a[0] - b[0]).max(), abs(a[1] - b[1])]),
        tolerance=1e-9,
        about=f"the average's logits and mAP; {len(indices)} photos from the cache; raw and EMA against EMA alone",
    )
