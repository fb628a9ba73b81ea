"""What a grid's jobs do in tests, in processes of their own: light to import, because every job imports it anew."""

import json
import os
import time
from pathlib import Path

from cpsd_lib.workbench.grids import engines


def folder_of(task):
    """The run folder of a job."""
    return Path(task.environment["CPSD_OUTPUTS"]) / task.job


def note(folder, line):
    """Add a line to the journal of all jobs; one write, so that lines of two processes do not mix."""
    with open(folder / "journal", "a") as file:
        file.write(f"{line}\n")


def journal(folder):
    path = folder / "journal"
    return path.read_text().splitlines() if path.exists() else []


def sleepy(task):
    """A job that does nothing but take half a second; it leaves its process number and, when it is done, a file `done`."""
    folder = folder_of(task)
    folder.mkdir(parents=True, exist_ok=True)
    note(folder.parent, f"start {task.job}")
    (folder / "pid.new").write_text(str(os.getpid()))
    os.replace(folder / "pid.new", folder / "pid")
    time.sleep(float(os.environ.get("SLEEPY_SECONDS", "0.5")))
    (folder / "done").touch()
    note(folder.parent, f"end {task.job}")


def refusing(task):
    """A job that is done, or says why not, as its parameters' file name wants it."""
    if "2" in Path(task.params).name:
        return "04_student stopped: no room\nits notebook: somewhere"
    if "3" in Path(task.params).name:
        os._exit(7)
    return None


def without_kernels(task):
    """The real job, its notebooks' cells executed in its own process: a kernel a notebook takes 10 s of imports."""
    from cpsd_lib.workbench import pipeline

    def execute(notebook, out, parameters, cwd, **_):
        cells = [cell for cell in json.loads(Path(notebook).read_text())["cells"] if cell["cell_type"] == "code"]
        names = {"display": lambda *_: None}
        os.chdir(cwd)
        for number, cell in enumerate(cells):
            exec("".join(cell["source"]), names)
            if number == 0:
                names |= parameters
        Path(out).write_text("executed")
        note(folder_of(task).parent, f"{task.job} {Path(notebook).stem}")

    pipeline.papermill.execute_notebook = execute
    return engines.work(task)
