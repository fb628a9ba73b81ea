"""`make bench`: every part measured in one process, the table on the terminal, bench.json, and the exit status."""

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd

from bench import pairs
from bench.timing import OURS, REFERENCE, STAGES, measure
from bench.whole import component_table
from bench.workspace import MIN_STEPS, QUICK, Settings, Workspace
from cpsd_lib.support import keep_freed_memory, write_json
from cpsd_lib.workbench import outputs_root
from cpsd_lib.workbench.store import environment


def run_bench(settings):
    """Measure every part and return the record, a JSON-able dict with all that notebook 09 shows."""
    keep_freed_memory()  # as `cpsd run` does; it serves both sides
    load, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as folder:
        w = Workspace(settings, folder)
        parts = [*pairs.scoring(settings), pairs.embeddings(settings), pairs.averaging(settings)]
        parts += [pairs.views(w, "plain"), pairs.views(w, "default", goal=6), pairs.views(w, "release")]
        parts += [pairs.views(w, "default", goal=6, decode=True), pairs.student(w), pairs.teachers(w)]
        whole, spent = component_table(w)  # measured last: it sets the stopwatch of w
        for pair in [*parts, pairs.validation(w), whole]:
            print(pair.name, file=sys.stderr, flush=True)
            # In a smoke test a goal would stand beside a ratio that means nothing.
            rows.append(measure(replace(pair, goal=None) if settings.quick else pair, settings.repeats))
    # The first run of each side warmed up.
    stages = {
        side: {stage: statistics.median(run[stage] for run in runs[1:]) for stage in STAGES}
        for side, runs in spent.items()
    }
    machine = environment() | {"device": str(w.device), "load": [load, os.getloadavg()[0]]}
    return {
        "settings": asdict(settings),
        "machine": machine,
        "rows": rows,
        "stages": stages,
        "table": [cells(row) for row in rows],
        "of_stages": of_stages(stages),
        "measured": measured(machine, settings),
    }


def cells(row):
    """Return a row of the table as text {column: cell}."""
    goal = "" if row["goal"] is None else f">= {row['goal']:g} {'yes' if row['reached'] else 'no'}"
    difference = "NaN" if row["difference"] is None else f"{row['difference']:.1g}"
    return {
        "part": row["part"],
        "reference s": f"{row['reference_seconds']:,.3g}",
        "ours s": f"{row['our_seconds']:,.3g}",
        "ratio": f"{row['ratio']:.3g}",
        "spread": "-".join(f"{ratio:.3g}" for ratio in row["spread"]),
        "goal": goal,
        "same result?": f"{'same' if row['same'] else 'DIFFERS'}: {difference} (at most {row['tolerance']:g})",
    }


def of_stages(stages):
    """Return where the time of the whole table goes and where it is saved; stages {side: {stage: seconds}}."""
    slow, fast = stages[REFERENCE], stages[OURS]
    lines = [f"{stage}: {slow[stage]:.3g} s in the reference, {fast[stage]:.3g} s in ours" for stage in fast]
    most, saved = max(fast, key=fast.get), max(fast, key=lambda stage: slow[stage] - fast[stage])
    share = 100 * fast[most] / sum(fast.values())
    return "\n".join([*lines, f"Most of our time is {most}: {share:.0f} %. Most is saved in {saved}."])


def measured(machine, settings):
    """Return what was measured where, and that a smoke test is one."""
    hardware = machine["hardware"]
    quick = "\nA smoke test of some seconds: its ratios mean nothing." if settings.quick else ""
    return (
        f"{settings.model}, {settings.size} px, k = {settings.k}, {settings.images} photos, batch {settings.batch}; "
        f"medians of {settings.repeats} runs of each way in turn.\nOn {machine['device']}: {hardware['cpu']}, "
        f"{hardware['torch_threads']} threads, GPU {hardware['gpu']}; load before and after {machine['load']};\n"
        f"torch {machine['versions']['torch']}, commit {machine['commit']}.{quick}"
    )


def main(words=None):
    """Measure, print and write the record; return the exit status, 1 when a pair's results differ.

    A goal that is not reached is a figure; another result is a fault.
    """
    parser = argparse.ArgumentParser(prog="make bench args=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of some seconds: its ratios mean nothing")
    parser.add_argument(
        "--out", type=Path, default=outputs_root() / "bench" / "bench.json", help="default: %(default)s"
    )
    for field in fields(Settings):
        if field.type in (int, str):
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=field.type, default=argparse.SUPPRESS, help=f"default: {field.default}")
    options = vars(parser.parse_args(words))
    quick, out = options.pop("quick"), options.pop("out")
    settings = Settings(**(QUICK if quick else {}) | options)
    if settings.images // settings.batch < MIN_STEPS:
        parser.error(f"{settings.images} images are fewer than {MIN_STEPS} batches of {settings.batch}")
    record = run_bench(settings)
    write_json(out, record)
    table = pd.DataFrame(record["table"]).to_string(index=False)
    print(table, record["of_stages"], record["measured"], f"written to {out}", sep="\n\n")
    return 0 if all(row["same"] for row in record["rows"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
