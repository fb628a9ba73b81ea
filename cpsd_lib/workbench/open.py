"""A finished run opened from anywhere: its models, and an explorer of each kind."""

from cpsd_lib import graph
from cpsd_lib.viz import cam_browser, partition_explorer, threshold_explorer
from cpsd_lib.workbench.evidence import probabilities_of
from cpsd_lib.workbench.explanation import load_models, load_named
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.run import Run, load_partitions, open_run
from cpsd_lib.workbench.yaml_files import outputs_root

KINDS = ("partition", "thresholds", "cams")


def load_model(run, row="cpsd", seed=None):
    """Return a finished model of a run, in eval mode, with `.class_names` and `.input_size` (pixels).

    run: a Run, the name of a run in outputs/, or a parameter file. row: a row of its table, or teachers_co, teachers_dis, ...
    for the merged experts of a branch. seed: the run's first by default.
    Raises MissingStage when that model is not there, ParameterError for an unknown run.
    """
    run = _opened(run)
    model = load_named(run, run.params.seed if seed is None else seed, row)
    model.class_names, model.input_size = run.described["class_names"], run.params.data.size
    return model.eval()


def explore(run="demo", kind="partition", seed=None):
    """Return an explorer of a run: "partition" of its label graph, "thresholds" or "cams" of its models on test images.

    run: a Run, the name of a run in outputs/, or a parameter file; seed: whose models, the run's first by default. It is
    shown as the last line of a notebook's cell. Raises ValueError for another kind, MissingStage for what was not made yet.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    run = _opened(run)
    table, seed = run.dataset.table, run.params.seed if seed is None else seed
    if kind == "partition":
        settings = run.params.partition
        start = {"k": settings.k, "exponent": settings.exponent, "seed": settings.seed, "refine": settings.refine_co}
        counts, occurrence = graph.cooccurrence(table.targets[table.indices("train")])
        compare = load_partitions(run) if (run.folder / "partition" / "fingerprint.json").exists() else None
        return partition_explorer(
            counts, occurrence, table.names, start, compare, run.folder, self_loops=settings.self_loops
        )
    test = table.indices("test")
    if kind == "thresholds":
        row = "cpsd" if "cpsd" in run.params.student.rows else run.params.student.rows[-1]
        return threshold_explorer(probabilities_of(run, seed, row, "test"), table.targets[test], table.names)
    return cam_browser(load_models(run, seed), run.dataset.need_images(), test, table.targets, table.names)


def _opened(run):
    if isinstance(run, Run):
        return run
    finished = outputs_root() / str(run) / "params.yaml"
    # Its data and the weights it started from may be on another machine: what it made is enough.
    return Run(load_params(str(finished), paths=False)) if finished.is_file() else open_run(run)
