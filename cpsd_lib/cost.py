"""What a run will cost, before anyone pays: weights, FLOP and GPU memory, from shapes alone; nothing is decoded or trained."""

import math
import os
from dataclasses import dataclass

import torch

from cpsd_lib.hardware import pick_precision
from cpsd_lib.meta_models import MetaModel, activation_bytes, on_meta, own_share, tail_on_meta
from cpsd_lib.param_files import ParameterError, blamed_on, repo_root
from cpsd_lib.partition import Partition
from cpsd_lib.rows import FROM_MODEL, ROWS, branches_heard, branches_of, equal_epochs, views_of, work_of
from cpsd_lib.words import counted


@dataclass(frozen=True)
class Cost:
    """What a run costs: compute in EFLOP (1e18 FLOP, a multiply-add is 2) over all seeds, memory in GiB (2**30 bytes)."""

    model: str
    num_classes: int
    size: int  # pixels, both sides
    parameters: int  # of the student, which is over all classes
    forward_gflop: float  # 1e9 FLOP an image, of the student
    teacher_parameters: int  # of a teacher over all classes
    teacher_forward_gflop: float
    seeds: int
    teachers: int  # models a seed, trained side by side (but for the one that takes CPSD's time)
    students: int  # models a seed, trained one after the other
    teacher_batch: int  # images
    student_batch: int  # images
    teacher_gib: float  # GPU memory while the teachers train; 0 when there is none
    student_gib: float  # GPU memory while a student trains; 0 when there is none
    teacher_eflop: float
    target_eflop: float  # what the teachers tell the students: logits once and stored, embeddings anew in every batch
    student_eflop: float
    validation_eflop: float  # choosing the epoch
    evaluation_eflop: float  # scoring on the test splits
    trained_images: int  # forward and backward passes of one image through one model
    cpsd_baselines: float | None  # + CPSD from scratch, in trainings of one baseline; None: not asked for

    @property
    def stages(self):
        """The run's parts, {name: EFLOP}."""
        return {
            "teachers": self.teacher_eflop,
            "soft targets": self.target_eflop,
            "students": self.student_eflop,
            "validation": self.validation_eflop,
            "evaluation": self.evaluation_eflop,
        }

    @property
    def eflop(self):
        """Compute of the whole run, EFLOP."""
        return sum(self.stages.values())

    @property
    def gpu_gib(self):
        """GPU memory of the larger training, GiB."""
        return max(self.teacher_gib, self.student_gib)

    def hours(self, tflops):
        """Return the hours of the whole run at `tflops` sustained, 1e12 FLOP a second."""
        return self.eflop * 1e6 / tflops / 3600


# ---- compute -------------------------------------------------------------------------------------------------------


def estimate(params, num_classes, train_images, test_images):
    """Return the Cost of Params `params` on `train_images` and `test_images` (all test splits) of `num_classes` classes.

    A training step counts as 3 forwards, frozen layers or not, but for the stages that teachers.share shares: 1, once for
    all teachers; a teacher as a model over all classes, though its head is smaller. `select: val` holds out val_share of
    the training images, as if the data had no val split of its own.
    Memory: weights, moving average and optimizer of all models that train side by side, gradients and activations of
    one, since they take a batch in turn. It is an estimate, without the allocator's and cuDNN's workspace, without
    torch.compile, and with the attention matrices that a fused kernel does not keep; precision auto is bfloat16, as on a
    GPU.
    Raises ParameterError for a model that cannot be built, too few images, or more parts than classes.
    """
    released = params.evaluation.released is not None
    # As run.stages_of has it: a released checkpoint is scored and no more, labels without images are only looked at.
    rows = [] if released or params.data.kind == "labels" else params.student.rows
    if rows and train_images < 2:
        raise ParameterError(f"data: a training needs at least 2 images, not {train_images}")
    usual = _Training(params, params.student, train_images, test_images)
    size, teaches = params.data.size, params.teacher_model or params.model
    with blamed_on("model"):
        student = MetaModel(on_meta(params.model, num_classes), size)
    with blamed_on("teacher_model"):
        teacher = MetaModel(on_meta(teaches, num_classes), size) if params.teacher_model else student
    tail, own = teacher, 1.0
    if params.teachers.share and rows:
        with blamed_on("teachers.share"):
            tail = tail_on_meta(teaches, num_classes, size, params.teachers.share)
            own = own_share(teaches, num_classes, size, params.teachers.share)
    teaching, learning = _trainings(params, rows, num_classes, train_images, test_images, own)
    seeds, scored = 1 if released else params.seeds, 1 if released else len(rows)

    def eflop(by_teachers, by_students):  # images that teachers and students look at, a seed
        return seeds * (by_teachers * teacher.flop + by_students * student.flop) / 1e18

    def passes(trainings):
        return sum(training.passes for training in trainings)

    def looks(trainings):
        return sum(training.looks for training in trainings)

    def speaking(branches, images):  # forward passes of the teachers of some branches, each asked about `images`
        return _forwards({branch: teaching[branch] for branch in branches}, own, 1, lambda training: images)

    taught = [training for branch in teaching.values() for training in branch]  # one for each teacher
    asked = {row: ROWS[row].teachers for row in learning if ROWS[row].embeds}
    beside = max((sum(len(teaching[branch]) for branch in asked[row]) for row in asked), default=0)
    # Of the first epochs' batches; what their last, short batch left out may come up in a later epoch.
    stored = speaking(branches_heard(learning), min(usual.passes, views_of(params.student) * usual.images))
    # Without a model of its own the teacher of `whole` is the baseline, a row of the table already.
    merged = [branch for branch in teaching if branch != "whole" or params.teacher_model]
    return Cost(
        model=params.model.name,
        num_classes=num_classes,
        size=params.data.size,
        parameters=student.parameters,
        forward_gflop=student.flop / 1e9,
        teacher_parameters=teacher.parameters,
        teacher_forward_gflop=teacher.flop / 1e9,
        seeds=seeds,
        teachers=len(taught),
        students=len(learning),
        teacher_batch=_Training(params, params.teachers, train_images, test_images).batch,
        student_batch=usual.batch,
        teacher_gib=_teacher_bytes(teaching, teacher, tail) / 2**30,
        student_gib=_student_bytes(learning, student, beside * tail.weights) / 2**30,
        teacher_eflop=eflop(_forwards(teaching, own, 3, lambda training: training.passes), 0),
        target_eflop=eflop(stored + sum(speaking(asked[row], learning[row].passes) for row in asked), 0),
        student_eflop=eflop(0, 3 * passes(learning.values())),
        validation_eflop=eflop(_forwards(teaching, own, 1, lambda training: training.looks), looks(learning.values())),
        evaluation_eflop=eflop(sum(speaking([branch], test_images) for branch in merged), scored * test_images),
        trained_images=seeds * (passes(taught) + passes(learning.values())),
        cpsd_baselines=_cpsd_baselines(params, num_classes, own) if "cpsd" in learning else None,
    )


def as_computed(params, device):
    """Return Params whose precision is what the torch device makes of it: on a CPU in most cases float32, twice the memory."""
    floats = {torch.bfloat16: "bfloat16", torch.float16: "float16", None: "float32"}

    def computed(training):
        return training.model_copy(update={"precision": floats[pick_precision(training.precision, device)]})

    return params.model_copy(update={"teachers": computed(params.teachers), "student": computed(params.student)})


def _cpsd_baselines(params, num_classes, own):
    k = _parts(params.partition, num_classes)["co"]
    return work_of("cpsd", params.teachers, params.student, k, own) / params.teachers.trained_epochs


def _trainings(params, rows, num_classes, train_images, test_images, own):
    """Return ({branch: the _Training of each of its teachers}, {row: its student's _Training}) of one seed."""
    if not rows:
        return {}, {}
    parts = _parts(params.partition, num_classes)
    alone, long = equal_epochs(params.teachers, params.student, parts["co"], own)

    def training(recipe, **change):
        return _Training(params, recipe.model_copy(update=change), train_images, test_images)

    # The rows that may take CPSD's time: teaching.teacher_training and distill's _student_training.
    teacher, longer = training(params.teachers), training(params.teachers, epochs=long, stop_after=None)
    more = {"epochs": params.teachers.more_epochs, "stop_after": None} if params.teachers.more_epochs else {}
    again = training(params.teachers, **more)
    of = {"whole": teacher, "long": longer}
    student, longest = training(params.student), training(params.teachers, epochs=alone, stop_after=None)
    teaching = {branch: [of.get(branch, again)] * parts[branch] for branch in branches_of(rows)}
    return teaching, {row: longest if row == "baseline_long" else student for row in rows if row != "baseline"}


def _forwards(teaching, own, step, images):
    """Return the passes, in forwards of one image through one whole teacher, of {branch: its _Trainings}.

    images(training): how many it looks at; step: forwards an image. Of a teacher of a part the share `own` is its own, and
    the trunk's remainder is run forward, once for all.
    """
    whole = sum(images(training) for branch in teaching if branch in FROM_MODEL for training in teaching[branch])
    parts = [images(t) for branch, found in teaching.items() if branch not in FROM_MODEL for t in found]
    return step * (whole + own * sum(parts)) + (1 - own) * max(parts, default=0)


def _teacher_bytes(teaching, model, tail):
    """Return the GPU memory, in bytes, of stage 03: all teachers side by side, then the long one by itself.

    tail: the MetaModel of a teacher of a part, where it shares its first stages; those start when the baseline is trained.
    """
    together = [training for branch, found in teaching.items() if branch != "long" for training in found]
    parts = [training for branch, found in teaching.items() if branch not in FROM_MODEL for training in found]
    long = teaching.get("long", [])
    if tail is not model and parts:
        peak = max(together[0].bytes(model, 1), parts[0].bytes(tail, len(parts)) + 2 * model.weights)
    else:
        peak = together[0].bytes(model, len(together)) if together else 0
    if long:
        peak = max(peak, long[0].bytes(model, 1) + len(together) * tail.weights)
    return peak


def _student_bytes(learning, model, beside):
    """Return the GPU memory, in bytes, of stage 04: one student and `beside`, the teachers asked for embeddings."""
    if not learning:
        return 0
    return beside + max(training.bytes(model, 1) for training in set(learning.values()))


class _Training:
    """A training of one model, in images: those it trains on, its passes over them, and those it looks at to choose the epoch."""

    def __init__(self, params, training, train_images, test_images):
        paper = params.protocol == "paper"
        self.half, self.selects = training.precision != "float32", paper or training.select == "val"
        held_out = max(1, int(training.val_share * train_images)) if self.selects and not paper else 0
        self.images = train_images - held_out
        self.batch = max(1, min(training.batch_size, self.images))
        # An epoch ends with its last whole batch.
        self.passes = self.images // self.batch * self.batch * training.trained_epochs
        # The release also chose between raw and EMA weights, on test.
        looked_at = 2 * test_images if paper else held_out
        self.looks = looked_at * math.ceil(training.trained_epochs / training.validate_every)

    def bytes(self, model, count):
        """Return the GPU memory, in bytes, of `count` copies of a MetaModel that train side by side."""
        trained = [p for p in model.made.parameters() if p.requires_grad]
        gradients = sum(p.nbytes for p in trained)
        # Weights, moving average, and the best so far where one is chosen; both moments of Adam.
        kept = (3 if self.selects else 2) * model.weights + 2 * gradients
        # Autocast keeps a half copy of what it multiplies with until the backward pass is through.
        copies = sum(2 * p.numel() for p in trained if p.ndim > 1) if self.half else 0
        images = torch.empty(self.batch, 3, model.size, model.size, device="meta")
        return count * kept + gradients + copies + activation_bytes(model.made, images, self.half)


def _parts(settings, num_classes):
    """Return {branch: number of teachers}."""
    if settings.use_released:
        files = {"co": settings.released_co, "dis": settings.released_dis}
        with blamed_on("partition"):
            parts = {b: len(Partition.load(_on_disk(file), num_classes)) for b, file in files.items()}
    elif settings.k > num_classes:
        only = counted(num_classes, "class", "classes")
        raise ParameterError(f"partition.k is {settings.k}, but the data set has only {only}")
    else:
        parts = {"co": settings.k, "dis": settings.k}
    return {"whole": 1, "long": 1, "again": 1, "random": parts["co"]} | parts


def _on_disk(path):
    # load_params(paths=False) leaves paths as they are written; one that is resolved already stays the same.
    return str(repo_root() / os.path.expanduser(os.path.expandvars(path)))
