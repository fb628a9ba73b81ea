"""Build what a class needs from the notebooks, into outputs/: python notebooks/build.py WHAT, or make WHAT.

exercises: the students' version, without what stands between nbgrader's ### BEGIN SOLUTION and
### END SOLUTION. solutions: the full exercises, executed. slides [RUN]: decks that need no network, of
00 as it runs here and of a finished run's 02, 04 and 07.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from cpsd_lib.workbench import outputs_root
from nbclient import NotebookClient
from nbconvert import SlidesExporter
from nbconvert.preprocessors import TagRemovePreprocessor

HERE = Path(__file__).resolve().parent
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
    """Return a notebook with its outputs; CellExecutionError where a cell fails."""
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")
    return client.execute(cwd=str(folder))


def exercises():
    for path in sorted((HERE / "exercises").glob("*.ipynb")):
        written(without_solutions(nbformat.read(path, 4)), outputs_root() / "exercises" / path.name)


def solutions():
    for path in sorted((HERE / "exercises").glob("*.ipynb")):
        solved = executed(nbformat.read(path, 4), path.parent)
        written(solved, outputs_root() / "solutions" / path.name)


DECKS = ("00_cpsd_from_scratch", "02_partition", "04_student", "07_ablation")
# What is wanted of them are the files of reveal.js 5.2 and MathJax 2.7 that they carry, nothing to import.
CARRIERS = {
    "sphinx-revealjs==3.2.1": ("sphinx_revealjs/_static/revealjs", "reveal.js"),
    "jupyter-server-mathjax==0.2.6": ("jupyter_server_mathjax/static", "mathjax"),
}


def fetch_scripts(folder):
    """Put reveal.js and MathJax beside the decks; the only step that needs a network, and only once."""
    for package, (inside, name) in CARRIERS.items():
        if not (folder / name).exists():
            install = [
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(folder / ".packages"),
                package,
            ]
            subprocess.run([sys.executable, "-m", "pip", *install], check=True)
            shutil.copytree(folder / ".packages" / inside, folder / name)
    shutil.rmtree(folder / ".packages", ignore_errors=True)


def deck(notebook):
    """Return an executed notebook as slides, one HTML page; of a cell tagged hide-input the output alone."""
    exporter = SlidesExporter(
        template_name="slides",
        extra_template_basedirs=[str(HERE)],
        reveal_url_prefix="reveal.js",
        reveal_theme="white",
        mathjax_url="mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe",
        exclude_output_prompt=True,
    )
    hidden = TagRemovePreprocessor(remove_input_tags={"hide-input"}, enabled=True)
    exporter.register_preprocessor(hidden, enabled=True)
    return exporter.from_notebook_node(notebook)[0]


def slides(run="demo"):
    folder = outputs_root() / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in DECKS[1:] if not (outputs_root() / run / f"{name}.ipynb").exists()]
    if missing:
        sys.exit(f"the run {run} has no {', '.join(missing)}; run it first: cpsd run {run}")
    fetch_scripts(folder)
    for name in DECKS:
        if name == DECKS[0]:
            shown = executed(nbformat.read(HERE / f"{name}.ipynb", 4))
        else:
            shown = nbformat.read(outputs_root() / run / f"{name}.ipynb", 4)
            injected = [
                c for c in shown.cells if "injected-parameters" in c.metadata.get("tags", [])
            ]
            shown.cells = [cell for cell in shown.cells if cell not in injected]
        (folder / f"{name}.html").write_text(deck(shown), encoding="utf-8")
        print(folder / f"{name}.html")


if __name__ == "__main__":
    {"exercises": exercises, "solutions": solutions, "slides": slides}[sys.argv[1]](*sys.argv[2:])
