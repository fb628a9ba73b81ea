"""Grids: what is asked for, what is shared, what a failed job costs, and what the results look like.

Most runs are stand-ins; the last test trains two tiny ones, about half a minute on two free cores.
"""

import re
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock

from cpsd_lib import cli
from cpsd_lib.data import NOT_COMPARABLE
from cpsd_lib.support import read_json, write_json, write_text
from cpsd_lib.workbench import cost, pipeline
from cpsd_lib.workbench.grids import results, runner
from cpsd_lib.workbench.grids.params import Grid, jobs_of
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.run import Run, params_text
from cpsd_lib.workbench.scoring import caveats
from cpsd_lib.workbench.yaml_files import ParameterError, Stopped

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("CPSD_ROOT", str(REPO))
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def note(folder, line):
    """Add a line to the journal of all runs."""
    folder.mkdir(exist_ok=True)
    with open(folder / "journal", "a") as file:
        file.write(f"{line}\n")


def journal(folder):
    path = folder / "journal"
    return path.read_text().splitlines() if path.exists() else []


def asked(**changed):
    """Return a Grid over tiny runs."""
    return Grid(**{"name": "g", "base": "tiny", "vary": {"partition.k": [2, 3]}} | changed)


# ---- what is asked for -----------------------------------------------------------------------------------------------


def test_more_parts_than_classes_stop_the_grid_before_any_job_starts(outputs):
    with pytest.raises(ParameterError, match=r"partition.k is 50, but the data set has only \d+ classes \(k-50\)"):
        runner.run_grid("tiny", {"vary": {"partition.k": [2, 50]}, "overrides": {}})
    assert not outputs.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_stops_the_grid_before_any_job_starts(outputs):
    with pytest.raises(ParameterError, match=r"device is cuda.* \(every job\)"):
        runner.run_grid("tiny", {"device": "cuda"})
    assert not outputs.exists()


def test_a_grid_does_not_move_into_the_folder_of_a_run(outputs):
    write_json(outputs / "tiny_grid" / "manifest.json", {"stages": {}})
    with pytest.raises(ParameterError, match="is the folder of a run"):
        runner.run_grid("tiny")


# ---- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_names_the_jobs_and_the_time(outputs, monkeypatch, capsys):
    grid = asked(vary={"student.alpha": [0.1, 0.5, 0.9]})
    jobs = runner.look_at(jobs_of(grid))
    jobs[2].left = []
    monkeypatch.setattr(runner, "measured_speed", lambda *_: 1e18)
    runner.print_plan(grid, jobs, jobs[:2])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "g: 3 jobs over student.alpha (3), from tiny; 1 are done already"
    assert lines[1:4] == ["  alpha-0.1: to do", "  alpha-0.5: to do", "  alpha-0.9: done"]
    assert lines[4] == f"estimate: at most {cost.spoken_time(sum(j.cost.eflop for j in jobs[:2]))} by one process here"


def test_a_machine_that_cannot_make_a_step_still_gets_a_plan(outputs, monkeypatch, capsys):
    monkeypatch.setattr(runner, "measured_speed", Mock(side_effect=RuntimeError("out of memory")))
    jobs = runner.look_at(jobs_of(asked()))
    runner.print_plan(asked(), jobs, jobs)
    assert capsys.readouterr().out.splitlines()[-1] == "  k-3: to do"


def test_the_speed_is_that_of_real_steps_and_draws_nothing_from_the_global_generators(outputs):
    (one,) = runner.look_at(jobs_of(asked(vary={"partition.k": [2]})))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    speed = cost.measured_speed(one.params, one.cost, seconds=0.1)
    assert 1e7 < speed < 1e14
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "about 1 s"), (89, "about 89 s"), (600, "about 10 min"), (7800, "about 2 h 10 min")],
)
def test_a_time_is_said_in_words(seconds, words):
    assert cost.spoken_time(seconds) == words


# ---- the loop --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fakes(outputs, monkeypatch):
    """Grids whose runs leave a file when they are done; {name of a run: what it raises} makes it fail."""
    faults = {}

    def run_stages(path):
        params = load_params(path)
        note(outputs, f"start {params.name}")
        if params.name in faults:
            raise faults[params.name]
        (outputs / params.name).mkdir()
        note(outputs, f"end {params.name}")
        return Run(params)

    monkeypatch.setattr(runner, "run_stages", run_stages)
    monkeypatch.setattr(runner, "write_report", lambda run: note(outputs, f"report {run.params.name}"))
    monkeypatch.setattr(runner, "measured_speed", lambda *_: 1e9)
    monkeypatch.setattr(runner, "stages_left", lambda p: [] if (outputs / p.name).exists() else ["04_student"])
    return faults


EIGHT = {"vary": {"data.seed": list(range(8))}, "overrides": {}, "name": "eight"}


@pytest.mark.parametrize(
    "error", [Stopped("04_student stopped: no room\nits notebook: somewhere"), OSError("disk full")]
)
def test_a_run_that_fails_stops_no_other_and_the_same_command_does_what_is_missing(outputs, fakes, capsys, error):
    fakes |= {"eight.seed-2": error, "eight.seed-5": error}
    assert runner.run_grid("tiny", EIGHT) == 1
    said = capsys.readouterr()
    names = [f"eight.seed-{seed}" for seed in range(8)]
    others = [name for name in names if name not in fakes]
    assert [line.split()[1] for line in journal(outputs) if line.startswith("start")] == names
    assert [line.split()[1] for line in journal(outputs) if line.startswith("report")] == others
    assert said.out.count(f"FAILED: {error}") == 2
    assert " 1/8 seed-0\n" in said.out and " 8/8 seed-7\n" in said.out
    assert (
        f"eight.seed-2: {error}" in said.err and "2 of 8 jobs failed; the same command does what is missing" in said.err
    )
    fakes.clear()
    done = len(journal(outputs))
    assert runner.run_grid("tiny", EIGHT) == 0
    again = [line.split()[1] for line in journal(outputs)[done:] if line.startswith("start")]
    assert again == ["eight.seed-2", "eight.seed-5"]
    assert "8 jobs over data.seed (8), from tiny; 6 are done already" in capsys.readouterr().out


def test_a_run_is_that_of_the_resolved_parameters(outputs, fakes):
    assert runner.run_grid("tiny", EIGHT | {"train.epochs": 7}) == 0
    written = load_params(outputs / "eight" / "params" / "seed-3.yaml")
    assert (written.name, written.data.seed, written.student.epochs) == ("eight.seed-3", 3, 7)
    shutil.rmtree(outputs / "eight")  # its runs are still there, and done
    assert runner.run_grid("tiny", EIGHT | {"train.epochs": 7}) == 0
    assert len(list((outputs / "eight" / "params").glob("*.yaml"))) == 8


def test_a_grid_that_runs_already_is_not_run_beside_itself(outputs, fakes, capsys):
    (outputs / "eight").mkdir(parents=True)
    with FileLock(outputs / "eight" / ".runner.lock"):
        assert cli.main(["grid", "tiny", "name=eight", "vary.data.seed=[0, 1]"]) == 1
    assert "is held by process" in capsys.readouterr().err and not journal(outputs)


def test_the_engine_is_that_of_every_run_and_ray_without_its_package_says_how_to_get_it(outputs, monkeypatch):
    assert {job.params.engine.kind for job in jobs_of(asked(overrides={"engine": "ray"}))} == {"ray"}
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ParameterError, match=r"pip install '.\[ray\]'"):
        runner.run_grid("tiny", {"engine": "ray"})
    assert not outputs.exists()


# ---- results ---------------------------------------------------------------------------------------------------------


def scored(jobs, outputs, seeds, rows=("baseline", "cgpd", "teachers_co")):
    """Give jobs hand-made scores: mAP is 50 + 10 * number of the job + number of the row + number of the seed."""
    for number, one in enumerate(jobs):
        records = [
            {"row": row, "seed": seed, "split": split, "mAP": 50 + 10 * number + r + seed, "CF1": 1.0, "OF1": 2.0}
            | {"seconds": 100.0 + number}
            for r, row in enumerate(rows)
            for seed in range(seeds)
            for split in ("test", "test_shifted")
        ]
        folder = outputs / one.name
        write_json(folder / "evaluation" / "metrics.json", records)
        write_json(folder / "manifest.json", {"stages": {"05_evaluation": {"commit": f"c{number}"}}})
        described = {"key": "k", "class_names": ["a"], "positives": {}, "images": {}}
        write_json(folder / "data.json", described | {"incomplete": "", "notes": ["a note"]})


def test_the_csv_has_one_line_a_job_row_split_and_seed(outputs):
    jobs = jobs_of(asked(vary={"partition.k": [2, 3], "student.rows": [["cgpd"], ["sd", "cgpd"]]}))
    scored(jobs, outputs, seeds=3)
    frame = results.collect(jobs)
    assert len(frame) == 4 * 3 * 2 * 3
    columns = ["job", "partition.k", "student.rows", "row", "split", "seed", "mAP", "CF1", "OF1", "seconds", "commit"]
    assert list(frame.columns) == columns
    said = results.write(frame, outputs / "g", ["partition.k", "student.rows"])
    written = pd.read_csv(outputs / "g" / "grid.csv")
    pd.testing.assert_frame_equal(written, frame, check_dtype=False)
    one = written[(written["job"] == jobs[3].name) & (written["row"] == "cgpd") & (written["split"] == "test")]
    assert one["mAP"].tolist() == [81, 82, 83] and set(one["student.rows"]) == {"sd, cgpd"}
    assert set(one["commit"]) == {"c3"}
    assert "| 3 | sd, cgpd | + CGPD | 82.00 | 1.00 | 1.00 | 2.00 | 103 | 3 |" in (outputs / "g" / "grid.md").read_text()
    names = ("mAP_over_partition_k.png", "mAP_over_student_rows.png")
    assert all((outputs / "g" / "figures" / name).stat().st_size > 10_000 for name in names)
    assert "+ CGPD" in said and str(outputs / "g" / "grid.csv") in said


def drawn(jobs, outputs, key, seeds, monkeypatch, **more):
    """Return the axes of the figure over a key."""
    shown = []
    monkeypatch.setattr(results.plots, "save", lambda figure, path: shown.append((figure, path)))
    scored(jobs, outputs, seeds)
    results.write(results.collect(jobs), outputs / "g", list(jobs[0].varied), **more)
    figure = next(figure for figure, path in shown if path.stem == f"mAP_over_{key.replace('.', '_')}")
    return figure


def test_a_numeric_parameter_is_drawn_as_a_line_a_row_with_the_spread_over_seeds(outputs, monkeypatch):
    jobs = jobs_of(asked(vary={"partition.k": [5, 1, 3]}))
    figure = drawn(jobs, outputs, "partition.k", 3, monkeypatch, notes=["protocol: paper"])
    (axis,) = figure.axes
    # The merged teachers are no row of the table.
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["baseline", "+ CGPD"]
    (line,) = [line for line in axis.lines if line.get_marker() == "s" and len(line.get_xdata())]
    assert line.get_linestyle() == "-"
    bars = [other.get_ydata() for other in axis.lines if other.get_color() == line.get_color() and other is not line]
    assert line.get_xdata().tolist() == [1, 3, 5] and line.get_ydata().tolist() == [62, 72, 52]
    assert [np.nanmax(y) - np.nanmin(y) for y in bars if len(y)] == [2, 2, 2]  # one s.d. each way
    assert axis.get_ylabel() == "mAP on test (%)" and "partition.k" in axis.get_xlabel()
    assert "3 seeds, bars: one s.d." in figure.get_suptitle() and "protocol: paper" in figure.get_suptitle()


def test_one_seed_has_no_error_bars_and_says_so(outputs, monkeypatch):
    figure = drawn(jobs_of(asked()), outputs, "partition.k", 1, monkeypatch)
    assert all(len(line.get_ydata()) in (0, 2) for line in figure.axes[0].lines)  # two values of k, and a legend
    assert "one seed: no spread is known" in figure.get_suptitle()


def test_a_figure_of_lines_with_unlike_numbers_of_seeds_says_so():
    lines = [("a", "baseline", "test", seed, 1, 50.0 + seed) for seed in range(2)]
    lines += [(job, "cpsd", "test", seed, k, 60.0 + seed) for job, k in (("a", 1), ("b", 2)) for seed in range(5)]
    frame = pd.DataFrame(lines, columns=["job", "row", "split", "seed", "partition.k", "mAP"])
    ((_, figure),) = results.figures(frame, ["partition.k"], "g")
    assert "mean of 2 to 5 seeds, bars: one s.d." in figure.get_suptitle()


def test_a_parameter_of_words_is_drawn_as_dots_beside_each_other_and_another_as_panels(outputs, monkeypatch):
    jobs = jobs_of(asked(vary={"student.match": ["mse", "kl"], "student.lr": [1e-5, 1e-3, 1e-1]}))
    figure = drawn(jobs, outputs, "student.match", 2, monkeypatch)
    assert [axis.get_title("left") for axis in figure.axes] == [
        "student.lr 1e-05",
        "student.lr 0.001",
        "student.lr 0.1",
    ]
    first, second = (line for line in figure.axes[0].lines if line.get_marker() in ("o", "s"))
    assert first.get_linestyle() == "None" and (first.get_xdata() != second.get_xdata()).all()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["mse", "kl"]
    figure = drawn(jobs, outputs, "student.lr", 2, monkeypatch)
    assert figure.axes[0].get_xscale() == "log" and len(figure.axes) == 2


def test_what_must_stand_beside_the_numbers_stands_there(outputs):
    jobs = jobs_of(asked(overrides={"protocol": "paper"}))
    scored(jobs, outputs, 1)
    subset = f"a subset, {NOT_COMPARABLE}"
    described = {"key": "k", "class_names": ["a"], "positives": {}, "images": {}}
    described |= {"incomplete": "INCOMPLETE: two images", "notes": [subset, "another note"]}
    write_json(outputs / jobs[1].name / "data.json", described)
    found = [*dict.fromkeys(note for job in jobs for note in caveats(Run(job.params)))]
    assert found == ["protocol: paper, epochs chosen on TEST", "INCOMPLETE: two images", subset]
    results.write(results.collect(jobs), outputs / "g", ["partition.k"], found)
    assert "(protocol: paper, epochs chosen on TEST) (INCOMPLETE" in (outputs / "g" / "grid.md").read_text()


def finished(name, outputs, seeds=3, notes=(), **more):
    """Leave the results of a grid over k as the runner leaves them; return its jobs."""
    jobs = jobs_of(asked(name=name, **more))
    scored(jobs, outputs, seeds)
    for job in jobs:
        write_text(outputs / name / "params" / f"{job.slug}.yaml", params_text(job.params))
    results.write(results.collect(jobs), outputs / name, list(jobs[0].varied), notes)
    return jobs


def test_a_run_finds_the_finished_grids_of_its_own_data(outputs):
    jobs = finished("mine", outputs, notes=["1 of 3 jobs are missing"])
    finished("other", outputs, overrides={"data.images": 200})
    finished("mixed", outputs, vary={"data.images": [100, 200]}, overrides={})
    (outputs / "stopped").mkdir()
    params = jobs[0].params.model_copy(update={"name": "a_run"})
    (name,) = found = results.beside(params)
    frame, keys, notes = found["mine"]
    assert name == "mine" and keys == ["partition.k"] and notes == ["1 of 3 jobs are missing"]
    pd.testing.assert_frame_equal(frame, results.collect(jobs), check_dtype=False)
    assert not results.beside(jobs[0].params)  # one of its jobs
    ((key, figure),) = results.figures(frame, keys, "mine", notes)
    assert key == "partition.k" and "1 of 3 jobs are missing" in figure.get_suptitle()


def test_the_table_of_a_finished_grid_is_not_that_of_the_other_parameters_it_is_now_run_with(outputs, monkeypatch):
    first, _ = finished("mine", outputs)
    monkeypatch.setattr(runner, "run_stages", Mock(side_effect=Stopped("stopped")))
    monkeypatch.setattr(runner, "stages_left", lambda _: ["03_teachers"])
    monkeypatch.setattr(runner, "measured_speed", lambda *_: 1e9)
    monkeypatch.setattr(results, "collect", lambda _: None)  # none of its jobs comes to its scores
    wide = {"name": "mine", "vary": {"partition.k": [2, 3]}, "overrides": {"data.size": 32}}
    assert runner.run_grid("tiny", wide) == 1
    data = first.params.data.model_copy(update={"size": 32})
    assert not results.beside(first.params.model_copy(update={"name": "a_run", "data": data}))


def test_what_notebook_07_takes_from_the_results_is_there():
    taken = set(re.findall(r"\bresults\.(\w+)", (REPO / "notebooks" / "07_ablation.ipynb").read_text()))
    assert len(taken) > 4 and all(hasattr(results, name) for name in taken)


def test_the_sentences_name_the_best_value_against_the_spread(outputs):
    jobs = jobs_of(asked(vary={"partition.k": [2, 3], "student.match": ["mse", "kl"]}))
    scored(jobs, outputs, 3)
    lines = results.summary(results.collect(jobs), "partition.k", ["student.match"]).splitlines()
    assert lines[0] == (
        "student.match mse, baseline: best at partition.k 3 (71.0 mAP), worst at 2 (51.0); s.d. over 3 seeds up to 1.0."
    )
    assert len(lines) == 4 and lines[3].startswith("student.match kl, + CGPD: best at partition.k 3 (82.0")
    frame = results.collect(jobs).query("seed == 0").assign(mAP=50.0)
    lines = results.summary(frame, "partition.k").splitlines()
    assert lines[0] == "baseline: 50.0 mAP at every partition.k."
    assert lines[-1].startswith("One seed: no spread is known")


# ---- real runs -------------------------------------------------------------------------------------------------------


def executed_here(notebook, out, parameters, cwd, **_):
    """Execute a notebook's cells in this process, in place of papermill: a kernel a notebook takes 10 s of imports."""
    cells = [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    names = {"display": lambda *_: None}
    with chdir(cwd):
        for number, cell in enumerate(cells):
            exec("".join(cell["source"]), names)
            if number == 0:
                names |= parameters
    Path(out).write_text("executed")
    note(Path(out).parents[1], f"{Path(out).parent.name} {Path(notebook).stem}")


def test_two_real_runs_train_their_teachers_once_and_a_finished_grid_runs_nothing(outputs, monkeypatch):
    for name in ("notebooks", "params"):  # a copy that nobody edits while this runs
        shutil.copytree(REPO / name, outputs.parent / name, ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setenv("CPSD_ROOT", str(outputs.parent))
    monkeypatch.setattr(pipeline.papermill, "execute_notebook", executed_here)
    assert runner.run_grid("tiny") == 0
    first, second = (read_json(outputs / f"tiny_grid.match-{match}" / "artifacts.json") for match in ("mse", "kl"))
    for name in ("seed0/teachers/whole", "seed0/teachers/co", "seed0/soft_targets/co"):
        assert first[name]["keys"] == second[name]["keys"]
    assert first["seed0/students/cgpd"]["keys"] != second["seed0/students/cgpd"]["keys"]
    assert len(list((outputs / ".store" / "model").glob("*"))) == 1 + 2 + 2
    frame = pd.read_csv(outputs / "tiny_grid" / "grid.csv")
    assert set(frame["student.match"]) == {"mse", "kl"} and set(frame["row"]) == {"baseline", "cgpd", "teachers_co"}
    assert (outputs / "tiny_grid" / "figures" / "mAP_over_student_match.png").exists()
    before = journal(outputs)
    assert len(before) == len(set(before)) and runner.run_grid("tiny") == 0 and journal(outputs) == before
