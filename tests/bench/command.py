"""`cpsd bench`: its options, its table on the terminal, its JSON file and its exit status."""

import sys
from dataclasses import replace
from pathlib import Path

from bench.settings import MIN_REPEATS, Settings, quick
from cpsd_lib.workbench.yaml_files import ParameterError, outputs_root

GPU_IMAGES, GPU_BATCH = 1024, 64  # a GPU is through with 256 images before it is warm


def add_options(parser):
    """Add the options of `cpsd bench` to an argparse parser."""
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument("--model", default=Settings.model, help="a timm name; random weights (default %(default)s)")
    parser.add_argument("--size", type=int, default=Settings.size, help="pixels (default %(default)s)")
    parser.add_argument("--k", type=int, default=Settings.k, help="parts, so 2k teachers (default %(default)s)")
    parser.add_argument("--images", type=int, help=f"photos (default {Settings.images}; on a GPU {GPU_IMAGES:,})")
    parser.add_argument("--batch", type=int, help=f"images a step (default {Settings.batch}; on a GPU {GPU_BATCH})")
    parser.add_argument("--epochs", type=int, default=Settings.epochs, help="of the whole table (default %(default)s)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=Settings.repeats,
        help=f"of each way, at least {MIN_REPEATS} (default %(default)s)",
    )
    parser.add_argument(
        "--whole-repeats", type=int, default=Settings.whole_repeats, help="of the whole table (default %(default)s)"
    )
    parser.add_argument("--photos", metavar="FOLDER", help="images/ and annotations.csv; without it scenes are drawn")
    parser.add_argument("--quick", action="store_true", help="a smoke test of some seconds: its ratios mean nothing")
    parser.add_argument("--out", metavar="FILE.json", help="default: outputs/bench/bench.json, or quick.json")


def settings_of(options):
    """Return the Settings of parsed options; ParameterError for sizes that measure nothing."""
    # Imported late: --help and a wrong word are answered before torch is loaded.
    import torch

    from cpsd_lib.models.classifier import build_model
    from cpsd_lib.support import pick_device

    try:
        on_gpu = pick_device(options.device).type == "cuda"
        with torch.device("meta"):  # shapes only: a model that cannot be built is refused before photos are drawn
            build_model(options.model, 2)
    except (ValueError, RuntimeError) as error:
        raise ParameterError(str(error)) from None
    names = ("device", "model", "size", "k", "epochs", "repeats", "whole_repeats", "photos")
    sizes = {"images": GPU_IMAGES, "batch": GPU_BATCH} if on_gpu else {}
    sizes |= {name: getattr(options, name) for name in ("images", "batch") if getattr(options, name) is not None}
    found = Settings(**sizes, **{name: getattr(options, name) for name in names})
    return replace(quick(found), device=options.device) if options.quick else found


def run(options):
    """Measure, print and write the record; return the exit status, 1 when a pair's results differ."""
    settings = settings_of(options)
    from bench.bench import run_bench
    from bench.report import exit_status, machine_text, remarks, sentences, stages_text, table_text
    from cpsd_lib.support import write_json

    try:
        record = run_bench(settings)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    # Notebook 09 draws bench.json: a smoke test must not take its place.
    own = outputs_root() / "bench" / ("quick.json" if settings.quick else "bench.json")
    path = Path(options.out) if options.out else own
    write_json(path, record)
    print(f"{table_text(record)}\n\n{stages_text(record)}\n")
    print("\n".join([*sentences(record), *remarks(record)]))
    print(f"\n{machine_text(record)}\nwritten to {path}")
    return exit_status(record)
