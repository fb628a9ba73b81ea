"""What a run will cost, before anyone pays: weights, FLOP and GPU memory, from shapes alone; nothing is decoded or trained."""

import math
import os
from dataclasses import dataclass

import torch

from cpsd_lib.models import MetaModel, activation_bytes, forward_flop, make_tail, make_trunk
from cpsd_lib.partition import Partition
from cpsd_lib.support import counted, memory, pick_precision
from cpsd_lib.workbench.building import build_shape
from cpsd_lib.workbench.loading import held_out_count
from cpsd_lib.workbench.rows import BRANCHES, FROM_MODEL, ROWS, branches_matched, branches_of, views_of
from cpsd_lib.workbench.yaml_files import ParameterError, blamed_on, repo_root

# ---- the workload of some rows, in epochs ----------------------------------------------------------------------------

EQUAL = "baseline_equal_compute"  # trained as the baseline is, which is a teacher, for as long as all of CPSD
PARTS = set(BRANCHES) - set(FROM_MODEL)  # the branches whose teachers may share a frozen trunk
STAGES = ("teachers", "soft targets", "students", "validation", "evaluation")


@dataclass(frozen=True)
class Passes:
    """What some models of a stage see side by side; a training step is 3 forward passes, a soft target 1."""

    stage: str
    step: int  # forward passes of one pass
    unit: str  # of passes: "teacher epochs" or "student epochs", as those trainings have them, "views" of all images, "images"
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


def workload(rows, teachers, student, parts, own=1.0):
    """Return what rows need from scratch, a list of Passes, the teachers first, and each student by itself.

    teachers, student: TeacherParams, StudentParams; parts: {"co": number of teachers, "dis": ...}; own: as in Passes.
    """
    needed = branches_of(rows)
    from_baseline = student.start == "baseline" and any(row != EQUAL for row in rows)
    if from_baseline or (teachers.start == "baseline" and PARTS & set(needed)):
        needed = list(dict.fromkeys(["whole", *needed]))
    models = dict.fromkeys(needed, 1) | {"random": parts["co"], "random_2": parts["co"]} | parts
    models |= {"ensemble": parts["co"] + parts["dis"]}
    more = teachers.more_epochs if teachers.start == "baseline" else None
    epochs = dict.fromkeys(needed, more or teachers.trained_epochs) | {"whole": teachers.trained_epochs}
    taught, there = {row: student.trained_epochs for row in rows if row != "baseline"}, set()
    if "equal_compute" in needed or EQUAL in rows:
        of_baseline, epochs["equal_compute"] = equal_epochs(teachers, student, parts["co"], own)
        taught |= {EQUAL: of_baseline} if EQUAL in rows else {}
    trained = {branch: (models[branch], epochs[branch]) for branch in needed}
    if "whole" in needed and "ensemble" in needed:  # the baseline is the first of them
        trained["ensemble"] = (models["ensemble"] - 1, epochs["ensemble"])
    wide = {branch: trained.pop(branch) for branch in ("wide",) if branch in trained}  # another model, by itself
    load = [Passes("teachers", 3, "teacher epochs", counts) for counts in ([trained, wide] if wide else [trained])]
    for row in taught:  # the logits of a row's branches are computed together, those of an earlier row are in the store
        stored = [branch for branch in branches_matched([row]) if branch not in there]
        embedded = ROWS[row].teachers if ROWS[row].uses_embeddings else ()  # computed anew in every epoch
        there.update(stored)
        for unit, branches, passes in (
            ("views", stored, views_of(student)),
            ("student epochs", embedded, student.trained_epochs),
        ):
            load.append(Passes("soft targets", 1, unit, {branch: (models[branch], passes) for branch in branches}))
    units = {row: "student epochs" if ROWS[row].uses_unlabelled else "labelled epochs" for row in taught}
    units |= {EQUAL: "teacher epochs"}
    return load + [Passes("students", 3, units[row], {row: (1, passes)}) for row, passes in taught.items()]


def work_of(row, teachers, student, k, own=1.0, images=1.0, wide=1.0):
    """Return the work of a row from scratch, in epochs of a baseline: its teachers, their soft targets, its student.

    own: as in Passes. images: those of a student's epoch, unlabelled ones too, in those of a baseline's; wide: a forward pass
    of the wide teacher, in a baseline's.
    """
    work = 0.0
    for one in workload([row], teachers, student, {"co": k, "dis": k}, own):
        forwards = one.forwards() if one.stage == "students" else one.forwards(own)
        work += (
            forwards
            * (images if one.unit in ("student epochs", "views") else 1)
            * (wide if "wide" in one.counts else 1)
        )
    return work / 3


def equal_epochs(teachers, student, k, own=1.0, images=1.0):
    """Return (epochs of a baseline, epochs of one teacher) of the compute of CPSD, and of its teachers of both branches."""
    paid = dict(workload(["cpsd"], teachers, student, {"co": k, "dis": k}, own)[0].counts)
    if student.start == "baseline":
        del paid["whole"]  # the student that starts from the baseline pays for it; else the teachers do
    of_teachers = Passes("teachers", 3, "teacher epochs", paid).forwards(own)
    return round(work_of("cpsd", teachers, student, k, own, images)), round(of_teachers / 3)


# ---- the cost of a run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a run costs: compute in EFLOP (1e18 FLOP, a multiply-add is 2) over all seeds, memory in GiB (2**30 bytes)."""

    name: str  # of the student's model
    num_classes: int
    student: MetaModel  # over all classes
    teacher: MetaModel  # over all classes
    seeds: int
    teachers: int  # models a seed, trained side by side (but for the one of equal compute)
    students: int  # models a seed, trained one after the other
    teacher_batch: int  # images
    student_batch: int  # images
    teacher_gib: float  # GPU memory while the teachers train; 0 when there is none
    student_gib: float  # GPU memory while a student trains; 0 when there is none
    # EFLOP of: teachers; soft targets (logits once and stored, embeddings anew in every batch); students; validation, which
    # chooses the epoch; evaluation on the test splits.
    stages: dict
    trained_images: int  # forward and backward passes of one image through one model
    cpsd_baselines: float | None  # + CPSD from scratch, in trainings of one baseline; None: not among the rows

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
    with blamed_on("model"):
        student = teacher = tail = MetaModel(_on_meta(params.model, num_classes), size)
    if params.teacher_model:
        with blamed_on("teacher_model"):
            teacher = tail = MetaModel(_on_meta(params.teacher_model, num_classes), size)
    wide = teacher
    if params.wide_model and rows:
        with blamed_on("wide_model"):
            wide = MetaModel(_on_meta(params.wide_model, num_classes), size)
    own = 1.0
    if frozen and rows:
        with blamed_on("teachers.frozen_stages"):
            made = _on_meta(params.teacher_model or params.model, num_classes)
            tail = MetaModel(make_tail(made, make_trunk(made, frozen), frozen), size)
            own = own_part(params.teacher_model or params.model, num_classes, size, frozen)
    parts = _parts(params.partition, num_classes) if rows else {"co": 0, "dis": 0}
    load = workload(rows, params.teachers, params.student, parts, own)
    teachers, labelled, students = (
        _Images(params, training, train_images, test_images, device, more)
        for training, more in ((params.teachers, 0), (params.student, 0), (params.student, unlabelled))
    )
    of_unit = {"teacher epochs": teachers, "labelled epochs": labelled, "student epochs": students}
    # Without a model of its own the teacher of `whole` is the baseline, a row of the table already.
    trained = [one.counts for one in load if one.stage == "teachers"]
    scored = [
        {b: (n, test_images) for b, (n, _) in counts.items() if b != "whole" or params.teacher_model}
        for counts in trained
    ]
    rows_scored = {"released": (1, test_images)} if released else {row: (1, test_images) for row in rows}
    looks = [Passes("evaluation", 1, "images", counts) for counts in (*scored, rows_scored)]  # each on one batch
    for one in [one for one in load if one.step == 3]:
        looked = {name: (n, of_unit[one.unit].looks(epochs)) for name, (n, epochs) in one.counts.items()}
        looks.append(Passes("validation", 1, "images", looked))
    seeds, stages = 1 if released else params.seeds, dict.fromkeys(STAGES, 0.0)
    images_of = {unit: seen.epoch for unit, seen in of_unit.items()} | {"images": 1}
    images_of["views"] = train_images + unlabelled
    for one in load + looks:
        model = teacher if one.counts.keys() <= set(BRANCHES) else student
        model = wide if "wide" in one.counts else model
        stages[one.stage] += seeds * one.forwards(own) * images_of[one.unit] * model.flop / 1e18
    passes = [n * each * images_of[one.unit] for one in load if one.step == 3 for n, each in one.counts.values()]
    beside = [sum(n for n, _ in one.counts.values()) for one in load if (one.step, one.unit) == (1, "student epochs")]
    student_bytes = [
        max(beside) * tail.weights + of_unit[one.unit].bytes(student, 1) for one in load if one.stage == "students"
    ]
    return Cost(
        name=params.model.name,
        num_classes=num_classes,
        student=student,
        teacher=teacher,
        seeds=seeds,
        teachers=sum(models for counts in trained for models, _ in counts.values()),
        students=len(student_bytes),
        teacher_batch=teachers.batch,
        student_batch=students.batch,
        teacher_gib=max(
            _teacher_bytes(trained[0], teachers, teacher, tail), teachers.bytes(wide, 1) if len(trained) > 1 else 0
        )
        / 2**30,
        student_gib=max(student_bytes, default=0) / 2**30,
        stages=stages,
        trained_images=seeds * sum(passes),
        cpsd_baselines=work_of("cpsd", params.teachers, params.student, parts["co"], own, 1 + unlabelled / train_images)
        / params.teachers.trained_epochs
        if "cpsd" in rows
        else None,
    )


def own_part(settings, num_classes, size, frozen_stages):
    """Return the part of a forward pass of ModelParams `settings` that comes after its first stages, by FLOP, 0..1."""
    made, images = _on_meta(settings, num_classes), torch.empty(1, 3, size, size, device="meta")
    return 1 - forward_flop(make_trunk(made, frozen_stages), images) / forward_flop(made, images)


def relative_flop(settings, other, num_classes, size):
    """Return the FLOP of a forward pass of ModelParams `settings` over those of `other`."""
    images = torch.empty(1, 3, size, size, device="meta")
    first, second = (forward_flop(_on_meta(one, num_classes), images) for one in (settings, other))
    return first / second


def _on_meta(settings, num_classes):
    with torch.device("meta"):
        return build_shape(settings, num_classes)


def _teacher_bytes(counts, images, model, tail):
    """Return the GPU memory, in bytes, of stage 03: all teachers side by side, then the one of equal compute by itself.

    tail: the MetaModel of a teacher of a part, where it shares its first stages; those start when the baseline is trained.
    """
    together = sum(models for branch, (models, _) in counts.items() if branch != "equal_compute")
    parts = sum(models for branch, (models, _) in counts.items() if branch not in FROM_MODEL)
    if tail is not model and parts:
        peak = max(images.bytes(model, 1), images.bytes(tail, parts) + 2 * model.weights)
    else:
        peak = images.bytes(model, together) if together else 0
    if "equal_compute" in counts:
        peak = max(peak, images.bytes(model, 1) + together * tail.weights)
    return peak


class _Images:
    """What a training of one model sees, in images: a batch, an epoch, what chooses the epoch."""

    def __init__(self, params, training, train_images, test_images, device, more=0):
        paper = params.protocol == "paper"
        self.half, self.selects = training.precision != "float32", paper or training.select == "val"
        if device is not None:
            self.half = pick_precision(training.precision, device) is not None
        held_out = held_out_count(training, train_images) if self.selects and not paper else 0
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
        if settings.k > num_classes:
            only = counted(num_classes, "class", "classes")
            raise ParameterError(f"partition.k is {settings.k}, but the data set has only {only}")
        return {"co": settings.k, "dis": settings.k}
    files = {"co": settings.released_co, "dis": settings.released_dis}
    with blamed_on("partition"):
        # load_params(paths=False) leaves paths as they are written; one that is resolved already stays the same.
        paths = {b: repo_root() / os.path.expanduser(os.path.expandvars(file)) for b, file in files.items()}
        return {branch: len(Partition.load(path, num_classes)) for branch, path in paths.items()}


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
    hours = cost.eflop * 1e18 / 100e12 / 3600
    time = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 3600:,.4g} seconds"
    last = f"At 100 TFLOP/s sustained that is {time}: arithmetic, not a measurement."
    return "\n".join([*(f"{name:<14}{text}" for name, text in lines.items()), last])
