"""A grid: many runs from one file, one after the other; the store gives each what another has made."""

import sys
import time
from contextlib import suppress
from functools import cache

from cpsd_lib.support import pick_device, write_text
from cpsd_lib.workbench.cost import estimate, measured_speed, spoken_time
from cpsd_lib.workbench.engine import connected
from cpsd_lib.workbench.grids import results
from cpsd_lib.workbench.grids.params import jobs_of, load_grid, refuse
from cpsd_lib.workbench.pipeline import one_runner, run_stages, stages_left, stages_of
from cpsd_lib.workbench.preflight import images_of
from cpsd_lib.workbench.report import write_report
from cpsd_lib.workbench.run import Run, params_text
from cpsd_lib.workbench.scoring import caveats
from cpsd_lib.workbench.yaml_files import ParameterError, Stopped, outputs_root


def run_grid(source, overrides=None):
    """Run every job of a grid that is not done; return the exit status: 1 when a job failed.

    Prints the plan with its estimated time, then each run's own lines and the time left, then the table; writes grid.csv, grid.md
    and figures/ into the grid's folder. The same call after a kill does what is missing. Raises ParameterError before
    anything starts, Stopped when another process works in the folder.
    """
    grid = load_grid(source, overrides)
    jobs, folder = look_at(jobs_of(grid)), outputs_root() / grid.name
    if (folder / "manifest.json").exists():
        raise ParameterError(f"name: {folder} is the folder of a run; give the grid another name=...")
    todo = [job for job in jobs if job.left]
    with connected([job.params for job in todo]):
        folder.mkdir(parents=True, exist_ok=True)
        with one_runner(folder):
            (folder / "grid.json").unlink(missing_ok=True)  # `beside` shows no table of an earlier call's parameters
            for job in jobs:  # also of those that are done: `beside` reads what the data of every job was
                write_text(folder / "params" / f"{job.slug}.yaml", params_text(job.params))
            print_plan(grid, jobs, todo)
            failed = _run_jobs(folder, todo)
            _write_results(grid, folder, [job for job in jobs if job not in failed], len(jobs))
    if failed:
        print(f"\n{len(failed)} of {len(jobs)} jobs failed; the same command does what is missing", file=sys.stderr)
        for job, error in failed.items():
            print(f"{job.name}: {error}", file=sys.stderr)
    return 1 if failed else 0


def look_at(jobs):
    """Find what is left of Jobs and their cost; ParameterError names those that cannot be trained at all."""
    faults, counts = {}, cache(images_of)  # a frozen model is its own key
    for job in jobs:
        try:
            device, there = pick_device(job.params.device), counts(job.params.data)
            job.cost = estimate(job.params, there.classes, there.train, there.test, device, there.unlabelled)
            job.left = list(stages_left(job.params))
        except (ValueError, OSError) as error:
            faults.setdefault(str(error), []).append(job.slug)
    refuse(faults, len(jobs))
    return jobs


def print_plan(grid, jobs, todo):
    """Print which planned Jobs will be run, `todo`, and how long one process here takes at most, where none share anything."""
    over = " x ".join(f"{key} ({len(values)})" for key, values in grid.vary.items())
    source = grid.base or f"{len(grid.vary['base'])} parameter files"
    print(f"{grid.name}: {len(jobs)} jobs over {over}, from {source}; {len(jobs) - len(todo)} are done already")
    print("".join(f"  {job.slug}: {'to do' if job.left else 'done'}\n" for job in jobs), end="", flush=True)
    with suppress(RuntimeError, ValueError, IndexError):  # no room for a step, or nothing to do
        seconds = sum(job.cost.eflop for job in todo) * 1e18 / measured_speed(todo[0].params, todo[0].cost)
        print(f"estimate: at most {spoken_time(seconds)} by one process here", flush=True)


def _run_jobs(folder, todo):
    """Run planned Jobs; return {failed Job: why}. One that fails stops no other."""
    failed = {}
    for number, job in enumerate(todo, 1):
        print(f"\n{time.strftime('%H:%M:%S')} {number}/{len(todo)} {job.slug}", flush=True)
        try:  # the resolved parameters, not the files they came from: those may be edited while the grid runs
            done = run_stages(folder / "params" / f"{job.slug}.yaml")
            if "05_evaluation" in stages_of(done.params):
                write_report(done)
        except (Stopped, ValueError, OSError, ImportError) as error:
            failed[job] = error
            print(f"FAILED: {error}", flush=True)
    return failed


def _write_results(grid, folder, done, count):
    frame = results.collect(done)
    if frame is None:
        print("no scores yet, so there is no table")
        return
    missing = [f"{count - len(done)} of {count} jobs are missing"] if len(done) < count else []
    notes = dict.fromkeys(note for job in done for note in caveats(Run(job.params)))
    print(f"\n{results.write(frame, folder, list(grid.vary), [*notes, *missing])}")
