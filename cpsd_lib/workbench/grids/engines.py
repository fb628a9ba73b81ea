"""The jobs of a grid: `cpsd run` in a process each, started on this machine or by a Ray task each, here or on a cluster."""

import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

from cpsd_lib.workbench.yaml_files import ParameterError

JOB = "cpsd_lib.workbench.grids.engines"  # the module whose `python -m` does a job
_running = set()  # the processes that this one has started


class Died(RuntimeError):
    """The process of a job was killed."""


def work(module, params, log, environment):
    """Do one job, `python -m module run params`, its output in a log file; return None when all went well, else why not.

    In a process of its own: one that dies, of whatever cause, takes no other along (Died). It ends when this process does.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command, pipe = [sys.executable, "-m", module, "run", params], subprocess.PIPE
    with open(log, "a+", encoding="utf-8", errors="replace") as file:
        began = file.tell()
        with subprocess.Popen(command, stdin=pipe, stdout=file, stderr=file, env=os.environ | environment) as job:
            _running.add(job)
            code = job.wait()
            _running.discard(job)
        file.seek(began)
        lines = file.read().split("\n")
    if code < 0:
        raise Died(f"its process died of {signal.Signals(-code).name} (killed from outside, or out of memory?)")
    lines = [line for line in lines if line.strip()] or [f"its process ended with exit status {code} and no word"]
    last = max((number for number, line in enumerate(lines) if "stopped: " in line), default=-1)
    return "\n".join(lines[last:]) if code else None


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


def end_with_the_grid():
    """Have this process, a job, end when the grid does, which cannot stop it when it is killed itself."""

    def wait():
        os.read(0, 1)  # ends when nobody holds the other end any more
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_the_grid()
    runpy.run_module("cpsd_lib", run_name="__main__", alter_sys=True)
