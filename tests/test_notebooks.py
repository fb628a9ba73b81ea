"""The notebooks by plain papermill, without the runner (about 40 s on two free cores), and how they are committed."""

import ast
import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

from cpsd_lib.workbench.pipeline import STAGES

REPO = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
BUILD = runpy.run_path(str(REPO / "notebooks" / "build.py"))


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


# ---- as committed ----------------------------------------------------------------------------------------------------


def test_every_stage_of_the_runner_is_a_notebook():
    assert set(STAGES) <= set(NAMES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_committed_without_outputs(path):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_one_cell_is_tagged_parameters_and_sets_params_and_overrides_only(path):
    (tagged,) = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged is cells(path)[0] or tagged["source"] == cells(path)[0]["source"]
    names = [target.id for line in ast.parse(source(tagged)).body for target in line.targets]
    assert names == ["params", "overrides"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_opens_with_a_title_and_defines_nothing_over_ten_lines(path):
    first = json.loads(path.read_text())["cells"][0]
    assert first["cell_type"] == "markdown" and source(first).startswith("# ")
    for cell in cells(path):
        for node in ast.walk(ast.parse(source(cell))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 10, node.name


@pytest.mark.parametrize("path", NOTEBOOKS[2:9], ids=NAMES[2:9])
def test_the_idea_by_hand_is_one_short_cell_that_is_asserted_equal_to_the_library(path):
    both = json.loads(path.read_text())["cells"]
    (place,) = [i for i, cell in enumerate(both) if re.search(r"^##+ The idea by hand", source(cell), re.MULTILINE)]
    written = [line for line in source(both[place + 1]).splitlines() if line and not line.startswith("#")]
    assert both[place + 1]["cell_type"] == "code" and len(written) <= 15
    assert "assert" in source(both[place + 1]), "assert, or torch.testing.assert_close"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_names_no_folder_of_the_machine_it_was_written_on(path):
    assert "/home/" not in path.read_text() and str(REPO) not in path.read_text()


# ---- executed --------------------------------------------------------------------------------------------------------

# 64 pixels give maps of 2 x 2 places; the tests of models with tokens stay at 32, and 1 x 1.
OVERRIDES = "overrides: {student.epochs: 1, data.images: 200, data.size: 64}"


def environment(outputs):
    return os.environ | {"CPSD_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}


def execute(path, away, outputs, overrides=OVERRIDES):
    """Execute a notebook by papermill in the folder `away`; return its process."""
    where = ["-m", "papermill", str(path), f"{path.stem}.ipynb"]
    command = [sys.executable, *where, "--start-timeout", "300", "-p", "params", "tiny", "-y", overrides]
    # Bars would stand on stderr, where nothing else may.
    quiet = environment(outputs) | {"TQDM_DISABLE": "1"}
    return subprocess.run(command, cwd=away, env=quiet, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Every notebook executed by papermill in the order of their numbers, from a folder that has nothing to do with them."""
    outputs, away = tmp_path_factory.mktemp("outputs"), tmp_path_factory.mktemp("away")
    for path in NOTEBOOKS:
        done = execute(path, away, outputs)
        assert done.returncode == 0, f"{path.stem}:\n{done.stderr[-3000:]}"
    return away, outputs / "tiny"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_by_plain_papermill_and_warns_of_nothing(executed, name):
    for cell in cells(executed[0] / f"{name}.ipynb"):
        assert cell["execution_count"] is not None
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            text = "".join(output.get("text", ""))
            assert "Warning" not in text and "Traceback" not in text, text
            assert output.get("name") != "stderr" or not text.strip(), text


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_becomes_a_page_with_all_its_pictures_and_without_errors(executed, name):
    page, _ = HTMLExporter().from_filename(executed[0] / f"{name}.ipynb")
    kinds = set(re.findall(r'data-mime-type="([^"]+)"', page))
    assert not kinds & {"application/vnd.jupyter.error", "application/vnd.jupyter.stderr"}
    assert "&lt;Figure" not in page and "Traceback" not in page  # a figure's name where its picture should be
    pictures = re.findall(r'<img[^>]*src="data:image/png;base64,\s*[A-Za-z0-9+/]{2000}', page)
    shown = [
        o for cell in cells(executed[0] / f"{name}.ipynb") for o in cell["outputs"] if "image/png" in o.get("data", {})
    ]
    saved = list((executed[1] / "figures").glob(f"{name[:2]}_*.png"))
    assert len(pictures) == len(shown) >= len(saved) > 0


@pytest.mark.parametrize("name", ["02_partition", "04_student", "07_ablation"])
def test_a_deck_has_slides_and_fetches_nothing_from_a_network(executed, name):
    page = BUILD["deck"](nbformat.read(executed[0] / f"{name}.ipynb", 4))
    assert 5 <= page.count("<section>") <= 60
    assert not re.findall(r"""(?:src=|href=|url\(|import )["']?https?://[^"')]*\.(?:js|css|woff2?)""", page)
    for inside in ("reveal.js/dist/reveal.js", "reveal.js/dist/theme/white.css", "mathjax/MathJax.js"):
        assert f'"{inside}' in page
    assert "parameters" not in re.sub(r"<[^>]+>", "", page.split("</section>")[0])  # of a slide no set-up cell is part


def made(run, name):
    """Return the folders of the artifacts that a run has noted under a name."""
    kind = "soft_targets" if "/soft_targets/" in name else "model"
    keys = json.loads((run / "artifacts.json").read_text())[name]["keys"]
    return [run.parent / ".store" / kind / key for key in keys]


def test_overrides_reach_the_notebooks(executed):
    def epochs(path):
        with open(path, newline="") as file:
            return {row["epoch"] for row in csv.DictReader(file)}

    assert epochs(made(executed[1], "seed0/students/cpsd")[0] / "history.csv") == {"1"}
    for folder in made(executed[1], "seed0/teachers/co"):
        assert epochs(folder / "history.csv") == {"1", "2"}


def test_notebooks_run_by_hand_leave_the_files_that_the_runner_expects_of_them(executed):
    for _, patterns in STAGES.values():
        for pattern in patterns:
            assert list(executed[1].glob(pattern)), pattern


def test_the_students_notebook_runs_again_when_the_stored_targets_were_deleted(executed):
    for folder in made(executed[1], "seed0/soft_targets/co"):
        shutil.rmtree(folder)
    done = execute(next(path for path in NOTEBOOKS if path.stem == "04_student"), executed[0], executed[1].parent)
    assert done.returncode == 0, done.stderr[-3000:]


def test_rows_without_a_teacher_leave_stage_03_nothing_to_do(tmp_path):
    overrides = "overrides: {data.images: 100, partition.study_k: [], student.rows: [student_only]}"
    for name in ("02_partition", "03_teachers"):
        done = execute(next(path for path in NOTEBOOKS if path.stem == name), tmp_path, tmp_path / "outputs", overrides)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "None of the rows has a teacher" in (tmp_path / "03_teachers.ipynb").read_text()


def test_the_slider_of_00_trains_for_few_parts_and_reads_the_stored_table_for_many(tmp_path):
    notebook = json.loads(NOTEBOOKS[0].read_text())
    cell = {"cell_type": "code", "execution_count": None, "id": "moved", "metadata": {}, "outputs": []}
    notebook["cells"].append(cell | {"source": "compare(2)\ncompare(8)"})
    (tmp_path / "moved.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "out").mkdir()
    done = execute(tmp_path / "moved.ipynb", tmp_path / "out", tmp_path / "outputs")
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [o for cell in cells(tmp_path / "out" / "moved.ipynb") for o in cell["outputs"]]
    (controls,) = [
        text for o in outputs if "interactive(" in (text := "".join(o.get("data", {}).get("text/plain", "")))
    ]
    assert controls.count("IntSlider") == 1  # an argument with a default would become a second one
    said = "".join("".join(o.get("text", "")) for o in cells(tmp_path / "out" / "moved.ipynb")[-1]["outputs"])
    assert re.search(r"k = 2, trained now: student [\d.]+ mAP", said)
    assert "k = 8, stored, mean of three seeds: student 25.5 mAP, baseline 24.4" in said


def test_models_with_tokens_and_teachers_in_train_mode_go_through_the_notebooks(tmp_path):
    """About 30 s on two free cores: experts with one head of tokens, their student with the other."""
    words = ["tiny", "data.images=100", "train.epochs=1", "student.rows=[student_only, cgpd]", "partition.k=2"]
    words += ["student.teacher_mode=train", "partition.study_k=[]", "model.head=query2label", "model.head_width=32"]
    teacher = "name: test_resnet, head: label_transformer, head_width: 32, label_vectors: learned"
    words += [f"teacher_model={{{teacher}}}"]
    command = [sys.executable, "-m", "cpsd_lib", "run", *words]
    done = subprocess.run(command, cwd=REPO, env=environment(tmp_path), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "\n+ CGPD " in done.stdout
    for name, head in (("students/cgpd", "query2label"), ("teachers/co", "label_transformer")):
        record = json.loads((made(tmp_path / "tiny", f"seed0/{name}")[0] / "artifact.json").read_text())
        assert record["about"]["architecture"]["head"] == head


def test_every_row_for_few_labels_goes_through_the_notebooks(tmp_path):
    """About a minute on two free cores: ensembles, random parts, a wide teacher, pseudo-labels, photos without labels."""
    rows = "[baseline, mld, ensemble_mld, cpsd_mld, rand2_mld, wide_mld, cap]"
    words = [
        "tiny",
        "name=few",
        "data.images=100",
        "data.labelled=24",
        "train.epochs=2",
        "partition.k=2",
        "student.views=1",
    ]
    words += [f"student.rows={rows}", "partition.study_k=[]"]
    words += ["wide_model={name: test_resnet, options: {channels: [48, 64, 96, 192]}}"]
    command = [sys.executable, "-m", "cpsd_lib", "run", *words]
    done = subprocess.run(command, cwd=REPO, env=environment(tmp_path), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "\n+ ensemble by MLD " in done.stdout and "\n+ class-aware pseudo-labels " in done.stdout
    report = (tmp_path / "few" / "report.html").read_text()
    assert "cpsd predict few photos/ --csv labels.csv --row cap" in report
    given = ", ".join(word.replace("=", ": ", 1) for word in words[1:])
    done = execute(
        next(path for path in NOTEBOOKS if path.stem == "10_use"), tmp_path, tmp_path, f"overrides: {{{given}}}"
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_cost_of_another_method_needs_no_baseline_among_the_rows(tmp_path):
    of_parts = "overrides: {student.rows: [dgpd], data.labelled: 0.1}"
    done = execute(next(path for path in NOTEBOOKS if path.stem == "09_cost"), tmp_path, tmp_path, of_parts)
    assert done.returncode == 0, done.stderr[-3000:]


# ---- real photos -----------------------------------------------------------------------------------------------------


def test_the_pipeline_makes_its_table_from_300_real_photos_and_pretrained_weights(shared_data, tmp_path):
    """About 70 s on two free cores."""
    weights = shared_data.parent / "weights" / "mobilenetv2_100.safetensors"
    if not weights.is_file():
        pytest.skip("there are no weights/mobilenetv2_100.safetensors beside the folder of CPSD_DATA")
    words = [f"data.root={shared_data / 'coco18'}", f"model.weights={weights}", "name=photos", "seeds=1"]
    words += ["data.limit=300", "data.size=64", "train.epochs=1", "partition.k=2"]
    command = [sys.executable, "-m", "cpsd_lib", "run", "params/csv_mobilenetv2.yaml", *words]
    done = subprocess.run(command, cwd=REPO, env=environment(tmp_path), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for row in ("baseline", "+ SD", "+ CGPD", "+ DGPD", "+ CPSD"):
        assert f"\n{row} " in done.stdout
    assert (tmp_path / "photos" / "report.html").stat().st_size > 10_000
    for name in STAGES:
        for cell in cells(tmp_path / "photos" / f"{name}.ipynb"):
            assert not [output for output in cell["outputs"] if output.get("name") == "stderr"], name
