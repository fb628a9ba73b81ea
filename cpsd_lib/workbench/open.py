"""A finished run opened from anywhere: its models, and an explorer of each kind."""

from pathlib import Path

from cpsd_lib import graph
from cpsd_lib.viz import cam_browser, partition_explorer, threshold_explorer
from cpsd_lib.workbench.explanation import load_models
from cpsd_lib.workbench.handover import finished_model
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.model_folder import ready
from cpsd_lib.workbench.run import Run, load_partitions, open_run
from cpsd_lib.workbench.scoring import probabilities_of, scores_of
from cpsd_lib.workbench.yaml_files import ParameterError, outputs_root

KINDS = ("partition", "thresholds", "cams")


def load_model(model, row=None, seed=None):
    """Return a finished model in eval mode: its call gives logits or an Output, its `.predict(images)` a DataFrame.

    model: a model folder (`cpsd export`); else a Run, a run's name in outputs/ or its folder, or a parameter file. row: of a
    run, a row of its table, cpsd by default, or teachers_co, teachers_dis, ... for the merged experts of a branch; seed: the
    run's first by default. It has `.class_names`, `.input_size` (pixels), and where the run held out training images
    `.calibration` and `.thresholds` [C], for probabilities that are not calibrated, else None. Neither data set, network nor
    original weights are needed.
    Raises MissingStage when the model is not there, ParameterError for an unknown run, row or seed, ValueError for a model
    folder that is damaged.
    """
    return ready(*finished_model(opened(model), row, seed))


def opened(model):
    """Return what `load_model` takes as the Path of a model folder, or else as a Run."""
    return opened_run(model) if isinstance(model, Run) or not (Path(model) / "config.json").is_file() else Path(model)


def explore(run="demo", kind="partition", seed=None):
    """Return an explorer of a run: "partition" of its label graph, "thresholds" or "cams" of its models on test images.

    run: a Run, the name of a run in outputs/, or a parameter file; seed: whose models, the run's first by default. It is
    shown as the last line of a notebook's cell. Raises ValueError for another kind, MissingStage for what was not made yet.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    run = opened_run(run)
    table, seed = run.dataset.table, run.params.seed if seed is None else seed
    if kind == "partition":
        settings = run.params.partition
        start = {"k": settings.k, "exponent": settings.exponent, "seed": settings.seed}
        start["refine"] = {"co": settings.refine_co, "dis": settings.refine_dis}
        counts, occurrence = graph.cooccurrence(table.targets[table.indices("train")])
        compare = load_partitions(run) if (run.folder / "partition" / "fingerprint.json").exists() else None
        cutting = {"self_loops": settings.self_loops, "balance": settings.balance}
        return partition_explorer(counts, occurrence, table.names, start, compare, run.folder, **cutting)
    test = table.indices("test")
    if kind == "thresholds":
        row = "cpsd" if "cpsd" in run.params.student.rows else run.params.student.rows[-1]
        scores, targets = probabilities_of(run, seed, row, "test"), scores_of(run, seed, "targets", "test")
        return threshold_explorer(scores, targets, table.names)
    return cam_browser(load_models(run, seed), run.dataset.need_images(), test, table.targets, table.names)


def opened_run(run):
    """Return the Run of what `load_model` takes but a model folder; a finished one needs neither its data nor its weights."""
    if isinstance(run, Run):
        return run
    for folder in (outputs_root() / str(run), Path(run)):
        if (folder / "params.yaml").is_file():
            finished = Run(load_params(str(folder / "params.yaml"), paths=False))
            if folder.resolve() != (outputs_root() / finished.params.name).resolve():
                where = f"{folder} is not the run {finished.params.name} in {outputs_root()}"
                raise ParameterError(f"{where}: set CPSD_OUTPUTS to the folder it is in, and keep its name")
            return finished
    return open_run(run)
