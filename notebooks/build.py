"""Build what a class needs from the notebooks into outputs/, each with `make NAME`:

exercises: the students' version, without what stands between nbgrader's ### BEGIN SOLUTION and
### END SOLUTION. solutions: the full exercises, executed. slides: decks of the notebooks that have
slideshow metadata; they need no network.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
OUTPUTS = HERE.parent / "outputs"
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION$", re.MULTILINE | re.DOTALL)
LEFT = {
    "code": r"\1# your code here\n\1raise NotImplementedError",
    "markdown": "*Your answer here.*",
}


def written(notebook, path):
    """Write a notebook and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    print(path)


def without_solutions(notebook):
    """Return a notebook with a place for the student's own where a solution stood."""
    for cell in notebook.cells:
        cell.source = SOLUTION.sub(LEFT[cell.cell_type], cell.source)
    return notebook


def executed(notebook, folder=HERE):
    """Return a notebook with its outputs, run in this Python; CellExecutionError where a cell fails."""
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")
    return client.execute(cwd=str(folder))


def exercises():
    for path in sorted((HERE / "exercises").glob("*.ipynb")):
        written(without_solutions(nbformat.read(path, 4)), OUTPUTS / "exercises" / path.name)


def solutions():
    for path in sorted((HERE / "exercises").glob("*.ipynb")):
        solved = executed(nbformat.read(path, 4), path.parent)
        written(solved, OUTPUTS / "solutions" / path.name)


if __name__ == "__main__":
    {"exercises": exercises, "solutions": solutions}[sys.argv[1]]()
