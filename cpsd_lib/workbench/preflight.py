"""The last look before a run starts: can these models be built, are their weights there, will they fit into memory?"""

import torch

from cpsd_lib.data import PUBLISHED, UNLABELLED, choose, count_images, read_source
from cpsd_lib.models import check_split
from cpsd_lib.support import counted, memory, memory_gib, pick_device
from cpsd_lib.workbench.building import build
from cpsd_lib.workbench.cost import estimate, measured_speed, spoken_time
from cpsd_lib.workbench.loading import MODELS, check_count, check_cut, on_disk
from cpsd_lib.workbench.rows import ROWS
from cpsd_lib.workbench.run import released_partitions
from cpsd_lib.workbench.scoring import load_checkpoint
from cpsd_lib.workbench.yaml_files import ParameterError, blamed_on

MANY = 500  # classes from which a run says how long their cuts take
TIGHT = 0.9  # share of the memory from which preflight warns that a run may not fit


def check_run(params):
    """Raise ParameterError for data without labels to read, or a model that cannot be built, lacks weights or vectors, or
    does not take such images.

    It costs seconds, and decoding a data set, which comes first in a run, costs up to an hour. No image is read.
    """
    size = params.data.size
    with blamed_on("data"):
        table = choose(read_source(params.data), params.data)[1]
        names = table.names
    if params.data.kind != "labels" or params.evaluation.released:
        with blamed_on("device"):
            pick_device(params.device)
    if params.evaluation.released:
        with blamed_on("evaluation"):
            _look(load_checkpoint(params, names), size)
        return
    check_count(params, table)
    check_cut(params, table)
    with blamed_on("partition"):
        released_partitions(params.partition, len(names))
    if params.data.kind == "labels":
        return
    looked = {}
    for section in MODELS:
        if getattr(params, section):
            with blamed_on(section):
                looked[section] = _look(build(getattr(params, section), names), size)
    looked.setdefault("teacher_model", looked["model"])
    if params.teachers.frozen_stages:
        with blamed_on("teachers.frozen_stages"):
            check_split(looked["teacher_model"], params.teachers.frozen_stages, size)
    check_memory(params, table, looked)


def check_memory(params, table, models):
    """Raise ParameterError where a view's soft targets, or label-wise embeddings (LED), need more memory than there is.

    models {section: model that has run}. The embeddings are those of a batch, with the differences of their pairs.
    """
    rows, classes = [ROWS[row] for row in params.student.rows], len(table.names)
    images = len(table.indices("train")) + len(table.indices(UNLABELLED))
    stored = 2 * images * classes * max((len(row.teachers) for row in rows if row.reads_stored), default=0)
    needs = [("the soft targets of a view", stored, torch.device("cpu"), "data.limit")]
    led = max((len(row.teachers) for row in rows if row.uses_embeddings), default=0)
    if led:
        present = table.targets[table.indices("train")] == 1
        batch, of_image = min(params.student.batch_size, len(present)), present.sum(1, dtype=float)
        pairs = (batch * (of_image * (of_image - 1)).mean() + ((batch * present.mean(0)) ** 2).sum()) / 2
        zeros = torch.zeros(1, 3, params.data.size, params.data.size)
        with torch.inference_mode():
            one, other = (models[section](zeros).label_embeddings.shape[2] for section in ("model", "teacher_model"))
        size = 4 * (batch * classes * (2 * one + led * other) + 3 * pairs * (one + other))
        needs.append(("the embeddings of a batch", size, pick_device(params.device), "student.batch_size"))
    for what, size, device, name in needs:
        if (gib := size / 2**30) > (there := memory_gib(device)):
            raise ParameterError(
                f"student.rows: {what}, of {classes:,} classes, need {memory(gib)} of memory, and there are {memory(there)}: "
                f"lower {name}, or leave these rows out"
            )


def remarks(params, stage):
    """Return what a user should know before `stage`, the first that is not done, starts: sentences, in most runs none."""
    there = images_of(params.data)
    sentences, cuts = [], params.partition.study(there.classes)[2]
    if stage <= "02_partition" and not params.evaluation.released and (there.classes > MANY or "left out" in cuts):
        sentences.append(cuts)
    if stage > "04_student" or params.data.kind == "labels" or params.engine.kind == "ray":  # whose groups fit
        return sentences
    with blamed_on("device"):  # a cuda:7 that is not there
        device = pick_device(params.device)
        gib = memory_gib(device)
    cost = estimate(params, there.classes, there.train, there.test, device, there.unlabelled)
    if cost.gpu_gib > TIGHT * gib:
        teaching = cost.teacher_gib >= cost.student_gib
        what = counted(cost.teachers, "teacher") if teaching else "a student"
        section, batch = ("teachers", cost.teacher_batch) if teaching else ("student", cost.student_batch)
        where = "the GPU" if device.type == "cuda" else "this machine"
        fewer = " or partition.k" if teaching and cost.teachers > 1 else ""
        sentences.append(
            f"WARNING: training {what} takes about {memory(cost.gpu_gib)} of memory, and {where} has {memory(gib)}: the run "
            f"may be killed. Lower {section}.batch_size ({batch}), data.size ({params.data.size}){fewer}; "
            "`cpsd cost` says what helps"
        )
    return sentences


def models_to_train(params):
    """Return {stage: how many models it trains, and how long they take here} for 03 and 04, in words, were the store empty.

    Trains for about two seconds to find out; {} where a training step does not run, which that stage will say itself.
    """
    there = images_of(params.data)
    cost = estimate(params, there.classes, there.train, there.test, unlabelled=there.unlabelled)
    try:
        speed, work = measured_speed(params, cost) / 1e18, cost.stages
    except RuntimeError:
        return {}
    stages = {"03_teachers": (cost.teachers, work["teachers"])}
    stages["04_student"] = (cost.students, work["soft targets"] + work["students"])
    return {
        name: f"{counted(params.seeds * models, 'model')}, {spoken_time(eflop / speed)}"
        for name, (models, eflop) in stages.items()
        if models
    }


def images_of(data):
    """Return what count_images does, of DataParams `data`; ParameterError where label tables that are counted cannot be read."""
    if data.kind not in PUBLISHED and data.kind != "scenes":
        data = on_disk("data", data)  # the labels there determine how many images this run has
    with blamed_on("data"):
        return count_images(data)


def _look(model, size):
    """Return a model that takes images of this size."""
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, size, size))
    return model
