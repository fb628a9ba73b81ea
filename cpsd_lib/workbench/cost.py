"""What a run will cost, before anyone pays: weights, FLOP and GPU memory, from shapes alone; nothing is decoded or trained."""

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from cpsd_lib.models import MetaModel, activation_bytes, make_tail, make_trunk
from cpsd_lib.objectives import Supervised
from cpsd_lib.support import counted, keep_freed_memory, memory, pick_device, pick_precision
from cpsd_lib.training import Batches, fit
from cpsd_lib.workbench.building import build_shape
from cpsd_lib.workbench.loading import MODELS, check_k
from cpsd_lib.workbench.rows import (
    BRANCHES,
    EQUAL,
    FROM_MODEL,
    ROWS,
    branches_matched,
    branches_trained,
    trained_together,
    views_of,
)
from cpsd_lib.workbench.run import released_partitions
from cpsd_lib.workbench.yaml_files import ParameterError, blamed_on

# ---- the workload of some rows, in epochs ----------------------------------------------------------------------------

PARTS = set(BRANCHES) - set(FROM_MODEL)  # the branches whose teachers may share a frozen trunk
STAGES = ("teachers", "soft targets", "students", "validation", "evaluation")


@dataclass(frozen=True)
class Passes:
    """What some models of a stage see side by side; a training step is 3 forward passes, a soft target 1."""

    stage: str
    step: int  # forward passes of one pass
    # Of passes: "teacher epochs", "labelled epochs" or "student epochs", as those trainings have them, "views" of all images,
    # "unlabelled" ones.
    unit: str
    counts: dict  # {branch or row: (models, passes of each)}

    def forwards(self, own=1.0):
        """Return their forward passes, in those of one whole model.

        own: the part of a forward pass that a teacher of a part has to itself; the rest is the frozen trunk's, which is run
        forward once for all of them.
        """
        whole = sum(models * passes for name, (models, passes) in self.counts.items() if name not in PARTS)
        parts = [count for name, count in self.counts.items() if name in PARTS]
        trunk = max((passes for _, passes in parts), default=0)
        return self.step * (whole + own * sum(models * passes for models, passes in parts)) + (1 - own) * trunk


def workload(rows, teachers, student, parts, own=1.0, images=1.0):
    """Return what rows need from scratch, a list of Passes, the teachers first, and each student by itself.

    teachers, student: TeacherParams, StudentParams; parts: {"co": number of teachers, "dis": ...}; own: as in Passes;
    images: as in work_of.
    """
    needed = branches_trained(rows, teachers.start, student.start)
    models = dict.fromkeys(needed, 1) | {"random": parts["co"], "random_2": parts["co"]} | parts
    models |= {"ensemble": parts["co"] + parts["dis"]}
    epochs = dict.fromkeys(needed, teachers.more_epochs or teachers.trained_epochs)
    epochs |= dict.fromkeys(FROM_MODEL, teachers.trained_epochs)
    taught, there = {row: student.trained_epochs for row in rows if row != "baseline"}, set()
    if "equal_compute" in needed or EQUAL in rows:
        of_baseline, epochs["equal_compute"] = equal_epochs(teachers, student, parts["co"], own, images)
        taught |= {EQUAL: of_baseline} if EQUAL in rows else {}
    # The baseline is the first model of the ensemble.
    trained = models | ({"ensemble": models["ensemble"] - 1} if "whole" in needed else {})
    load = [
        Passes("teachers", 3, "teacher epochs", {branch: (trained[branch], epochs[branch]) for branch in group})
        for group in trained_together(needed, teachers.start)
    ]
    for row in taught:  # the logits of a row's branches are computed together, those of an earlier row are in the store
        stored = [branch for branch in branches_matched([row]) if branch not in there]
        embedded = ROWS[row].teachers if ROWS[row].uses_embeddings else ()  # computed anew in every epoch
        there.update(stored)
        for unit, branches, passes in (
            ("views", stored, views_of(student)),
            ("student epochs", embedded, student.trained_epochs),
        ):
            load.append(Passes("soft targets", 1, unit, {branch: (models[branch], passes) for branch in branches}))
        if ROWS[row].method == "pseudo":  # its own labels of the unlabelled images, anew in every epoch
            load.append(Passes("soft targets", 1, "unlabelled", {row: (1, taught[row])}))
    units = {row: "student epochs" if ROWS[row].uses_unlabelled else "labelled epochs" for row in taught}
    units |= {EQUAL: "teacher epochs"}
    return load + [Passes("students", 3, units[row], {row: (1, passes)}) for row, passes in taught.items()]


def work_of(row, teachers, student, k, own=1.0, images=1.0, wide=1.0):
    """Return the work of a row from scratch, in epochs of a baseline: its teachers, their soft targets, its student.

    own: as in Passes. images: those of a student's epoch, unlabelled ones too, in those of a baseline's; wide: a forward pass
    of the wide teacher, in a baseline's.
    """
    images_of = {"student epochs": images, "views": images, "unlabelled": images - 1}
    load = workload([row], teachers, student, {"co": k, "dis": k}, own, images)
    forwards = (one.forwards(own) * images_of.get(one.unit, 1) * (wide if "wide" in one.counts else 1) for one in load)
    return sum(forwards) / 3


def equal_epochs(teachers, student, k, own=1.0, images=1.0):
    """Return (epochs of a baseline, epochs of one teacher) of the compute of CPSD, and of its teachers of both branches."""
    load = workload(["cpsd"], teachers, student, {"co": k, "dis": k}, own)
    of_teachers = sum(one.forwards(own) for one in load if one.stage == "teachers") / 3
    if student.start == "baseline":
        of_teachers -= teachers.trained_epochs  # the student that starts from the baseline pays for it
    return round(work_of("cpsd", teachers, student, k, own, images)), round(of_teachers)


# ---- the cost of a run -----------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """What a run costs: compute in EFLOP (1e18 FLOP, a multiply-add is 2) over all seeds, memory in GiB (2**30 bytes)."""

    name: str  # of the student's model
    num_classes: int
    student: MetaModel  # over all classes
    teacher: MetaModel  # over all classes
    seeds: int
    teacher_batch: int  # images
    student_batch: int  # images
    teachers: int = 0  # models a seed
    students: int = 0  # models a seed, trained one after the other
    teacher_gib: float = 0.0  # GPU memory while the teachers train that do so side by side
    student_gib: float = 0.0  # GPU memory while a student trains
    # EFLOP of: teachers; soft targets (logits once and stored, embeddings anew in every batch); students; validation, which
    # chooses the epoch; evaluation on the test splits.
    stages: dict = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    trained_images: int = 0  # forward and backward passes of one image through one model
    cpsd_baselines: float | None = None  # + CPSD from scratch, in trainings of one baseline; None: not among the rows

    @property
    def eflop(self):
        """Compute of the whole run, EFLOP."""
        return sum(self.stages.values())

    @property
    def gpu_gib(self):
        """GPU memory of the larger training, GiB."""
        return max(self.teacher_gib, self.student_gib)


def estimate(params, num_classes, train_images, test_images, device=None, unlabelled=0):
    """Return the Cost of Params `params` on `train_images` and `test_images` (all test splits) of `num_classes` classes.

    unlabelled: images that students with teachers train on beside the labelled ones.

    A training step counts as 3 forwards, frozen layers or not, but for the stages that teachers.frozen_stages names: 1, once
    for all teachers; a teacher as a model over all classes, though its head is smaller. `select: val` holds out val_share of
    the training images, as if the data had no val split of its own.
    Memory: weights, moving average and optimizer of all models that train side by side, gradients and activations of
    one, since they take a batch in turn. It is an estimate, without the allocator's and cuDNN's workspace, without
    torch.compile, and with the attention matrices that a fused kernel does not keep.
    device: a torch device, whose precision counts (on a CPU in most cases float32, twice the memory); None: a GPU's, where
    auto is bfloat16.
    Raises ParameterError for a model that cannot be built, too few images, or more parts than classes.
    """
    released, size, frozen = params.evaluation.released is not None, params.data.size, params.teachers.frozen_stages
    # As pipeline.stages_of has it: a released checkpoint is scored and no more, labels without images are only looked at.
    rows = [] if released or params.data.kind == "labels" else params.student.rows
    if rows and train_images < 2:
        raise ParameterError(f"data: a training needs at least 2 images, not {train_images}")
    models = {}
    for section in MODELS:
        if getattr(params, section):
            with blamed_on(section):
                models[section] = meta_model(getattr(params, section), num_classes, size)
    student = models["model"]
    teacher = tail = models.get("teacher_model", student)
    wide, own = models.get("wide_model", teacher), 1.0
    if frozen and rows:
        with blamed_on("teachers.frozen_stages"):
            settings = params.teacher_model or params.model
            made = meta_model(settings, num_classes, size).made
            tail = MetaModel(make_tail(made, make_trunk(made, frozen), frozen), size)
            own = own_part(settings, num_classes, size, frozen)
    parts = _parts(params.partition, num_classes) if rows else {"co": 0, "dis": 0}
    teachers, labelled, students = (
        _Images(params, training, train_images, test_images, device, more)
        for training, more in ((params.teachers, 0), (params.student, 0), (params.student, unlabelled))
    )
    more = 1 + unlabelled / teachers.images if rows else 1.0
    load = workload(rows, params.teachers, params.student, parts, own, more)
    of_unit = {"teacher epochs": teachers, "labelled epochs": labelled, "student epochs": students}
    images_of = {unit: seen.epoch for unit, seen in of_unit.items()}
    images_of |= {"views": train_images + unlabelled, "unlabelled": unlabelled}
    seeds, batches = 1 if released else params.seeds, (teachers.batch, students.batch)
    cost = Cost(params.model.name, num_classes, student, teacher, seeds, *batches)
    embedded = [one.counts.values() for one in load if (one.step, one.unit) == (1, "student epochs")]
    beside = max([sum(n for n, _ in models) for models in embedded], default=0)  # while a student trains
    if released or "baseline" in rows:
        cost.stages["evaluation"] += seeds * student.flop * test_images / 1e18
    for one in load:
        seen, taught = of_unit.get(one.unit), one.stage == "students"
        model = student if taught else wide if "wide" in one.counts else teacher
        flop = seeds * model.flop / 1e18
        cost.stages[one.stage] += flop * one.forwards(own) * images_of[one.unit]
        if one.step == 1:
            continue
        # To choose an epoch, and at last on test; the baseline, a teacher of the student's own model, is a row of the table.
        looked = {name: (n, seen.looks(epochs)) for name, (n, epochs) in one.counts.items()}
        again = ("ensemble",) if "whole" in one.counts else ()  # its first model is the baseline, which is trained once
        scored = {name: (n + (name in again), test_images) for name, (n, _) in one.counts.items()}
        if not params.teacher_model:
            scored.pop("whole", None)
        cost.stages["validation"] += flop * replace(one, step=1, counts=looked).forwards(own)
        cost.stages["evaluation"] += flop * replace(one, step=1, counts=scored).forwards(own)
        cost.trained_images += seeds * sum(n * epochs * seen.epoch for n, epochs in one.counts.values())
        count = sum(n for n, _ in one.counts.values())
        if taught:
            cost.students += count
            cost.student_gib = max(cost.student_gib, (beside * tail.weights + seen.bytes(student, 1)) / 2**30)
            continue
        cost.teachers += count
        needed = seen.bytes(model, count)
        if tail is not teacher and one.counts.keys() <= PARTS:
            needed = seen.bytes(tail, count) + 2 * teacher.weights  # of the trunk, and of the baseline it was cut from
        cost.teacher_gib = max(cost.teacher_gib, needed / 2**30)
    if "cpsd" in rows:
        work = work_of("cpsd", params.teachers, params.student, parts["co"], own, more)
        cost.cpsd_baselines = work / params.teachers.trained_epochs
    return cost


def teachers_that_fit(params, table, device, gib):
    """Return how many teachers of a run train side by side in `gib` GiB of a torch device, at least 1; table: its LabelTable."""
    seen = _Images(params, params.teachers, len(table.indices("train")), len(table.indices("test")), device)
    model = meta_model(params.teacher_model or params.model, len(table.names), params.data.size)
    one, two = (seen.bytes(model, count) for count in (1, 2))
    return max(1, 1 + int((gib * 2**30 - one) // (two - one)))


def own_part(settings, num_classes, size, frozen_stages):
    """Return the part of a forward pass of ModelParams `settings` that comes after its first stages, by FLOP, 0..1."""
    whole = meta_model(settings, num_classes, size)
    return 1 - MetaModel(make_trunk(whole.made, frozen_stages), size).flop / whole.flop


def meta_model(settings, num_classes, size):
    """Return the MetaModel of ModelParams `settings` over some classes, for images of `size` pixels."""
    with torch.device("meta"):
        return MetaModel(build_shape(settings, num_classes), size)


class _Images:
    """What a training of one model sees, in images: a batch, an epoch, what chooses the epoch."""

    def __init__(self, params, training, train_images, test_images, device, more=0):
        paper = params.protocol == "paper"
        self.half, self.selects = training.precision != "float32", paper or training.select == "val"
        if device is not None:
            self.half = pick_precision(training.precision, device) is not None
        held_out = training.held_out(train_images) if self.selects and not paper else 0
        self.images = train_images - held_out + more
        self.batch = max(1, min(training.batch_size, self.images))
        self.epoch = self.images // self.batch * self.batch  # it ends with its last whole batch
        # The release also chose between raw and EMA weights, on test.
        self._looked_at, self._every = 2 * test_images if paper else held_out, training.validate_every

    def looks(self, epochs):
        """Return the images looked at to choose one of `epochs`."""
        return self._looked_at * math.ceil(epochs / self._every)

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
    """Return {branch: number of teachers} by PartitionParams."""
    if not settings.use_released:
        check_k(settings.k, num_classes)
        return {"co": settings.k, "dis": settings.k}
    with blamed_on("partition"):
        return {branch: len(parts) for branch, parts in released_partitions(settings, num_classes).items()}


# ---- on this machine -------------------------------------------------------------------------------------------------


def measured_speed(params, cost, seconds=2.0):
    """Return the FLOP a second of this machine while the student of Params trains on one batch of random images.

    Takes about `seconds`, or one step where that is longer. Raises RuntimeError where a step does not fit into memory.
    """
    keep_freed_memory()
    training, device = params.student, pick_device(params.device)
    # A batch of large models is minutes of a CPU's work, and two of its images are as fast.
    most = int(5e10 / cost.student.flop) if device.type == "cpu" else cost.student_batch
    batch, size, draw = max(2, min(most, cost.student_batch)), params.data.size, np.random.default_rng(params.seed)
    pixels = draw.integers(0, 256, (batch, 3, size, size), np.uint8)
    targets = draw.random((batch, cost.num_classes)) < 0.1
    batches = Batches(pixels, targets, batch_size=batch, view=training.view, seed=params.seed, device=device)

    def seconds_of_steps(count):
        settings = training.model_copy(update={"epochs": count, "stop_after": None, "compile": False})
        began = time.perf_counter()
        fit(model, batches, settings, objective=Supervised(asl=training.asl), desc="measuring the speed")
        return time.perf_counter() - began

    with torch.random.fork_rng():
        model = build_shape(params.model, cost.num_classes)
        first = seconds_of_steps(1)  # it is not like the others
        steps = max(2, round(seconds / first))
        return 3 * cost.student.flop * batch * (1 / first if first > seconds else steps / seconds_of_steps(steps))


# ---- in words --------------------------------------------------------------------------------------------------------


def card(cost):
    """Return the cost as a dozen aligned lines for a terminal, with units."""
    needs = [f"{memory(cost.teacher_gib)} for the teachers (batch {cost.teacher_batch})"] if cost.teachers else []
    needs += [f"{memory(cost.student_gib)} for a student (batch {cost.student_batch})"] if cost.students else []
    seeds = f", {cost.seeds} seeds" if cost.seeds > 1 else ""
    remarks = {
        "teachers": f"{counted(cost.teachers, 'model')}{seeds}",
        "students": f"{counted(cost.students, 'model')}{seeds}",
        "total": f"{counted(cost.trained_images, 'time')} a model trains on an image",
    }
    weights, forward = f"{cost.student.parameters:,}", f"{cost.student.flop / 1e9:,.4g} GFLOP an image"
    if cost.teachers and cost.teacher.parameters != cost.student.parameters:
        weights += f", a teacher's {cost.teacher.parameters:,}"
        forward += f", a teacher's {cost.teacher.flop / 1e9:,.4g}"
    lines = {
        "model": f"{cost.name}, {counted(cost.num_classes, 'class', 'classes')}, {cost.student.size} px",
        "parameters": weights,
        "forward": f"{forward} (a multiply-add is 2 FLOP)",
        "GPU memory": f"about {', '.join(needs)}" if needs else "nothing is trained",
    }
    if cost.cpsd_baselines is not None:
        lines["+ CPSD"] = f"{cost.cpsd_baselines:,.3g} baselines' training, from scratch: teachers, targets and student"
    units = {"EFLOP": 1, "PFLOP": 1e3, "TFLOP": 1e6, "GFLOP": 1e9}  # how many in 1e18 FLOP
    unit = next((unit for unit, scale in units.items() if cost.eflop * scale >= 1), "GFLOP")
    for name, eflop in {**cost.stages, "total": cost.eflop}.items():
        lines[name] = f"{eflop * units[unit]:>9,.3f} {unit}  {remarks.get(name, '')}".rstrip()
    last = f"At 100 TFLOP/s sustained that is {spoken_time(cost.eflop * 1e18 / 100e12)}: arithmetic, not a measurement."
    return "\n".join([*(f"{name:<14}{text}" for name, text in lines.items()), last])


def spoken_time(seconds):
    """Return seconds as words: "about 2 h 10 min"."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes >= 100 * 60:
        return f"about {minutes / 60:,.0f} h"
    return f"about {minutes} min" if minutes < 90 else f"about {minutes // 60} h {minutes % 60} min"
