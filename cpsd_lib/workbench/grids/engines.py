"""Where the jobs of a grid run: a process each, started on this machine or by a Ray task each, here or on a cluster."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import contextmanager

from cpsd_lib.workbench.yaml_files import ParameterError, Stopped

JOB = "cpsd_lib.workbench.grids.engines"  # the module whose `python -m` does a job
_running = set()  # the processes that this one has started


class Died(RuntimeError):
    """The process of a job ended without an answer."""


# ---- the grid's side -------------------------------------------------------------------------------------------------


def work(module, params, log, environment):
    """Do one job, `python -m module params`, its output in a log file; return None when all went well, else why not, in words.

    In a process of its own: one that dies, of whatever cause, takes no other along (Died). It ends when this process does.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command, pipe = [sys.executable, "-m", module, params], subprocess.PIPE
    with (
        open(log, "a") as file,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=file, text=True, env=os.environ | environment) as job,
    ):
        _running.add(job)
        answer = job.stdout.read()
        code = job.wait()
        _running.discard(job)
    if answer:
        return json.loads(answer)
    if code < 0:
        raise Died(f"its process died of {signal.Signals(-code).name} (killed from outside, or out of memory?)")
    raise Died(f"its process ended with exit status {code} and no answer")


@contextmanager
def local():
    """Yield `work`; at the end the jobs that still run are stopped."""
    try:
        yield work
    finally:
        for job in list(_running):
            job.terminate()


@contextmanager
def on_ray(address, threads, gpus):
    """Yield `work` as a Ray task, which asks for its CPUs and GPUs; a job that dies is started once more.

    address: of a running cluster, which must see the project's and the outputs' folders under the same paths; None: a Ray
    of its own on this machine, stopped at the end.
    """
    ray = import_ray()
    ray.init(address or "local", log_to_driver=False, **({} if address else {"include_dashboard": False}))
    task, started = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=1, retry_exceptions=[Died])(work), []

    def wait_for(module, params, log, environment):
        started.append(task.remote(module, params, log, environment))
        try:
            return ray.get(started[-1])
        except ray.exceptions.RayError as error:  # Ray's messages are pages, in colours
            error = getattr(error, "cause", error)
            text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
            return f"its Ray task failed: {type(error).__name__}: {text[:400]}"

    try:
        yield wait_for
    finally:
        for one in started:
            ray.cancel(one, force=True)
        ray.shutdown()


def import_ray():
    """Return the package ray; ParameterError that says how to install it where it is not there."""
    try:
        import ray
    except ImportError:
        raise ParameterError(
            "engine: ray needs the package ray; pip install '.[ray]' in the project's folder, or take engine: local"
        ) from None
    return ray


# ---- the job's side --------------------------------------------------------------------------------------------------


def answer_with(do):
    """Be the process of a job: call `do` with its file of parameters; what it prints goes to the log, its answer to the grid."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        threading.Thread(target=_end_with_the_grid, daemon=True).start()
        answer.write(json.dumps(do(sys.argv[1])))


def _end_with_the_grid():
    # A grid that was killed could not stop its jobs, and the next one would find their folders held.
    os.read(0, 1)  # ends when nobody holds the other end any more
    os._exit(1)


def run_job(params):
    """Run every stage of a file of resolved parameters and write the report; return None, else what went wrong, in words."""
    from cpsd_lib.workbench.pipeline import run_stages, stages_of
    from cpsd_lib.workbench.report import write_report

    try:
        done = run_stages(params)
        if "05_evaluation" in stages_of(done.params):
            write_report(done)
    except KeyboardInterrupt:  # for all jobs and the grid itself, which says so
        return "stopped by Ctrl-C"
    except Stopped as error:
        print(error)
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    answer_with(run_job)
