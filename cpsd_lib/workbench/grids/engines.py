"""Where the jobs of a grid run: a process each on this machine, or a Ray task each on this machine or a cluster."""

import multiprocessing
import os
import re
import signal
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from cpsd_lib.support import end_with_parent
from cpsd_lib.workbench.yaml_files import ParameterError

STOP_SECONDS = 10  # what a job gets to end in when the grid is stopped


@dataclass(frozen=True)
class Task:
    """All that a job's process gets; it may run on another machine that sees the same files."""

    job: str
    params: str  # the file of its resolved parameters
    log: Path
    environment: dict


def work(task):
    """Do one job, its output in its log file; return None when all went well, else why not, in words."""
    with _printing_to(task.log), _environment(task.environment):
        # Imported here: Ray and multiprocessing import this module just to find this function.
        from cpsd_lib.workbench.pipeline import Held, StageFailed, run_stages, stages_of
        from cpsd_lib.workbench.report import write_report

        try:
            done = run_stages(task.params)
            if "05_evaluation" in stages_of(done.params):
                write_report(done)
        except KeyboardInterrupt:  # for all jobs and the grid itself, which says so
            return "stopped by Ctrl-C"
        except (Held, StageFailed) as error:
            print(error)
            return str(error)
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _printing_to(log):
    """Send what this process and its children print to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)


@contextmanager
def _environment(variables):
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:  # a Ray worker does other jobs after this one
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


class Local:
    """A process of its own for every job: one that dies, of whatever cause, takes no other along.

    The standard library's process pool gives up all its jobs when one of its workers dies.
    """

    def __init__(self, work):
        self._work, self._running = work, {}  # the pipe its answer comes through: (job, process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            process.join(STOP_SECONDS)
            process.kill()

    def start(self, task):
        """Start a Task."""
        # spawn: a fork of a process with torch's threads may hang.
        context = multiprocessing.get_context("spawn")
        answers, answer = context.Pipe(duplex=False)
        process = context.Process(target=_in_its_process, args=(self._work, task, answer), name=task.job)
        process.start()
        answer.close()  # now the process alone holds it: its death is the end of the pipe
        self._running[answers] = task.job, process

    def wait(self):
        """Wait until a job ends; return (its name, None or why it failed)."""
        answers = connection.wait(list(self._running))[0]
        job, process = self._running.pop(answers)
        try:
            error = answers.recv()
        except EOFError:
            process.join()
            error = _death(process.exitcode)
        answers.close()
        process.join()
        return job, error


def _in_its_process(work, task, answer):
    end_with_parent()  # the next grid would find its folders held
    answer.send(work(task))


def _death(code):
    if code is not None and code < 0:
        return f"its process died of {signal.Signals(-code).name} (killed from outside, or out of memory?)"
    return f"its process ended with exit status {code} and no answer"


class Ray:
    """A Ray task for every job, which asks for its CPUs and GPUs; a job whose worker dies is started once more.

    address: of a running cluster, which must see the project's and the outputs' folders under the same paths; None: a Ray
    of its own on this machine, stopped at the end.
    """

    def __init__(self, work, address, threads, gpus):
        ray = import_ray()
        ray.init(address or "local", log_to_driver=False, **({} if address else {"include_dashboard": False}))
        self._ray, self._running = ray, {}
        self._work = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=1)(work)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def start(self, task):
        """Hand a Task to Ray, which starts it when its CPUs and GPUs are free."""
        self._running[self._work.options(name=task.job).remote(task)] = task.job

    def wait(self):
        """Wait until a job ends; return (its name, None or why it failed)."""
        done, _ = self._ray.wait(list(self._running), num_returns=1)
        job = self._running.pop(done[0])
        try:
            return job, self._ray.get(done[0])
        except self._ray.exceptions.RayError as error:
            return job, f"its Ray task failed: {_words(error)}"


def _words(error):
    # Ray's messages are pages, in colours.
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return f"{type(error).__name__}: {text[:400]}"


def import_ray():
    """Return the package ray; ParameterError that says how to install it where it is not there."""
    try:
        import ray
    except ImportError:
        raise ParameterError(
            "engine: ray needs the package ray; pip install '.[ray]' in the project's folder, or take engine: local"
        ) from None
    return ray
