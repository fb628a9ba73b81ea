"""CPSD's whole component table, all teachers and students from scratch: file by file and model by model, and our way."""

import numpy as np

from bench import reference, reference_training
from bench.parts import STUDENTS_APART
from bench.reference_training import ASK, CHECK, INPUT, LEARN, TEACH
from bench.timing import OURS, REFERENCE, Pair, Stopwatch
from bench.workspace import apart, decode_once, weights_of, worst
from cpsd_lib.models.folding import fold_teachers
from cpsd_lib.objectives import SelfDistillation
from cpsd_lib.teachers import PartTeachers
from cpsd_lib.training.batches import Batches
from cpsd_lib.training.learner import Learner
from cpsd_lib.training.loop import Validation
from cpsd_lib.training.soft_targets import SoftTargets, TargetSource, fill
from cpsd_lib.workbench.rows import COMPONENTS, ROWS, branch_weights

BRANCHES = ("whole", "co", "dis")
STUDENTS = tuple(row for row in COMPONENTS if row != "baseline")  # the baseline is the teacher over all classes


class TimedBatches(Batches):
    """Batches whose epochs tell a Stopwatch when a batch is being made, used, and when the epoch is over."""

    def __init__(self, *arguments, watch, stage, **more):
        super().__init__(*arguments, **more)
        self._watch, self._stage = watch, stage

    def view(self, number, rows):
        """Return view `number` of image rows [B]."""
        self._watch.switch(INPUT)
        images = super().view(number, rows)
        self._watch.switch(self._stage)
        return images

    def epoch(self, number, start=0):
        """Yield the Batches of one epoch; what follows its end is validation and files."""
        self._watch.switch(INPUT)
        for batch in super().epoch(number, start):
            self._watch.switch(self._stage)
            yield batch
            self._watch.switch(INPUT)
        self._watch.switch(CHECK)


def component_table(workspace):
    """Return (the Pair of the whole table, {"reference", "ours": [{stage: seconds} of each run]}, which its runs fill)."""
    mine = workspace.photos.part(workspace.settings.images // 2)
    recipe = workspace.recipe(epochs=workspace.settings.epochs, view="release")
    spent = {REFERENCE: [], OURS: []}

    def way(side, work):
        def timed():
            watch = Stopwatch()
            spent[side].append(watch.seconds)
            result = work(workspace, mine, recipe, watch)
            watch.switch(None)
            return result

        return timed

    starts = {
        name: weights_of(workspace.model(len(part), name)) for name, (_, part) in workspace.teachers(BRANCHES).items()
    }
    starts |= dict.fromkeys(STUDENTS, weights_of(workspace.model(workspace.classes, "student")))

    def difference(averages, chosen):
        # Half precision may turn the score that chooses a student's epoch: the reference's average of ours' epoch is compared.
        return worst(apart(averages[name][epoch - 1], mine, starts[name]) for name, (epoch, mine) in chosen.items())

    pair = Pair(
        f"the whole component table, k = {workspace.settings.k}",
        *(lambda: way(REFERENCE, by_reference), lambda: way(OURS, by_ours), difference),
        **{
            "tolerance": STUDENTS_APART,
            "compared": "EMA weights of all models, as a share of the way they went",
            "goal": 3,
        },
        counted=f"{mine.training} photos, {len(mine.held_out)} held out, {recipe.epochs} epochs of {len(starts)} models; "
        "release views; ours decodes first",
    )
    return pair, spent


def by_reference(workspace, mine, recipe, watch):
    """Train every model by itself from files; return {name: its average at the end of each epoch}."""
    size, seed = workspace.settings.size, workspace.settings.seed
    device, precision = workspace.device, workspace.precision()
    view, steps = workspace.batches(recipe).recipe, mine.training // min(recipe.batch_size, mine.training)

    def train(name, part, objective, stage, teachers=None):
        def epoch_of(number):
            batches = reference_training.epoch_from_files(mine, view, recipe, size, seed, number, device, watch)
            return reference_training.asked(batches, teachers, precision, watch) if teachers else batches

        def validate(model):
            logits = reference_training.logits_from_files(model, mine, mine.held_out, size, device, precision=precision)
            targets = mine.targets[mine.held_out][:, part]
            return reference.mean_of_known(reference.average_precision_class_by_class(logits, targets))

        model = workspace.model(len(part), name)
        arguments = (objective, epoch_of, steps, recipe, device, watch, stage, validate)
        averages, scores = reference_training.train(model, *arguments)
        # Of raw and averaged weights the release took the better; the best average is what ours takes.
        model.load_state_dict(averages[_best(scores)])
        return model.eval(), averages

    found, experts = {}, {branch: [] for branch in BRANCHES}
    for name, (branch, part) in workspace.teachers(BRANCHES).items():
        model, found[name] = train(name, part, workspace.objective(part, recipe), TEACH)
        experts[branch].append(model)
    classes = list(range(workspace.classes))
    for row in STUDENTS:
        teachers = {branch: (experts[branch], workspace.partitions[branch]) for branch in ROWS[row].teachers}
        _, found[row] = train("student", classes, _distillation(row, recipe), LEARN, teachers)
    return found


def by_ours(workspace, mine, recipe, watch):
    """Train all models by cpsd_lib's functions; return {name: (the epoch that was chosen, its average's weights)}."""
    watch.switch(INPUT)
    images = decode_once(mine, workspace.settings.size, workspace.fresh())
    validation = Validation(images, mine.targets, mine.held_out)

    def batches(stage, **more):
        return workspace.batches(recipe, mine, images, TimedBatches, watch=watch, stage=stage, **more)

    watch.switch(TEACH)
    learners = workspace.learners(BRANCHES, recipe)
    learned = workspace.fit(learners, batches(TEACH), recipe, validation)
    watch.switch(ASK)
    stores = _stored(workspace, mine, recipe, learners, batches(ASK))
    learned = {learner.name: (learned[learner.name]["epoch"], weights_of(learner.model)) for learner in learners}
    for row in STUDENTS:
        watch.switch(LEARN)
        model = workspace.model(workspace.classes, "student")
        # All is stored: nobody is asked any more.
        soft = TargetSource({branch: stores[branch] for branch in ROWS[row].teachers}, dict, workspace.device)
        learner = Learner(row, model, _distillation(row, recipe), list(range(workspace.classes)), {"row": row})
        entry = workspace.fit([learner], batches(LEARN, soft=soft), recipe, validation)[row]
        learned[row] = entry["epoch"], weights_of(model)
    return learned


def _stored(workspace, mine, recipe, learners, batches):
    """Return {branch: SoftTargets} of every view a student will see, filled by the trained learners."""
    merged, stores, root = {}, {}, workspace.fresh()
    for branch, partition in workspace.partitions.items():
        models = [learner.model.eval() for learner in learners if learner.name.startswith(f"{branch}-")]
        merged[branch] = PartTeachers(models, partition)
        stores[branch] = SoftTargets(root / f"{branch}.f16", {}, mine.rows, workspace.classes, recipe.epochs)
    folded = fold_teachers(merged, workspace.image())
    fill(TargetSource(stores, lambda: folded, workspace.device, workspace.precision()), batches, recipe.epochs)
    return stores


def _best(scores):
    """Return which epoch is kept, as cpsd_lib's loop has it: the first of the best; the last where there was nothing to score."""
    return -1 if np.isnan(scores).all() else int(np.nanargmax(scores))


def _distillation(row, recipe):
    return SelfDistillation(branch_weights(row, 0.5), "mse", recipe.gamma_neg, recipe.gamma_pos, recipe.clip)
