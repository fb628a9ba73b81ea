"""Grid files: every combination of some values, over one parameter file or several; all checked before anything starts."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from small_copies import coco

from cpsd_lib.support import write_json
from cpsd_lib.workbench.cost import card
from cpsd_lib.workbench.grids import results, runner
from cpsd_lib.workbench.grids.params import Grid, jobs_of, load_grid
from cpsd_lib.workbench.published import published
from cpsd_lib.workbench.yaml_files import ParameterError

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("CPSD_ROOT", str(REPO))
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture
def papers_data(tmp_path, monkeypatch):
    """A tiny MS-COCO, a folder for VOC, a GloVe file, photos and weights where the parameter files look for them."""
    (tmp_path / "data" / "coco18").mkdir(parents=True)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mobilenetv2_100.safetensors").touch()
    monkeypatch.setenv("CPSD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("VOC2007", str(tmp_path))
    (tmp_path / "glove.txt").touch()
    monkeypatch.setenv("COCO2014", str(coco(tmp_path / "coco")))
    monkeypatch.setenv("GLOVE", str(tmp_path / "glove.txt"))


def grid_of(**changed):
    """Return a Grid over tiny runs."""
    return Grid(**{"name": "g", "base": "tiny", "vary": {"partition.k": [2, 3]}} | changed)


def written(folder, changed):
    """Return the path of a grid file over tiny runs; changed: its keys, None takes one away."""
    raw = {"name": "g", "base": "tiny", "vary": {"partition.k": [2, 3]}} | changed
    write_json(folder / "some.yaml", {key: value for key, value in raw.items() if value is not None})  # JSON is YAML
    return str(folder / "some.yaml")


def test_a_grid_is_the_product_of_its_values_and_every_job_has_a_name_of_its_own(outputs):
    jobs = jobs_of(grid_of(vary={"student.alpha": [0.1, 0.5], "student.rows": [["sd"], ["cgpd", "dgpd"]]}, name="try"))
    assert [job.name for job in jobs] == [
        "try.alpha-0.1_rows-sd",
        "try.alpha-0.1_rows-cgpd-dgpd",
        "try.alpha-0.5_rows-sd",
        "try.alpha-0.5_rows-cgpd-dgpd",
    ]
    assert [job.params.student.alpha for job in jobs] == [0.1, 0.1, 0.5, 0.5]
    assert all(job.params.name == job.name for job in jobs)


def test_names_that_would_be_equal_or_too_long_are_told_apart(outputs):
    jobs = jobs_of(grid_of(vary={"model.options": [{"act": "a/relu"}, {"act": "b/relu"}]}))
    assert len({job.name for job in jobs}) == 2
    rows = ["baseline", "sd", "cgpd", "dgpd", "cpsd", "mld", "cpsd_mld"]
    jobs = jobs_of(grid_of(name="n" * 50, vary={"student.rows": [rows, rows[::-1]], "student.alpha": [0.123456, 0.2]}))
    assert len({job.name for job in jobs}) == 4 and max(len(job.name) for job in jobs) <= 100


def test_two_keys_with_one_last_name_are_both_named(outputs):
    jobs = jobs_of(grid_of(vary={"teachers.epochs": [1, 2], "student.epochs": [3]}))
    assert [job.slug for job in jobs] == [
        "teachers-epochs-1_student-epochs-3",
        "teachers-epochs-2_student-epochs-3",
    ]


def test_overrides_reach_the_jobs_unless_they_name_what_belongs_to_the_grid(outputs):
    given = {"train.epochs": 1, "engine": "ray", "name": "other", "vary.student.match": ["kl"], "overrides.seed": 4}
    grid = load_grid("tiny", given)
    assert (grid.name, grid.vary) == ("other", {"student.match": ["kl"]})
    (job,) = jobs_of(grid)
    assert (job.params.teachers.epochs, job.params.seed, job.name) == (1, 4, "other.match-kl")


def test_what_the_command_line_varies_has_no_one_value_any_more(outputs, tmp_path):
    path = written(tmp_path, {"vary": {"data.seed": [1]}, "overrides": {"partition.k": 2}})
    for given in ({"vary.partition.k": [2, 3]}, {"vary": {"partition.k": [2, 3]}}):
        assert load_grid(path, given).overrides == {}
    assert load_grid(path, {"vary.data.seed": [1, 2]}).overrides == {"partition.k": 2}
    with pytest.raises(ParameterError, match="vary: must be a section"):
        load_grid(path, {"vary": 5})


@pytest.mark.parametrize("file", sorted((REPO / "params" / "grids").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_grid_file_of_the_project_is_right(outputs, papers_data, file):
    assert jobs_of(load_grid(str(file))) and load_grid(file.stem) == load_grid(str(file))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vary": {}}, "vary: "),
        ({"vary": {"partition.k": []}}, "vary.partition.k: must have at least 1 item, not 0"),
        ({"vary": {"partition.k": [2, 2]}}, "each value at most once"),
        ({"vary": {"partition.k": 2}}, "vary.partition.k: must be a list; got 2"),
        ({"vary": {"name": ["a"]}}, "the grid itself names its jobs"),
        ({"partition.k": 4}, "unknown"),
        ({"overrides": {"partition.k": 4}}, "partition.k and vary.partition.k set the same parameter"),
        ({"overrides": {"partition": {}}}, "partition and vary.partition.k set the same parameter"),
        ({"base": "tinny"}, "no parameter file 'tinny'; did you mean tiny? (every job)"),
        ({"bsae": "tiny"}, "bsae: unknown parameter of a grid; did you mean base?"),
        ({"student": {}}, "a run's parameters stand under overrides, as student.name: value"),
        ({"overrides": {"engine": "slurm"}}, "engine.kind: must be one of 'local' or 'ray'; got 'slurm'"),
        ({"engine": "ray"}, "a run's parameters stand under overrides, as engine.name: value"),
        ({"name": "../up"}, "name: must match pattern"),
        ({"base": None}, "base: give one parameter file as `base:` or several as `vary: {base: [...]}`"),
        ({"vary": {"base": ["demo"]}}, "and not both"),
        ({"base": None, "vary": {"base": []}}, "vary.base: must have at least 1 item, not 0"),
        ({"base": None, "vary": {"base": ["tiny", "tiny"]}}, "each value at most once"),
        ({"base": None, "vary": {"base": "tiny"}}, "vary.base: must be a list; got 'tiny'"),
        ({"base": None, "vary": {"base": ["tiny", 3]}}, "vary.base: must be names or paths of parameter files"),
        ({"overrides": {"base": "demo"}}, "overrides.base: give a parameter file as `base:`"),
        ({"base": "scenes_k"}, "scenes_k is a grid, many runs in one file"),
        ({"vary": {"partition.seed": list(range(40)), "data.seed": list(range(40))}}, "1,600 jobs; at most 1,000"),
        ({"vary": {"seed": [0, 1]}}, "vary.seed: a grid's table is over seeds"),
        ({"vary": {"seeds": [1, 3]}}, "vary.seeds: a grid's table is over seeds"),
    ],
)
def test_a_wrong_grid_is_refused_in_words(outputs, tmp_path, change, words):
    with pytest.raises(ParameterError) as caught:
        jobs_of(load_grid(written(tmp_path, change)))
    assert words in str(caught.value)


def test_every_fault_of_every_job_is_listed_before_anything_starts(outputs):
    changed = {"vary": {"partition.k": [0, 2], "student.alpha": [0.5, 2]}, "overrides": {"student.epoch": 1}}
    with pytest.raises(ParameterError) as caught:
        jobs_of(grid_of(**changed))
    assert str(caught.value).splitlines() == [
        "partition.k: must be at least 1; got 0 (k-0_alpha-0.5, k-0_alpha-2)",
        "student.epoch: unknown parameter; did you mean student.epochs? (every job)",
        "student.alpha: must be at most 1; got 2 (k-0_alpha-2, k-2_alpha-2)",
    ]
    assert not outputs.exists()


def test_a_grid_that_is_not_there_is_answered_with_the_nearest(outputs):
    with pytest.raises(ParameterError, match="no grid file 'scenes_kk'; did you mean scenes_k"):
        load_grid("scenes_kk")


def test_a_wrong_grid_is_answered_before_torch_is_loaded(outputs):
    program = (
        "import sys; from cpsd_lib.workbench.grids.params import load_grid, jobs_of; jobs_of(load_grid('scenes_k')); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


# ---- over parameter files --------------------------------------------------------------------------------------------


def test_parameter_files_are_varied_like_any_other_key_and_jobs_have_the_files_names(outputs):
    grid = grid_of(base=None, vary={"base": ["tiny", "params/demo.yaml"], "partition.k": [2, 3]}, overrides={"seed": 7})
    jobs = jobs_of(grid)
    assert [job.name for job in jobs] == ["g.tiny_k-2", "g.tiny_k-3", "g.demo_k-2", "g.demo_k-3"]
    assert [job.params.model.name for job in jobs] == ["test_resnet"] * 2 + ["resnet10t"] * 2
    assert [job.params.partition.k for job in jobs] == [2, 3, 2, 3] and {job.params.seed for job in jobs} == {7}
    assert [job.slug for job in jobs_of(grid_of(base=None, vary={"base": ["tiny", "demo"]}))] == ["tiny", "demo"]


def test_two_files_of_one_name_are_told_apart(outputs, tmp_path):
    (tmp_path / "tiny.yaml").write_text("name: x\ndata: {kind: scenes}\nmodel: {name: test_resnet}\n")
    jobs = jobs_of(grid_of(base=None, vary={"base": ["tiny", str(tmp_path / "tiny.yaml")]}))
    assert len({job.name for job in jobs}) == 2 and all(job.slug.startswith("tiny-") for job in jobs)


def test_files_varied_on_the_command_line_take_the_place_of_the_base(outputs):
    grid = load_grid("tiny", {"vary.base": ["tiny", "demo"]})
    assert grid.base is None and {job.slug for job in jobs_of(grid)} >= {"tiny_match-mse", "demo_match-kl"}
    with pytest.raises(ParameterError, match="and not both"):
        load_grid("coco_paper", {"base": "demo"})


def test_every_fault_of_every_file_is_listed_with_the_file_it_is_in(outputs):
    vary = {"base": ["tinny", "demo", "csv_mobilenetv2", "demmo"]}
    with pytest.raises(ParameterError) as caught:
        jobs_of(grid_of(base=None, vary=vary, overrides={"data.size": 8, "teachers.frozen_stage": 2}))
    assert str(caught.value).splitlines() == [
        "no parameter file 'tinny'; did you mean tiny? (tinny)",
        "data.size: must be at least 16; got 8 (demo, csv_mobilenetv2)",
        "teachers.frozen_stage: unknown parameter; did you mean teachers.frozen_stages? (demo, csv_mobilenetv2)",
        "no parameter file 'demmo'; did you mean demo? (demmo)",
    ]


def test_the_papers_table_is_refused_without_its_data(outputs, monkeypatch):
    for variable in ("COCO2014", "GLOVE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ParameterError) as caught:
        jobs_of(load_grid("coco_paper"))
    first, second = str(caught.value).splitlines()
    assert first.startswith("data.root: the environment variable COCO2014 is not set") and first.endswith("(every job)")
    assert "GLOVE is not set" in second and second.endswith("(coco_resnet101_tf)")


def test_the_papers_table_has_a_plan_and_a_cost_of_each_of_its_models(outputs, papers_data, monkeypatch, capsys):
    grid = load_grid("coco_paper")
    jobs = runner.look_at(jobs_of(grid))
    monkeypatch.setattr(runner, "measured_speed", lambda *_: 1e13)
    runner.print_plan(grid, jobs, jobs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "coco_paper: 5 jobs over base (5), from 5 parameter files; 0 are done already"
    names = ["coco_resnet101", "coco_resnet101_tf", "coco_q2l_resnet101", "coco_tresnet_l", "coco_resnext50_swsl"]
    assert lines[1:6] == [f"  {name}: to do" for name in names]
    assert len({card(job.cost) for job in jobs}) == 5
    for job in jobs:
        assert (job.params.data.size, job.params.partition.k, job.cost.num_classes) == (448, 5, 80)
        assert (
            list(published(job.params).index) == job.params.student.rows == ["baseline", "sd", "cgpd", "dgpd", "cpsd"]
        )
        assert "11 models" in card(job.cost)  # a teacher over all classes, and 5 of parts in each branch


def scored(jobs, outputs):
    """Give Jobs hand-made scores of two seeds: 80 and 82 mAP, 70 CF1, 75 OF1, on both test splits."""
    for job in jobs:
        records = [
            {"row": row, "seed": seed, "split": split, "mAP": 80 + 2 * seed, "CF1": 70, "OF1": 75, "seconds": 10}
            for row in job.params.student.rows
            for seed in range(2)
            for split in ("test", "test_shifted")
        ]
        write_json(outputs / job.name / "evaluation" / "metrics.json", records)
        write_json(outputs / job.name / "manifest.json", {"stages": {"05_evaluation": {"commit": "c"}}})


def test_published_figures_stand_beside_the_results_that_have_them(outputs, papers_data):
    jobs = jobs_of(load_grid("coco_paper", {"vary.base": ["coco_resnet101", "demo"]}))
    scored(jobs, outputs)
    frame = results.collect(jobs)
    text = results.write(frame, outputs / "coco_paper", ["base"])
    lines = {tuple(line.split()[:2]): line.split() for line in text.splitlines()}
    assert " ".join(lines["coco_resnet101", "baseline"]).endswith(" 81.00 1.41 70.00 75.00 10 2 81.6 76.4 80.0")
    assert lines["coco_resnet101", "+"][-3:] == ["83.1", "78.2", "80.9"]  # the last one, + CPSD
    markdown = (outputs / "coco_paper" / "grid.md").read_text()
    assert "| coco_resnet101 | + SD | 81.00 | 1.41 | 70.00 | 75.00 | 10 | 2 | 81.9 | - | - |" in markdown
    assert lines["demo", "baseline"][-3:] == ["-", "-", "-"] and results.PAPER_LEGEND in text
    test, shifted = markdown.split("## test_shifted")
    assert "paper mAP" in test and "paper mAP" not in shifted
    saved = pd.read_csv(outputs / "coco_paper" / "grid.csv")
    paper = saved[(saved["base"] == "coco_resnet101") & (saved["split"] == "test")].groupby("row")["paper mAP"]
    assert paper.first().to_dict() == {"baseline": 81.6, "sd": 81.9, "cgpd": 82.4, "dgpd": 82.7, "cpsd": 83.1}
    assert saved.loc[saved["split"] == "test_shifted", list(results.PAPER)].isna().all(axis=None)


def test_a_grid_without_a_published_figure_has_no_column_for_one(outputs):
    jobs = jobs_of(grid_of())
    scored(jobs, outputs)
    frame = results.collect(jobs)
    assert not set(results.PAPER) & set(frame) and "paper" not in results.write(frame, outputs / "g", ["partition.k"])
