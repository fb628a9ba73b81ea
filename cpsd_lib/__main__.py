"""The command line: `cpsd run params/demo.yaml key=value ...`, also `python -m cpsd_lib`."""

import argparse
import sys

from cpsd_lib.params import ParameterError, parse_overrides


def main(arguments=None):
    """Run one command; return the exit status (0 when all went well, 130 after Ctrl-C)."""
    parser = argparse.ArgumentParser(prog="cpsd", description="Distil many small multi-label experts into one model.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run or go on with all stages of a parameter file")
    data = commands.add_parser("data", help="look at a data set").add_subparsers(dest="data_command", required=True)
    check = data.add_parser("check", help="counts, missing files, label frequencies and a verdict, without training")
    for command in (run, check):
        command.add_argument("params", help="a YAML file, or its name in params/")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. student.epochs=5 seeds=3")
    options = parser.parse_args(arguments)
    try:
        overrides = parse_overrides(options.overrides)
        return _check_data(options.params, overrides) if options.command == "data" else _run(options.params, overrides)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except ParameterError as error:
        print(f"nothing was started:\n{error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:  # a broken file of the run, a full disk: they say what they are
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _run(source, overrides):
    # Imported late: a wrong parameter is answered before torch is loaded.
    from cpsd_lib.params import load_params

    load_params(source, overrides)
    from cpsd_lib.evaluation import SPLITS, component_table, load_records, stamp, table_text
    from cpsd_lib.report import reading, write_report
    from cpsd_lib.run import Held, StageFailed, run

    try:
        done = run(source, overrides)
    except (Held, StageFailed) as error:
        print(error, file=sys.stderr)
        return 1
    records = load_records(done)
    for split in [split for split in SPLITS if split in set(records["split"])]:
        table = component_table(records, split)
        print(f"\n{done.params.name}: mAP on {split}, {done.params.seeds} seed(s){stamp(done)}")
        print(f"{table_text(table)}\n{reading(table, split)}")
    print(f"\nreport: {write_report(done)}")
    return 0


def _check_data(source, overrides):
    from cpsd_lib.params import load_params, outputs_root

    params = load_params(source, overrides)
    from cpsd_lib.data.check import check

    found = check(params.data, outputs_root() / params.name)
    print("\n".join(found.lines))
    return 0 if found.trainable else 1


if __name__ == "__main__":
    sys.exit(main())
