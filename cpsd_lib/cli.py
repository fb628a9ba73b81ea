"""The command line: `cpsd run params/demo.yaml key=value ...`, also `python -m cpsd_lib`."""

import argparse
import re
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

# Its names are imported on first use, and those that load torch after a look at the parameters: a wrong one is answered at once.
from cpsd_lib import workbench
from cpsd_lib.data import ImportSettings
from cpsd_lib.support import counted, keep_freed_memory, memory, pick_device


def main(arguments=None):
    """Run one command; return the exit status (0 when all went well, 130 after Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter of a class name shows its number
        getattr(stream, "reconfigure", lambda errors: None)(errors="backslashreplace")
    parser = argparse.ArgumentParser(prog="cpsd", description="Distil many small multi-label experts into one model.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run or go on with all stages of a parameter file")
    evaluate = commands.add_parser("evaluate", help="score a checkpoint released with the paper: notebook 05 on it")
    evaluate.add_argument("--released", required=True, metavar="MODEL", help="e.g. resnet101")
    evaluate.add_argument("--checkpoint", required=True, metavar="F.ckpt", help="its file; F.json may name its classes")
    cost = commands.add_parser("cost", help="what a run will cost: weights, GFLOP, GPU memory, EFLOP; needs no data")
    targets = commands.add_parser("targets", help="fill the store of soft targets ahead, when 03_teachers is done")
    grid = commands.add_parser("grid", help="run every combination of a grid file, side by side: params/grids/*.yaml")
    data = commands.add_parser("data", help="look at a data set").add_subparsers(dest="data_command", required=True)
    store = commands.add_parser("store", help="trained models and soft targets that runs share: list, size or clean")
    store.add_argument("action", choices=["list", "size", "clean"], help="clean removes what no run in outputs/ uses")
    import_ = data.add_parser("import", help="write annotations.csv, with a link to the photos, from other labels")
    import_.add_argument("source", metavar="SOURCE", help="a file or a folder of labels")
    import_.add_argument("--to", required=True, metavar="FOLDER", help="where annotations.csv is written")
    import_.add_argument("--kind", required=True, help="table, coco, voc or folders (one a label)")
    for option in fields(ImportSettings)[3:]:
        value = {"type": int if option.name == "seed" else str, "metavar": "X"}
        form = {"action": "store_true"} if option.default is False else value
        name, text = option.name.replace("_", "-"), option.metadata["help"]
        import_.add_argument(f"--{name}", default=option.default, help=text, **form)
    import_.add_argument("--dry-run", action="store_true", help="print what was understood, write nothing")
    check = data.add_parser("check", help="counts, missing files, label frequencies and a verdict, without training")
    for command in (run, evaluate, cost, targets, grid, check):
        command.add_argument("params", help="a YAML file, or its name in params/")
        # The default tells argparse that none are needed, also in its message of what is missing.
        command.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="e.g. student.epochs=5 seeds=3"
        )
    _add_use(commands)
    options = parser.parse_args(arguments)
    try:
        if options.command == "store":
            return _store(options.action)
        if getattr(options, "data_command", None) == "import":
            return _import(vars(options))
        if options.command in ("export", "predict"):
            return {"export": _export, "predict": _predict}[options.command](options)
        overrides = workbench.parse_overrides(options.overrides)
        if options.command == "evaluate":
            checkpoint = str(Path(options.checkpoint).resolve())  # relative to where the user types, unlike in a file
            overrides = _released(options.params, overrides, options.released, checkpoint) | overrides
        work = {"run": _run, "evaluate": _run, "cost": _cost, "targets": _targets, "grid": _grid, "data": _check_data}
        return work[options.command](options.params, overrides)
    except KeyboardInterrupt:
        ways = {"predict": "the same command with --resume goes on with its --csv", "export": "nothing was written"}
        way = ways.get(options.command, "the same command goes on from the last checkpoint")
        print(f"\nstopped; {way}", file=sys.stderr)
        return 130
    except workbench.ParameterError as error:
        print(f"nothing was started:\n{error}", file=sys.stderr)
        return 2
    except workbench.Stopped as error:
        print(error, file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:  # a broken file of the run, a full disk: they name what it is
        print(f"stopped: {error}", file=sys.stderr)
        return 1


def _add_use(commands):
    """Add the commands that use a finished model."""
    export = commands.add_parser("export", help="write a finished model into a folder that loads anywhere, or as ONNX")
    export.add_argument("run", help="a run in outputs/, its folder, or its parameter file")
    export.add_argument("--to", required=True, metavar="FOLDER", help="a new folder")
    forms = "cpsd: for load_model and cpsd predict; onnx: one graph; timm: the backbone's weights"
    export.add_argument("--format", choices=["cpsd", "onnx", "timm"], default="cpsd", help=forms)
    predict = commands.add_parser("predict", help="label photos by a finished model")
    predict.add_argument("model", help="a model folder, or a run as for export")
    predict.add_argument("photos", nargs="+", help="files, folders with all below them, or a .txt of paths, one a line")
    for command in (export, predict):
        command.add_argument("--row", help="a row of the run's table (cpsd), or teachers_co, teachers_dis, ...")
        command.add_argument("--seed", type=int, help="the run's first by default")
    predict.add_argument("--csv", metavar="OUT", help="write file_name, labels and p_<class> here; else a line a photo")
    rules = "tuned on held-out images (default where there were some), a probability (0.5), or top3"
    predict.add_argument("--threshold", type=_threshold, help=rules)
    predict.add_argument("--calibrated", action="store_true", help="probabilities calibrated on held-out images")
    predict.add_argument("--batch-size", type=_batch_size, default=64, metavar="N")
    predict.add_argument("--device", default="auto", help="auto, cpu or cuda:0")
    predict.add_argument("--resume", action="store_true", help="go on with a --csv that was begun")
    predict.add_argument("--strict", action="store_true", help="exit status 1 where a photo cannot be read")


def _batch_size(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


def _threshold(text):
    if text in ("tuned", "top3"):
        return text
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be tuned, top3 or a probability such as 0.5; got {text!r}")


def _export(options):
    run = workbench.opened_run(options.run)
    print("\n".join(workbench.export(run, options.row, options.seed, options.to, options.format)))
    return 0


def _predict(options):
    if options.resume and not options.csv:
        raise workbench.ParameterError("--resume goes on with a CSV: name it by --csv")
    from cpsd_lib.data import find_photos

    photos, others = find_photos(options.photos)
    if others:
        print(f"{counted(others, 'file')} of other kinds in the folders left out", file=sys.stderr)
    keep_freed_memory()
    device = pick_device(options.device)
    model = workbench.load_model(options.model, options.row, options.seed).to(device)
    rules = (options.threshold, options.calibrated, options.batch_size, options.resume)
    unreadable = workbench.label_photos(model, photos, options.csv, *rules)
    return 1 if unreadable and options.strict else 0


def _released(source, overrides, model, checkpoint):
    """Return the overrides that turn a parameter file into the scoring of one checkpoint, in a folder of its own."""
    scored = {"evaluation.released": model, "evaluation.checkpoint": checkpoint}
    name = workbench.load_params(source, overrides | scored).name
    return {"name": f"{name}_{re.sub(r'[^A-Za-z0-9._-]', '-', Path(checkpoint).stem)}"[:100]} | scored


def _run(source, overrides):
    workbench.load_params(source, overrides)
    done = workbench.run_stages(source, overrides)
    if "05_evaluation" not in workbench.stages_of(done.params):
        print(f"\nlabels without images: nothing was trained; look at {done.folder / '02_partition.ipynb'}")
        return 0
    print(workbench.scores_text(done))
    print(f"\nreport: {workbench.write_report(done)}")
    return 0


def _cost(source, overrides):
    params = workbench.load_params(source, overrides, paths=False)
    there = workbench.images_of(params.data)
    shown = workbench.card(
        workbench.estimate(params, there.classes, there.train, there.test, unlabelled=there.unlabelled)
    )
    unlabelled = f", {there.unlabelled:,} unlabelled" if there.unlabelled else ""
    images = f"{there.train:,} training{unlabelled} and {counted(there.test, 'test image')}"
    print(f"{params.name}: {images}, {counted(there.classes, 'class', 'classes')} ({there.origin})\n{shown}")
    return 0


def _targets(source, overrides):
    folder = workbench.outputs_root() / workbench.load_params(source, overrides).name
    if not folder.exists():
        raise workbench.MissingStage(
            f"there is no run {folder.name} in {folder.parent}; run 03_teachers first: cpsd run {source}"
        )
    run = workbench.open_run(source, overrides)
    with workbench.one_runner(folder):
        for seed in run.params.seed_list():
            workbench.fill_targets(run, seed)
    return 0


def _store(action):
    store, outputs = workbench.Store(), workbench.outputs_root()
    if action == "clean":
        print(f"{memory(workbench.clean(store, outputs) / 2**30)} freed: what no run in {outputs} uses")
        return 0
    artifacts = workbench.inventory(store, outputs)
    for kind, key, size, runs in artifacts if action == "list" else []:
        print(f"{kind:<12}  {key}  {size / 2**20:>9,.1f} MiB  {', '.join(runs) or 'no run uses it'}")
    for kind in dict.fromkeys(kind for kind, *_ in artifacts):
        sizes = [size for of_kind, _, size, _ in artifacts if of_kind == kind]
        print(f"{kind}: {counted(len(sizes), 'artifact')}, {memory(sum(sizes) / 2**30)}")
    unused = [size for *_, size, runs in artifacts if not runs]
    print(f"in {store.root}; {memory(sum(unused) / 2**30)} of {counted(len(unused), 'artifact')} that no run uses")
    return 0


def _grid(source, overrides):
    workbench.jobs_of(workbench.load_grid(source, overrides))
    return workbench.run_grid(source, overrides)


def _import(options):
    settings = ImportSettings(**{field.name: options[field.name] for field in fields(ImportSettings)})
    from cpsd_lib.data import import_labels

    print("\n".join(import_labels(settings, options["dry_run"])))
    return 0


def _check_data(source, overrides):
    params = workbench.load_params(source, overrides, paths=False)  # no file of a model needs to be there
    data = workbench.data_on_disk(params.data)
    from cpsd_lib.data import check_data

    checked = check_data(data, workbench.outputs_root() / params.name)
    if checked.trainable:
        try:
            workbench.check_count(params, checked.table)
        except workbench.ParameterError as error:
            print("\n".join([*checked.lines[:-1], f"verdict: it cannot train: {error}"]))
            return 1
    print("\n".join(checked.lines))
    return 0 if checked.trainable else 1
