"""CPSD's whole component table, all teachers and students from scratch: file by file, model by model, and our way."""

from bench import reference_training
from bench.pairs import STUDENTS_APART
from bench.timing import INPUT, OURS, REFERENCE, SOFT, STUDENTS, TEACHERS, VALIDATION, Pair, Stopwatch
from bench.workspace import TRAINING, apart
from cpsd_lib.objectives import SelfDistillation
from cpsd_lib.training import Learner, Validation, fit

# The baseline is the teacher over all classes; each student has the weights of its branches of teachers.
ROWS = {"sd": {"whole": 1.0}, "cgpd": {"co": 1.0}, "dgpd": {"dis": 1.0}, "cpsd": {"co": 0.5, "dis": 0.5}}
BRANCHES = ("whole", "co", "dis")


def component_table(w):
    """Return (the Pair of the whole table, {side: [{stage: seconds} of each run]}, which its runs fill)."""
    spent, starts = {REFERENCE: [], OURS: []}, _models(w.experts(BRANCHES) + _students(w))

    def way(side, train_all):
        def timed(watch):
            w.switch = watch.switch
            spent[side].append(watch.seconds)
            learners = train_all(w)
            watch.switch(None)
            return _models(learners)

        return timed

    pair = Pair(
        name=f"the whole component table, k = {w.settings.k}",
        prepare=Stopwatch,
        reference=way(REFERENCE, by_reference),
        ours=way(OURS, by_ours),
        difference=lambda a, b: apart(a, b, starts),
        tolerance=STUDENTS_APART,
        about=f"EMA weights of {len(starts)} models after an epoch of {len(w.trained_on)} photos, as a share of the "
        f"way they went; {len(w.held_out)} photos held out; release views; ours decodes first",
        goal=3,
    )
    return pair, spent


def _students(w):
    return [Learner(row, w.student(), SelfDistillation(weights), w.classes) for row, weights in ROWS.items()]


def _models(learners):
    return [learner.model for learner in learners]


def by_reference(w):
    """Train every model by itself from files; return its Learners, the moving averages in their models."""
    experts, students = w.experts(BRANCHES), _students(w)
    for expert in experts:
        batches = reference_training.epoch_from_files(w, "release")
        reference_training.train(w, expert, batches, TEACHERS, validated=True)
    teachers = w.teachers(experts)
    for student in students:
        mine = {branch: teachers[branch] for branch in ROWS[student.name]}
        batches = reference_training.with_teachers(w, reference_training.epoch_from_files(w, "release"), mine)
        reference_training.train(w, student, batches, STUDENTS, validated=True)
    return experts + students


def by_ours(w):
    """Train all models by cpsd_lib's functions; return its Learners, the moving averages in their models."""
    w.switch(INPUT)
    images = w.decoded()

    def train(learners, stage, soft=None):
        batches = w.batches("release", images, soft)
        batches.epoch = _watched(batches.epoch, w, stage)
        w.switch(stage)
        fit(learners, batches, TRAINING, validation=Validation(images, w.targets, w.held_out))

    experts, students = w.experts(BRANCHES), _students(w)
    train(experts, TEACHERS)
    w.switch(SOFT)  # their views included
    soft = w.stored(w.teachers(experts), w.batches("release", images))
    for student in students:
        train([student], STUDENTS, soft)
    return experts + students


def _watched(epoch, w, stage):
    def timed(number, start):
        w.switch(INPUT)
        for batch in epoch(number, start):
            w.switch(stage)
            yield batch
            w.switch(INPUT)
        w.switch(VALIDATION)

    return timed
