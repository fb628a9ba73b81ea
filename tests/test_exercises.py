"""The exercises: solved, they run whole in seconds; the students' version has no solution in it, and its asserts fail."""

import json
import re
import runpy
from pathlib import Path

import matplotlib
import nbformat
import pytest

REPO = Path(__file__).resolve().parents[1]
EXERCISES = sorted((REPO / "notebooks" / "exercises").glob("*.ipynb"))
NAMES = [path.stem for path in EXERCISES]
BUILD = runpy.run_path(str(REPO / "notebooks" / "build.py"))


def run_cells(notebook):
    """Run the code of a notebook in this process, which starts no kernel, and return its names."""
    names = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "exercise", "exec"), names)
    return names


@pytest.mark.parametrize("path", EXERCISES, ids=NAMES)
def test_a_solved_exercise_passes_its_own_asserts(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    matplotlib.use("Agg")
    run_cells(nbformat.read(path, 4))


@pytest.mark.parametrize("path", EXERCISES, ids=NAMES)
def test_a_student_finds_a_place_for_each_solution_and_none_of_its_lines(path):
    solved, left = nbformat.read(path, 4), BUILD["without_solutions"](nbformat.read(path, 4))
    places = 0
    for before, after in zip(solved.cells, left.cells, strict=True):
        lines = "\n".join(re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", before.source, re.DOTALL))
        places += bool(lines)
        assert "SOLUTION" not in after.source
        assert not [line for line in lines.splitlines() if len(line) > 12 and line in after.source]
        if after.cell_type == "code":
            compile(after.source, path.stem, "exec")
            assert not lines or "raise NotImplementedError" in after.source
    assert places >= 5


@pytest.mark.parametrize("path", EXERCISES, ids=NAMES)
def test_an_exercise_says_its_goal_and_time_has_hints_checks_and_one_open_question(path):
    cells = json.loads(path.read_text())["cells"]
    assert all(cell.get("outputs", []) == [] for cell in cells)
    text = ["".join(cell["source"]) for cell in cells]
    assert text[0].startswith("# Exercise") and "**Goal.**" in text[0] and "45 minutes" in text[0]
    assert sum("## Open question" in one for one in text) == 1
    marked = [cell["metadata"]["nbgrader"] for cell in cells if "nbgrader" in cell["metadata"]]
    solutions = [
        text[place] for place, cell in enumerate(cells) if cell["metadata"].get("nbgrader", {}).get("solution")
    ]
    assert len({one["grade_id"] for one in marked}) == len(marked)  # nbgrader takes each once
    assert all("### BEGIN SOLUTION" in one and "### END SOLUTION" in one for one in solutions)
    assert sum("<summary>Hint</summary>" in one for one in text) >= len(solutions) - 1
    checks = [text[i] for i, cell in enumerate(cells) if cell["metadata"].get("nbgrader", {}).get("locked")]
    assert all("assert" in one for one in checks) and len(checks) == len(solutions) - 1


def test_the_students_asserts_fail_where_nothing_is_filled_in():
    with pytest.raises(NotImplementedError):
        run_cells(BUILD["without_solutions"](nbformat.read(EXERCISES[0], 4)))
