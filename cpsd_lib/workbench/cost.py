"""What a run will cost, before anyone pays: weights, FLOP and GPU memory, from shapes alone; nothing is decoded or trained."""

import math
import os
from dataclasses import dataclass

import torch

from cpsd_lib.models import MetaModel, activation_bytes, forward_flop, make_tail, make_trunk
from cpsd_lib.partition import Partition
from cpsd_lib.support import counted, memory, pick_precision
from cpsd_lib.workbench.building import build_shape
from cpsd_lib.workbench.rows import FROM_MODEL, ROWS, branches_matched, branches_of, views_of
from cpsd_lib.workbench.yaml_files import ParameterError, blamed_on, repo_root

UNITS = (("EFLOP", 1), ("PFLOP", 1e3), ("TFLOP", 1e6), ("GFLOP", 1e9))  # name, how many in 1e18 FLOP

# ---- the workload of some rows, in epochs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """What some rows need from scratch, in epochs of one model; a training step is 3 forward passes, a soft target 1."""

    teachers: dict  # {branch: (number of teachers, epochs each is trained)}
    stored: list  # of {branch: (number of teachers, views whose logits are computed once)}, one dict a row that needs new ones
    embedded: dict  # {row: {branch: (number of teachers, epochs in which embeddings are computed anew)}}
    students: dict  # {row: epochs}


def workload(rows, teachers, student, parts, own=1.0):
    """Return the Workload of rows; teachers, student: TeacherParams, StudentParams; parts {branch: number of teachers}.

    own: see `forwards`.
    """
    needed = branches_of(rows)
    from_parts = any(branch not in FROM_MODEL for branch in needed)
    if student.start == "baseline" or (from_parts and teachers.start == "baseline"):
        needed = list(dict.fromkeys(["whole", *needed]))
    more = teachers.more_epochs if teachers.start == "baseline" else None
    epochs = {
        branch: teachers.trained_epochs if branch == "whole" else more or teachers.trained_epochs for branch in needed
    }
    equal = "equal_compute" in needed or "baseline_equal_compute" in rows
    of_baseline, of_teacher = equal_epochs(teachers, student, parts, own) if equal else (None, None)
    if "equal_compute" in needed:
        epochs["equal_compute"] = of_teacher
    taught, stored, there = [row for row in rows if row != "baseline"], [], set()
    for row in taught:  # the branches of one row are computed together, those of an earlier row are in the store
        new = [branch for branch in branches_matched([row]) if branch not in there]
        stored += [{branch: (parts[branch], views_of(student)) for branch in new}] if new else []
        there.update(new)
    return Workload(
        teachers={branch: (parts[branch], epochs[branch]) for branch in needed},
        stored=stored,
        embedded={
            row: {branch: (parts[branch], student.trained_epochs) for branch in ROWS[row].teachers}
            for row in taught
            if ROWS[row].uses_embeddings
        },
        students={row: of_baseline if row == "baseline_equal_compute" else student.trained_epochs for row in taught},
    )


def forwards(step, counts, own=1.0):
    """Return the forward passes of {branch: (models, passes each)}, each `step` forwards, in passes of one whole teacher.

    own: the part of a forward pass that a teacher of a part has to itself; the rest is the frozen trunk's, which is run
    forward once for all of them.
    """
    whole = sum(models * passes for branch, (models, passes) in counts.items() if branch in FROM_MODEL)
    parts = [(models, passes) for branch, (models, passes) in counts.items() if branch not in FROM_MODEL]
    trunk = max((passes for _, passes in parts), default=0)
    return step * (whole + own * sum(models * passes for models, passes in parts)) + (1 - own) * trunk


def work_of(row, teachers, student, k, own=1.0):
    """Return the work of a row from scratch, in epochs of a baseline: its teachers, their soft targets, its student."""
    if row == "baseline_equal_compute":
        return equal_epochs(teachers, student, _parts_of(k), own)[
            0
        ]  # as long as CPSD from scratch: nothing comes before
    load = workload([row], teachers, student, _parts_of(k), own)
    soft = sum(forwards(1, counts, own) for counts in (*load.stored, *load.embedded.values()))
    return (forwards(3, load.teachers, own) + soft) / 3 + sum(load.students.values())


def equal_epochs(teachers, student, parts, own=1.0):
    """Return (epochs of a baseline, epochs of one teacher) of the compute of CPSD, and of its teachers of both branches.

    parts: {branch: number of teachers}, or their number k in each branch.
    """
    parts = _parts_of(parts) if isinstance(parts, int) else _parts_of(parts["co"])
    load = workload(["cpsd"], teachers, student, parts, own)
    # A student that starts from the baseline pays for it; else the teachers do.
    paid = {b: count for b, count in load.teachers.items() if b != "whole" or student.start == "model"}
    return round(work_of("cpsd", teachers, student, parts["co"], own)), round(forwards(3, paid, own) / 3)


def _parts_of(k):
    return {"whole": 1, "equal_compute": 1, "continued": 1, "random": k, "co": k, "dis": k}


# ---- the cost of a run -----------------------------------------------------------------------------------------------


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
    teachers: int  # models a seed, trained side by side (but for the one of equal compute)
    students: int  # models a seed, trained one after the other
    teacher_batch: int  # images
    student_batch: int  # images
    teacher_gib: float  # GPU memory while the teachers train; 0 when there is none
    student_gib: float  # GPU memory while a student trains; 0 when there is none
    teacher_eflop: float
    target_eflop: float  # soft targets: logits once and stored, embeddings anew in every batch
    student_eflop: float
    validation_eflop: float  # choosing the epoch
    evaluation_eflop: float  # scoring on the test splits
    trained_images: int  # forward and backward passes of one image through one model
    cpsd_baselines: float | None  # + CPSD from scratch, in trainings of one baseline; None: not among the rows

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


def estimate(params, num_classes, train_images, test_images):
    """Return the Cost of Params `params` on `train_images` and `test_images` (all test splits) of `num_classes` classes.

    A training step counts as 3 forwards, frozen layers or not, but for the stages that teachers.frozen_stages names: 1, once
    for all teachers; a teacher as a model over all classes, though its head is smaller. `select: val` holds out val_share of
    the training images, as if the data had no val split of its own.
    Memory: weights, moving average and optimizer of all models that train side by side, gradients and activations of
    one, since they take a batch in turn. It is an estimate, without the allocator's and cuDNN's workspace, without
    torch.compile, and with the attention matrices that a fused kernel does not keep; precision auto is bfloat16, as on a
    GPU.
    Raises ParameterError for a model that cannot be built, too few images, or more parts than classes.
    """
    released = params.evaluation.released is not None
    # As pipeline.stages_of has it: a released checkpoint is scored and no more, labels without images are only looked at.
    rows = [] if released or params.data.kind == "labels" else params.student.rows
    if rows and train_images < 2:
        raise ParameterError(f"data: a training needs at least 2 images, not {train_images}")
    size, teacher_settings, share = (
        params.data.size,
        params.teacher_model or params.model,
        params.teachers.frozen_stages,
    )
    with blamed_on("model"):
        student = MetaModel(_on_meta(params.model, num_classes), size)
    with blamed_on("teacher_model"):
        teacher = MetaModel(_on_meta(teacher_settings, num_classes), size) if params.teacher_model else student
    tail, own = teacher, 1.0
    if share and rows:
        with blamed_on("teachers.frozen_stages"):
            made = _on_meta(teacher_settings, num_classes)
            tail = MetaModel(make_tail(made, make_trunk(made, share), share), size)
            own = own_part(teacher_settings, num_classes, size, share)
    parts = _parts(params.partition, num_classes) if rows else {}
    load = workload(rows, params.teachers, params.student, parts, own) if rows else Workload({}, [], {}, {})
    teachers = _Images(params, params.teachers, train_images, test_images)
    students = _Images(params, params.student, train_images, test_images)
    of_student = {row: teachers if row == "baseline_equal_compute" else students for row in load.students}
    seeds, scored = 1 if released else params.seeds, 1 if released else len(rows)

    def eflop(by_teachers, by_students):  # images that teachers and students compute, a seed
        return seeds * (by_teachers * teacher.flop + by_students * student.flop) / 1e18

    def images(counts, of):  # {branch: (models, epochs)} -> {branch: (models, images)}
        return {branch: (models, of(epochs)) for branch, (models, epochs) in counts.items()}

    trained = images(load.teachers, teachers.passes)
    looked_at = forwards(1, images(load.teachers, teachers.looks), own)
    views = views_of(params.student) * train_images  # each view of all training images at once
    soft = sum(forwards(1, images(counts, lambda _: views), own) for counts in load.stored)
    soft += sum(forwards(1, images(counts, students.passes), own) for counts in load.embedded.values())
    learned = {row: of_student[row].passes(epochs) for row, epochs in load.students.items()}
    # Without a model of its own the teacher of `whole` is the baseline, a row of the table already.
    merged = {b: (n, test_images) for b, (n, _) in load.teachers.items() if b != "whole" or params.teacher_model}
    beside = max((sum(models for models, _ in counts.values()) for counts in load.embedded.values()), default=0)
    return Cost(
        model=params.model.name,
        num_classes=num_classes,
        size=size,
        parameters=student.parameters,
        forward_gflop=student.flop / 1e9,
        teacher_parameters=teacher.parameters,
        teacher_forward_gflop=teacher.flop / 1e9,
        seeds=seeds,
        teachers=sum(models for models, _ in load.teachers.values()),
        students=len(load.students),
        teacher_batch=teachers.batch,
        student_batch=students.batch,
        teacher_gib=_teacher_bytes(load.teachers, teachers, teacher, tail) / 2**30,
        student_gib=max((beside * tail.weights + one.bytes(student, 1) for one in {*of_student.values()}), default=0)
        / 2**30,
        teacher_eflop=eflop(forwards(3, trained, own), 0),
        target_eflop=eflop(soft, 0),
        student_eflop=eflop(0, 3 * sum(learned.values())),
        validation_eflop=eflop(looked_at, sum(of_student[row].looks(n) for row, n in load.students.items())),
        evaluation_eflop=eflop(sum(forwards(1, {b: count}, own) for b, count in merged.items()), scored * test_images),
        trained_images=seeds * (sum(models * n for models, n in trained.values()) + sum(learned.values())),
        cpsd_baselines=None
        if "cpsd" not in load.students
        else work_of("cpsd", params.teachers, params.student, parts["co"], own) / params.teachers.trained_epochs,
    )


def as_computed(params, device):
    """Return Params whose precision is what the torch device makes of it: on a CPU in most cases float32, twice the memory."""
    floats = {torch.bfloat16: "bfloat16", torch.float16: "float16", None: "float32"}

    def computed(training):
        return training.model_copy(update={"precision": floats[pick_precision(training.precision, device)]})

    return params.model_copy(update={"teachers": computed(params.teachers), "student": computed(params.student)})


def own_part(settings, num_classes, size, frozen_stages):
    """Return the part of a forward pass of ModelParams `settings` that comes after its first stages, by FLOP, 0..1."""
    made, images = _on_meta(settings, num_classes), torch.empty(1, 3, size, size, device="meta")
    return 1 - forward_flop(make_trunk(made, frozen_stages), images) / forward_flop(made, images)


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
    """What a training of one model sees, in images: a batch, the passes of some epochs, those that choose the epoch."""

    def __init__(self, params, training, train_images, test_images):
        paper = params.protocol == "paper"
        self.half, self.selects = training.precision != "float32", paper or training.select == "val"
        held_out = max(1, int(training.val_share * train_images)) if self.selects and not paper else 0
        self.images = train_images - held_out
        self.batch = max(1, min(training.batch_size, self.images))
        # The release also chose between raw and EMA weights, on test.
        self._looked_at, self._every = 2 * test_images if paper else held_out, training.validate_every

    def passes(self, epochs):
        """Return the training passes of `epochs`: each ends with its last whole batch."""
        return self.images // self.batch * self.batch * epochs

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
        return _parts_of(settings.k)
    files = {"co": settings.released_co, "dis": settings.released_dis}
    with blamed_on("partition"):
        counts = {branch: len(Partition.load(_on_disk(file), num_classes)) for branch, file in files.items()}
    return _parts_of(counts["co"]) | counts


def _on_disk(path):
    # load_params(paths=False) leaves paths as they are written; one that is resolved already stays the same.
    return str(repo_root() / os.path.expanduser(os.path.expandvars(path)))


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
    weights, forward = f"{cost.parameters:,}", f"{cost.forward_gflop:,.4g} GFLOP an image"
    if cost.teachers and cost.teacher_parameters != cost.parameters:
        weights += f", a teacher's {cost.teacher_parameters:,}"
        forward += f", a teacher's {cost.teacher_forward_gflop:,.4g}"
    lines = {
        "model": f"{cost.model}, {counted(cost.num_classes, 'class', 'classes')}, {cost.size} px",
        "parameters": weights,
        "forward": f"{forward} (a multiply-add is 2 FLOP)",
        "GPU memory": f"about {', '.join(needs)}" if needs else "nothing is trained",
    }
    if cost.cpsd_baselines is not None:
        lines["+ CPSD"] = f"{cost.cpsd_baselines:,.3g} baselines' training, from scratch: teachers, targets and student"
    unit, scale = next((found for found in UNITS if cost.eflop * found[1] >= 1), UNITS[-1])
    for name, eflop in {**cost.stages, "total": cost.eflop}.items():
        lines[name] = f"{eflop * scale:>9,.3f} {unit}  {remarks.get(name, '')}".rstrip()
    hours = cost.hours(100)
    time = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 3600:,.4g} seconds"
    last = f"At 100 TFLOP/s sustained that is {time}: arithmetic, not a measurement."
    return "\n".join([*(f"{name:<14}{text}" for name, text in lines.items()), last])
