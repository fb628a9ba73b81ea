"""A grid: many runs from one file, side by side; the store gives each what another has made, and a killed one hurts no other."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

from cpsd_lib.support import write_text
from cpsd_lib.workbench.grids import engines, results
from cpsd_lib.workbench.grids.params import jobs_of, load_grid
from cpsd_lib.workbench.grids.plan import look_at, print_plan, side_by_side, spoken_time
from cpsd_lib.workbench.pipeline import one_runner
from cpsd_lib.workbench.run import Run, params_text
from cpsd_lib.workbench.scoring import caveats
from cpsd_lib.workbench.yaml_files import ParameterError, outputs_root, repo_root


def run_grid(source, overrides=None):
    """Run every job of a grid that is not done; return the exit status: 1 when a job failed.

    Prints the plan with its estimated time, then a line a job, then the table; writes grid.csv, grid.md and figures/ into
    the grid's folder. The same call after a kill does what is missing. Raises ParameterError
    before anything starts, Stopped when another process works in the folder.
    """
    grid = load_grid(source, overrides)
    jobs, folder = jobs_of(grid), outputs_root() / grid.name
    if (folder / "manifest.json").exists():
        raise ParameterError(f"name: {folder} is the folder of a run; give the grid another name=...")
    if grid.engine == "ray":
        engines.import_ray()
    look_at(jobs, here=grid.engine == "local")
    folder.mkdir(parents=True, exist_ok=True)
    with one_runner(folder):
        failed = _run_jobs(grid, folder, jobs)
        _write_results(grid, folder, [job for job in jobs if job not in failed], len(jobs))
    if failed:
        print(f"\n{len(failed)} of {len(jobs)} jobs failed; the same command does what is missing", file=sys.stderr)
        for job, error in failed.items():
            print(f"{job.name}: {error}\nits log: {_log(folder, job)}", file=sys.stderr)
    return 1 if failed else 0


def _run_jobs(grid, folder, jobs):
    """Print the plan, run what is left, a line a job; return {failed Job: why}."""
    todo = [job for job in jobs if job.left]
    most, why = side_by_side(grid, todo)
    print_plan(grid, jobs, most, why)
    if not todo:
        return {}
    print(f"logs: {folder / 'logs'}", flush=True)
    engine = engines.on_ray(grid.address, grid.threads_a_job, grid.gpus) if grid.engine == "ray" else engines.local()
    failed, began = {}, time.monotonic()
    environment = {"CPSD_ROOT": str(repo_root()), "CPSD_OUTPUTS": str(outputs_root())}
    # The bars of a job would fill its log with a line every half second, and what it says last is why it stopped.
    environment |= {"OMP_NUM_THREADS": str(grid.threads_a_job), "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}

    def do(job):
        # The resolved parameters, not the files they came from: those may be edited while the grid runs.
        started, path = time.monotonic(), folder / "params" / f"{job.slug}.yaml"
        write_text(path, params_text(job.params))
        try:
            error = work(engines.JOB, str(path), _log(folder, job), environment)
        except engines.Died as died:
            error = str(died)
        return error, f"{time.monotonic() - started:,.0f} s"

    with ThreadPoolExecutor(most) as pool, engine as work:
        running = {pool.submit(do, job): job for job in todo}
        try:
            for number, ended in enumerate(as_completed(running), 1):
                job, (error, took) = running[ended], ended.result()
                if error is not None:
                    failed[job] = error
                result = f"done in {took}" if error is None else f"FAILED after {took}: {error.splitlines()[0]}"
                print(f"{time.strftime('%H:%M:%S')} {number}/{len(todo)} {job.slug}: {result}", flush=True)
        finally:  # after a Ctrl-C no other job starts
            pool.shutdown(wait=False, cancel_futures=True)
    print(f"{len(todo) - len(failed)} of {len(todo)} done in {spoken_time(time.monotonic() - began)}", flush=True)
    return failed


def _log(folder, job):
    return folder / "logs" / f"{job.slug}.log"


def _write_results(grid, folder, done, count):
    frame = results.collect(done)
    if frame is None:
        print("no scores yet, so there is no table")
        return
    missing = [f"{count - len(done)} of {count} jobs are missing"] if len(done) < count else []
    notes = dict.fromkeys(note for job in done for note in caveats(Run(job.params)))
    print(f"\n{results.write(frame, folder, list(grid.vary), [*notes, *missing])}")
