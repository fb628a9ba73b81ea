"""The command line: `cpsd run params/demo.yaml key=value ...`, also `python -m cpsd_lib`."""

import argparse
import os
import re
import sys
from pathlib import Path

from cpsd_lib.bench import command as bench
from cpsd_lib.param_files import ParameterError, find_params, is_grid, parse_overrides, read_params, repo_root


def main(arguments=None):
    """Run one command; return the exit status (0 when all went well, 130 after Ctrl-C)."""
    parser = argparse.ArgumentParser(prog="cpsd", description="Distil many small multi-label experts into one model.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run or go on with all stages of a parameter file")
    evaluate = commands.add_parser("evaluate", help="score a checkpoint released with the paper: notebook 05 on it")
    evaluate.add_argument("--released", required=True, metavar="MODEL", help="e.g. resnet101")
    evaluate.add_argument("--checkpoint", required=True, metavar="F.ckpt", help="its file; F.json may say its classes")
    cost = commands.add_parser("cost", help="what a run will cost: weights, GFLOP, GPU memory, EFLOP; needs no data")
    targets = commands.add_parser("targets", help="fill the store of soft targets ahead, when 03_teachers is done")
    grid = commands.add_parser("grid", help="run every combination of a grid file, side by side: params/grids/*.yaml")
    bench.add_options(commands.add_parser("bench", help="time the workbench against a straightforward program"))
    data = commands.add_parser("data", help="look at a data set").add_subparsers(dest="data_command", required=True)
    check = data.add_parser("check", help="counts, missing files, label frequencies and a verdict, without training")
    for command in (run, evaluate, cost, targets, grid, check):
        command.add_argument("params", help="a YAML file, or its name in params/")
        # The default tells argparse that none are needed, also in its message of what is missing.
        command.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="e.g. student.epochs=5 seeds=3"
        )
    options = parser.parse_args(arguments)
    try:
        if options.command == "bench":
            return bench.run(options)
        overrides = parse_overrides(options.overrides)
        if options.command == "evaluate":
            checkpoint = str(Path(options.checkpoint).resolve())  # relative to where the user types, unlike in a file
            overrides = _released(options.params, overrides, options.released, checkpoint) | overrides
        work = {"run": _run, "evaluate": _run, "cost": _cost, "targets": _targets}
        work |= {"grid": _grid, "data": _check_data}
        return work[options.command](options.params, overrides)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except ParameterError as error:
        print(f"nothing was started:\n{error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:  # a broken file of the run, a full disk: they say what they are
        print(f"stopped: {error}", file=sys.stderr)
        return 1


def _released(source, overrides, model, checkpoint):
    """Return the overrides that turn a parameter file into the scoring of one checkpoint, in a folder of its own."""
    from cpsd_lib.param_reading import load_params

    scored = {"evaluation.released": model, "evaluation.checkpoint": checkpoint}
    name = load_params(source, overrides | scored).name
    return {"name": f"{name}_{re.sub(r'[^A-Za-z0-9._-]', '-', Path(checkpoint).stem)}"[:100]} | scored


def _run(source, overrides):
    # Imported late: a wrong parameter is answered before torch is loaded.
    from cpsd_lib.param_reading import load_params

    load_params(source, overrides)
    from cpsd_lib.report import write_report
    from cpsd_lib.run import Held, StageFailed, run, stages_of

    try:
        done = run(source, overrides)
    except (Held, StageFailed) as error:
        print(error, file=sys.stderr)
        return 1
    if "05_evaluation" not in stages_of(done.params):
        print(f"\nlabels without images: nothing was trained; look at {done.folder / '02_partition.ipynb'}")
        return 0
    _print_scores(done)
    print(f"\nreport: {write_report(done)}")
    return 0


def _print_scores(done):
    from cpsd_lib.evaluation import SPLITS, against_paper, component_table, load_records, stamp, table_text
    from cpsd_lib.published import no_figure
    from cpsd_lib.report import departure, reading
    from cpsd_lib.words import counted

    records = load_records(done)
    for split in [split for split in SPLITS if split in set(records["split"])]:
        table = component_table(records, split)
        print(f"\n{done.params.name}: mAP on {split}, {counted(int(table['seeds'].max()), 'seed')}{stamp(done)}")
        print(f"{table_text(table)}\n{reading(table, split)}".rstrip())
    if departure(done.params):
        print(f"\n{departure(done.params)}")
    compared = against_paper(records, done.params)
    if compared is not None:
        shown = compared.to_string(float_format=lambda value: f"{value:z.1f}")
        print(f"\nours beside the paper's, on test{stamp(done)}\n{shown}")
    elif no_figure(done.params):
        print(f"\nnot compared: {no_figure(done.params)}")


def _cost(source, overrides):
    from cpsd_lib.param_reading import load_params

    params = load_params(source, overrides, paths=False)
    from cpsd_lib.cost import estimate
    from cpsd_lib.cost_card import card
    from cpsd_lib.data.counts import images_of
    from cpsd_lib.words import counted

    train, test, classes, source = images_of(params.data)
    shown = card(estimate(params, classes, train, test))
    images = f"{train:,} training and {counted(test, 'test image')}"
    print(f"{params.name}: {images}, {counted(classes, 'class', 'classes')} ({source})\n{shown}")
    return 0


def _targets(source, overrides):
    from cpsd_lib.param_reading import load_params

    load_params(source, overrides)
    from cpsd_lib.distill import fill_targets
    from cpsd_lib.experiment import MissingStage, open_run
    from cpsd_lib.param_files import outputs_root
    from cpsd_lib.run import Held, one_runner

    run = open_run(source, overrides)
    try:
        if not (outputs_root() / run.params.name).exists():
            raise MissingStage(
                f"there is no run {run.params.name} in {outputs_root()}; run 03_teachers first: cpsd run {source}"
            )
        with one_runner(run.folder):
            for seed in run.params.seed_list():
                fill_targets(run, seed)
    except (Held, MissingStage) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _grid(source, overrides):
    from cpsd_lib.grids.params import jobs_of, load_grid

    try:
        jobs_of(load_grid(source, overrides))
    except ParameterError:
        _refuse_a_run(source)
        raise
    from cpsd_lib.grids.runner import run_grid

    return run_grid(source, overrides)


def _refuse_a_run(source):
    """Raise ParameterError when `source` is the parameter file of one run, in place of all that it lacks as a grid."""
    if any(os.path.isfile(repo_root() / "params" / "grids" / name) for name in (source, f"{source}.yaml")):
        return  # load_grid looks there first
    try:
        raw = read_params(find_params(source))
    except ParameterError:
        return  # load_grid has said what is wrong with it
    if not is_grid(raw) and "base" not in raw:
        raise ParameterError(f"{source} is one run, not a grid (it has no `vary:`); run it by: cpsd run {source}")


def _check_data(source, overrides):
    from cpsd_lib.param_files import outputs_root
    from cpsd_lib.param_reading import load_data

    name, data = load_data(source, overrides)
    from cpsd_lib.data.check import check

    found = check(data, outputs_root() / name)
    print("\n".join(found.lines))
    return 0 if found.trainable else 1


if __name__ == "__main__":
    sys.exit(main())
