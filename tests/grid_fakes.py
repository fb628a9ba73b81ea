"""What a grid's jobs do in tests, in processes of their own: `python -m grid_fakes run params`, the fake named by GRID_FAKE."""

import json
import os
import re
import sys
import time
from pathlib import Path

from cpsd_lib import cli
from cpsd_lib.workbench.grids import engines


def folder_of(params):
    """The run folder of a job."""
    name = re.search(r"^name: (\S+)$", Path(params).read_text(), re.MULTILINE)[1]
    return Path(os.environ["CPSD_OUTPUTS"]) / name


def note(folder, line):
    """Add a line to the journal of all jobs; one write, so that lines of two processes do not mix."""
    with open(folder / "journal", "a") as file:
        file.write(f"{line}\n")


def journal(folder):
    path = folder / "journal"
    return path.read_text().splitlines() if path.exists() else []


def sleepy(params):
    """A job that does nothing but take half a second; it leaves its process number and, when it is done, a file `done`."""
    folder = folder_of(params)
    folder.mkdir(parents=True, exist_ok=True)
    note(folder.parent, f"start {folder.name}")
    (folder / "pid.new").write_text(str(os.getpid()))
    os.replace(folder / "pid.new", folder / "pid")
    time.sleep(float(os.environ.get("SLEEPY_SECONDS", "0.5")))
    (folder / "done").touch()
    note(folder.parent, f"end {folder.name}")


def refusing(params):
    """A job that is done, or says why not, as its parameters' file name wants it."""
    if "2" in Path(params).name:
        print("stopped: what an earlier stage said\n\n04_student stopped: no room\nits notebook: somewhere")
        return 1
    if "3" in Path(params).name:
        os._exit(7)
    return 0


def without_kernels(params):
    """The real job, its notebooks' cells executed in its own process: a kernel a notebook takes 10 s of imports."""
    from cpsd_lib.workbench import pipeline

    folder = folder_of(params)

    def execute(notebook, out, parameters, cwd, **_):
        cells = [cell for cell in json.loads(Path(notebook).read_text())["cells"] if cell["cell_type"] == "code"]
        names = {"display": lambda *_: None}
        os.chdir(cwd)
        for number, cell in enumerate(cells):
            exec("".join(cell["source"]), names)
            if number == 0:
                names |= parameters
        Path(out).write_text("executed")
        note(folder.parent, f"{folder.name} {Path(notebook).stem}")

    pipeline.papermill.execute_notebook = execute
    return cli.main(["run", params])


if __name__ == "__main__":
    engines.end_with_the_grid()
    do = {"sleepy": sleepy, "refusing": refusing, "without_kernels": without_kernels}[os.environ["GRID_FAKE"]]
    sys.exit(do(sys.argv[2]))
