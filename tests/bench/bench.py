"""The whole benchmark: every Pair measured in one process, the stages' shares, and the machine."""

import os
import statistics
import tempfile
from dataclasses import replace

from bench import gpu, parts
from bench.reference_training import STAGES
from bench.timing import measure
from bench.whole import component_table
from bench.workspace import open_workspace
from cpsd_lib.support import bar, keep_freed_memory
from cpsd_lib.workbench.pipeline import environment


def run_bench(settings):
    """Measure everything and return the record, a JSON-able dict: settings, machine, rows, stages, store_seconds, gpu.

    Each pair runs reference, ours, reference, ours, ...; the whole table settings.whole_repeats times and without warm-up,
    since all of it has run before. Raises ParameterError for settings that do not fit the photos.
    """
    keep_freed_memory()  # as `cpsd run` does; it serves both sides
    machine = environment() | {"load_before": _load()}
    with tempfile.TemporaryDirectory() as folder:
        workspace = open_workspace(settings, folder)
        student, store_seconds = parts.student(workspace)
        whole, spent = component_table(workspace)
        pairs = [*parts.scoring(settings), parts.embeddings(settings), parts.averaging(settings)]
        pairs += [*parts.photos(workspace), student, parts.teachers(workspace), parts.validation(workspace)]
        if settings.quick:  # a goal beside a ratio that means nothing would be read
            pairs, whole = [replace(pair, goal=None) for pair in pairs], replace(whole, goal=None)
        rows, runs = [], 2 * (len(pairs) * (settings.repeats + 1) + settings.whole_repeats)
        with bar(runs, "benchmark", "run") as progress:

            def after():
                progress.update(1)
                workspace.tidy()

            for pair in pairs:
                progress.note(pair.name)
                rows.append(measure(pair, settings.repeats, after=after))
            progress.note(whole.name)
            rows.append(measure(whole, settings.whole_repeats, warm_up=False, after=after))
        taught = next(row for row in rows if row["part"] == student.name)
        on_gpu = workspace.device.type == "cuda"
        return {
            "settings": settings.as_dict(),
            "device": str(workspace.device),
            "machine": machine | {"load_after": _load()},
            "rows": rows,
            "stages": {side: _medians(found) for side, found in spent.items()},
            "store_seconds": store_seconds,
            "gpu": gpu.utilisation(workspace, taught) if on_gpu else None,
        }


def _medians(runs):
    return {stage: statistics.median(run.get(stage, 0.0) for run in runs) for stage in STAGES}


def _load():
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
