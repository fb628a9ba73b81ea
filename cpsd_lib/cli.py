"""The command line: `cpsd run params/demo.yaml key=value ...`, also `python -m cpsd_lib`."""

import argparse
import re
import sys
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

# Its names are imported on first use, and those that load torch after a look at the parameters: a wrong one is answered at once.
from cpsd_lib import workbench
from cpsd_lib.data import ImportSettings
from cpsd_lib.support import counted, keep_freed_memory, memory, pick_device

EXAMPLES = """examples:
  cpsd list                                               what there is to run, and what has run
  cpsd run tiny                                           everything once, in minutes
  cpsd run demo name=five partition.k=5 seeds=3           a run of your own; `cpsd params` has all the names
  cpsd run demo name=five partition.k=5 seeds=3 --dry-run what that would do, and how long it takes
  cpsd predict five photos/ --csv labels.csv              label photos"""


def main(arguments=None):
    """Run one command; return the exit status (0 when all went well, 130 after Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter of a class name shows its number
        getattr(stream, "reconfigure", lambda errors: None)(errors="backslashreplace")
    options = vars(_parser().parse_args(arguments))
    work, way = options.pop("work"), options.pop("way", "the same command goes on from the last checkpoint")
    try:
        if "overrides" in options:
            options["overrides"] = workbench.parse_overrides(options["overrides"])
        done = work(**options) or 0
        if isinstance(done, int):
            return done
        print("\n".join(done))
        return 0
    except KeyboardInterrupt:
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


def _parser():
    """Return the parser: what it returns has `work`, which takes all else by name, and maybe the `way` on after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="cpsd", description="Distil many small multi-label experts into one model.")
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument("--version", action="version", version=f"cpsd {version('cpsd_lib')}")
    commands = parser.add_subparsers(required=True)

    of_run, of_model = (argparse.ArgumentParser(add_help=False) for _ in range(2))
    of_run.add_argument("params", help="a YAML file, or its name in params/")
    # The default tells argparse that none are needed, also in its message of what is missing.
    of_run.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="e.g. student.epochs=5 seeds=3")
    of_model.add_argument("--row", help="a row of the run's table (default: cpsd), or teachers_co, teachers_dis, ...")
    of_model.add_argument("--seed", type=int, help="the run's first by default")

    def add(among, name, work, text, *parents, **defaults):
        command = among.add_parser(name, help=text, parents=parents)
        command.set_defaults(work=work, **defaults)
        return command.add_argument

    option = add(commands, "run", _run, "run or go on with all stages of a parameter file", of_run)
    option("--dry-run", action="store_true", help="say which stages would be done, why and about how long")
    add(commands, "list", lambda: workbench.listing(), "runs, parameter files, grids and rows, a line each")
    option = add(commands, "params", lambda begin: workbench.parameters(begin), "every parameter, default and meaning")
    option("begin", nargs="?", default="", metavar="NAME", help="those that begin so, such as student or data.s")
    option = add(
        commands, "evaluate", _evaluate, "score a checkpoint released with the paper: notebook 05 on it", of_run
    )
    option("--released", required=True, metavar="MODEL", help="e.g. resnet101")
    option("--checkpoint", required=True, metavar="F.ckpt", help="its file; F.json may name its classes")
    add(commands, "cost", _cost, "what a run will cost: weights, GFLOP, GPU memory, EFLOP; needs no photos", of_run)
    add(commands, "grid", _grid, "run every combination of a grid file, one by one: params/grids/*.yaml", of_run)
    data = commands.add_parser("data", help="look at a data set").add_subparsers(required=True)
    option = add(data, "import", _import, "write annotations.csv, with a link to the photos, from other labels")
    option("source", metavar="SOURCE", help="a file or a folder of labels")
    option("--to", required=True, metavar="FOLDER", help="where annotations.csv is written")
    option("--kind", required=True, help="table, coco, voc or folders (one a label)")
    for one in fields(ImportSettings)[3:]:
        value = {"type": int if one.name == "seed" else str, "metavar": "X"}
        form = {"action": "store_true"} if one.default is False else value
        option(f"--{one.name.replace('_', '-')}", default=one.default, help=one.metadata["help"], **form)
    option("--dry-run", action="store_true", help="print what was understood, write nothing")
    add(data, "check", _check_data, "counts, missing files, label frequencies and a verdict, without training", of_run)
    option = add(commands, "store", _store, "trained models and soft targets that runs share: list, size or clean")
    option("action", choices=["list", "size", "clean"], help="clean removes what no run in outputs/ uses")
    option = add(commands, "check-gpu", _check_gpu, "is the training right on this GPU, and how fast? (minutes)")
    option("--device", default="cuda", help="cuda, cuda:N; cpu: what can be checked without a GPU")
    option("--to", default="check-gpu.json", metavar="FILE", help="the figures as JSON")
    text = "write a finished model into a folder that loads anywhere, or as ONNX"
    option = add(commands, "export", _export, text, of_model, way="nothing was written")
    option("model", help="a run in outputs/, its folder, its parameter file, or a model folder")
    option("--to", required=True, metavar="FOLDER", help="a new folder")
    forms = "cpsd: for load_model and cpsd predict; onnx: one graph; timm: the backbone's weights"
    option("--format", choices=["cpsd", "onnx", "timm"], default="cpsd", help=forms)
    way = "the same command with --resume goes on with its --csv"
    option = add(commands, "predict", _predict, "label photos by a finished model", of_model, way=way)
    option("model", help="a model folder, or a run as for export")
    option("photos", nargs="+", help="files, folders with all below them, or a .txt of paths, one a line")
    option("--csv", metavar="OUT", help="write file_name, labels and p_<class> here; else a line a photo")
    rules = "tuned on held-out images (default where there were some), a probability (0.5), or top3"
    option("--threshold", type=_threshold, help=rules)
    option("--calibrated", action="store_true", help="probabilities calibrated on held-out images")
    option("--batch-size", type=_batch_size, default=64, metavar="N")
    option("--device", default="auto", help="auto, cpu or cuda:0")
    option("--resume", action="store_true", help="go on with a --csv that was begun")
    option("--strict", action="store_true", help="exit status 1 where a photo cannot be read")
    return parser


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


def _export(model, row, seed, to, format):
    return workbench.export(workbench.opened(model), row, seed, to, format)


def _predict(model, photos, row, seed, device, csv, resume, strict, **rules):
    if resume and not csv:
        raise workbench.ParameterError("--resume goes on with a CSV: name it by --csv")
    from cpsd_lib.data import find_photos

    photos, others = find_photos(photos)
    if others:
        print(f"{counted(others, 'file')} of other kinds in the folders left out", file=sys.stderr)
    keep_freed_memory()
    device = pick_device(device)
    model = workbench.load_model(model, row, seed).to(device)
    unreadable = workbench.label_photos(model, photos, csv, resume=resume, **rules)
    return 1 if unreadable and strict else 0


def _evaluate(params, overrides, released, checkpoint):
    """Score one checkpoint, in a run folder of its own."""
    checkpoint = str(Path(checkpoint).resolve())  # relative to where the user types, unlike in a file
    scored = {"evaluation.released": released, "evaluation.checkpoint": checkpoint}
    name = workbench.load_params(params, overrides | scored).name
    name = f"{name}_{re.sub(r'[^A-Za-z0-9._-]', '-', Path(checkpoint).stem)}"[:100]
    _run(params, {"name": name} | scored | overrides)


def _run(params, overrides, dry_run=False):
    checked = workbench.load_params(params, overrides)
    if dry_run:
        return workbench.plan(checked)
    workbench.check_outputs(checked.name)
    done = workbench.run_stages(params, overrides)
    if "05_evaluation" not in workbench.stages_of(done.params):
        print(f"\nlabels without images: nothing was trained; look at {done.folder / '02_partition.ipynb'}")
        return
    print(workbench.scores_text(done))
    print(f"\nreport: {workbench.write_report(done)}")


def _cost(params, overrides):
    params = workbench.load_params(params, overrides, paths=False)
    there = workbench.images_of(params.data)
    cost = workbench.estimate(params, there.classes, there.train, there.test, unlabelled=there.unlabelled)
    unlabelled = f", {there.unlabelled:,} unlabelled" if there.unlabelled else ""
    images = f"{there.train:,} training{unlabelled} and {counted(there.test, 'test image')}"
    print(f"{params.name}: {images}, {counted(there.classes, 'class', 'classes')} ({there.origin})")
    print(workbench.card(cost), flush=True)
    if cost.trained_images:
        try:
            speed = workbench.measured_speed(params, cost)
        except RuntimeError as error:  # the figures above are worth having all the same
            print(f"No time on this machine: a training step does not run here ({str(error).partition('.')[0]}).")
            return
        time = workbench.spoken_time(cost.eflop * 1e18 / speed)
        print(f"On this machine, where its student has just trained at {speed / 1e9:,.3g} GFLOP/s, it is {time}.")


def _store(action):
    store, outputs = workbench.Store(), workbench.outputs_root()
    if action == "clean":
        print(f"{memory(workbench.clean(store, outputs) / 2**30)} freed: what no run in {outputs} uses")
        return
    artifacts = workbench.inventory(store, outputs)
    for kind, key, size, runs in artifacts if action == "list" else []:
        print(f"{kind:<12}  {key}  {size / 2**20:>9,.1f} MiB  {', '.join(runs) or 'no run uses it'}")
    for kind in dict.fromkeys(kind for kind, *_ in artifacts):
        sizes = [size for of_kind, _, size, _ in artifacts if of_kind == kind]
        print(f"{kind}: {counted(len(sizes), 'artifact')}, {memory(sum(sizes) / 2**30)}")
    unused = [size for *_, size, runs in artifacts if not runs]
    print(f"in {store.root}; {memory(sum(unused) / 2**30)} of {counted(len(unused), 'artifact')} that no run uses")


def _check_gpu(device, to):
    tests = workbench.repo_root() / "tests"
    if not (tests / "bench" / "gpu_check.py").is_file():
        raise workbench.ParameterError(f"check-gpu runs tests/bench/gpu_check.py of a clone, which is not in {tests}")
    sys.path.insert(0, str(tests))
    return import_module("bench.gpu_check").main(["--device", device, "--to", to])


def _grid(params, overrides):
    workbench.check_outputs(workbench.jobs_of(workbench.load_grid(params, overrides))[0].name)
    return workbench.run_grid(params, overrides)


def _import(dry_run, **options):
    settings = ImportSettings(**options)
    from cpsd_lib.data import import_labels

    return import_labels(settings, dry_run)


def _check_data(params, overrides):
    params = workbench.load_params(params, overrides, paths=False)  # no file of a model needs to be there
    data = workbench.on_disk("data", params.data)
    from cpsd_lib.data import check_data

    checked = check_data(data, workbench.outputs_root() / params.name)
    cuts = () if checked.table is None else params.partition.study(len(checked.table.names))[2:]
    if checked.trainable and not params.evaluation.released:
        try:
            workbench.check_count(params, checked.table)
            workbench.check_cut(params, checked.table)
        except workbench.ParameterError as error:
            print("\n".join([*checked.lines[:-1], f"verdict: it cannot train: {error}"]))
            return 1
        unused = [name for name in ("teachers", "student") if getattr(params, name).select != "val"]
        if unused and params.protocol != "paper" and len(checked.table.indices("val")):
            cuts = [*cuts, f"note: split 'val' is not used by {' and '.join(unused)}: train.select=val does"]
    print("\n".join([*checked.lines[:-1], *cuts, checked.lines[-1]]))
    return 0 if checked.trainable else 1
