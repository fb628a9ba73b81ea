"""Grids: what is asked for, what is shared, what a killed job costs, and what the results look like.

Jobs run in processes of their own, most of them stand-ins that sleep; the last local test trains three tiny runs, about
half a minute on two free cores. Ray's tests run where the package ray is installed.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from grid_fakes import journal

from cpsd_lib import cli
from cpsd_lib.data import NOT_COMPARABLE
from cpsd_lib.support import read_json, write_json, write_text
from cpsd_lib.workbench import cost
from cpsd_lib.workbench.grids import engines, plan, results, runner
from cpsd_lib.workbench.grids.params import Grid, jobs_of
from cpsd_lib.workbench.run import Run, params_text
from cpsd_lib.workbench.scoring import caveats
from cpsd_lib.workbench.yaml_files import ParameterError

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("CPSD_ROOT", str(REPO))
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO / "tests"), os.environ.get("PYTHONPATH", "")]))
    return tmp_path / "outputs"


def fake(monkeypatch, name):
    """Have the jobs do what a function of grid_fakes does."""
    monkeypatch.setattr(engines, "JOB", "grid_fakes")
    monkeypatch.setenv("GRID_FAKE", name)


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


def planned(**changed):
    return plan.look_at(jobs_of(asked(**changed)))


def test_what_an_earlier_job_trains_by_the_same_parameters_takes_a_later_one_no_time(outputs):
    jobs = planned(vary={"student.match": ["mse", "kl"]})
    first, second = plan.seconds_of(jobs, 1e9)
    cost, stages = jobs[0].cost, plan.STAGE_SECONDS * len(jobs[0].left)
    assert first == pytest.approx(cost.eflop * 1e18 / 1e9 + stages)
    assert first - second == pytest.approx(cost.stages["teachers"] * 1e18 / 1e9)
    again = plan.seconds_of([jobs[0], jobs[0]], 1e9)[1]
    assert again == pytest.approx(cost.stages["evaluation"] * 1e18 / 1e9 + stages)


def test_the_plan_names_the_jobs_and_the_time(outputs, monkeypatch, capsys):
    jobs = planned(vary={"student.match": ["mse", "kl", "mld"]})
    jobs[2].left = []
    monkeypatch.setattr(plan, "measured_speed", lambda *_: 2e9)
    plan.print_plan(asked(vary={"student.match": ["mse", "kl", "mld"]}), jobs, 1, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "g: 3 jobs over student.match (3), from tiny; 1 are done already"
    assert lines[2].split()[:4] == ["match-mse", "to", "do", "about"]
    assert lines[4].split() == ["match-mld", "done"]
    assert lines[5].startswith("estimate: at most about ") and "2 GFLOP/s" in lines[5]


def test_a_machine_that_cannot_make_a_step_still_gets_a_plan(outputs, monkeypatch, capsys):
    jobs = plan.look_at(jobs_of(asked(overrides={"device": "cuda:77"})), here=False)
    plan.print_plan(asked(), jobs, 1, None)
    assert "no estimate of the time" in capsys.readouterr().out


def test_the_speed_is_that_of_real_steps_and_draws_nothing_from_the_global_generators(outputs):
    (one,) = planned(vary={"partition.k": [2]})
    torch.manual_seed(0)
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    speed = cost.measured_speed(one.params, one.cost, 1, seconds=0.1)
    assert 1e7 < speed < 1e14
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads


def test_memory_limits_the_jobs_side_by_side_and_leaves_one(outputs, monkeypatch):
    jobs, many = planned(), asked(jobs=8)
    for free, count in ((100.0, 8), (6.9, 3), (0.1, 1)):
        free_memory = SimpleNamespace(available=free * 2**30)
        monkeypatch.setattr(plan.psutil, "virtual_memory", lambda free_memory=free_memory: free_memory)
        most, why = plan.side_by_side(many, jobs)
        assert most == count and (why is None) == (count == 8)
    assert plan.side_by_side(asked(jobs=8, engine="ray"), jobs) == (8, None)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "about 1 s"), (89, "about 89 s"), (600, "about 10 min"), (7800, "about 2 h 10 min")],
)
def test_a_time_is_said_in_words(seconds, words):
    assert cost.spoken_time(seconds) == words


# ---- jobs in processes of their own ----------------------------------------------------------------------------------


@pytest.fixture
def fakes(outputs, monkeypatch):
    """Grids whose jobs sleep, and are done when they left a file; no plan is measured."""

    def left(params):
        return [] if (outputs / params.name / "done").exists() else ["04_student"]

    monkeypatch.setattr(plan, "stages_left", left)
    monkeypatch.setattr(plan, "measured_speed", lambda *_: 1e9)
    fake(monkeypatch, "sleepy")
    return outputs


EIGHT = {"vary": {"seed": list(range(8))}, "overrides": {}, "name": "eight", "jobs": 2}


class Killer(threading.Thread):
    """Kills the processes of some jobs (names), each at a random moment of its half second."""

    def __init__(self, outputs, names, rng):
        super().__init__(daemon=True)
        self.outputs, self.moments = outputs, {name: rng.uniform(0, 0.3) for name in names}
        self.killed, self.stop = [], False

    def run(self):
        left = dict(self.moments)
        while left and not self.stop:
            for name in [name for name in left if (self.outputs / name / "pid").exists()]:
                time.sleep(left.pop(name))
                os.kill(int((self.outputs / name / "pid").read_text()), signal.SIGKILL)
                self.killed.append(name)
            time.sleep(0.005)


def test_a_grid_of_8_jobs_with_2_killed_at_random_finishes_on_rerun_with_nothing_done_twice(fakes, capsys):
    rng = random.Random(0)
    names = [f"eight.seed-{seed}" for seed in range(8)]
    killer = Killer(fakes, sorted(rng.sample(names, 2)), rng)
    killer.start()
    assert runner.run_grid("tiny", EIGHT) == 1
    killer.join(10)
    said = capsys.readouterr()
    assert len(killer.killed) == 2
    assert sorted(line for line in journal(fakes) if line.startswith("start")) == [f"start {name}" for name in names]
    others = [name for name in names if name not in killer.killed]
    assert sorted(line for line in journal(fakes) if line.startswith("end")) == [f"end {name}" for name in others]
    assert said.out.count("FAILED") == 2 and "6 of 8 done" in said.out
    for name in killer.killed:
        assert f"{name}: its process died of SIGKILL" in said.err
        assert str(fakes / "eight" / "logs" / f"{name.removeprefix('eight.')}.log") in said.err
    assert "2 of 8 jobs failed; the same command does what is missing" in said.err
    assert runner.run_grid("tiny", EIGHT) == 0
    again = journal(fakes)[14:]  # 8 starts and 6 ends were the first time
    assert sorted(again) == sorted(f"{word} {name}" for name in killer.killed for word in ("start", "end"))
    assert "8 jobs over seed (8), from tiny; 6 are done already" in capsys.readouterr().out
    assert runner.run_grid("tiny", EIGHT) == 0 and len(journal(fakes)) == 18


def test_a_job_that_fails_says_why_and_one_that_ends_without_a_word_too(fakes, monkeypatch, capsys):
    fake(monkeypatch, "refusing")
    assert runner.run_grid("tiny", {"vary": {"seed": [1, 2, 3]}, "overrides": {}, "jobs": 3}) == 1
    said = capsys.readouterr()
    assert "seed-1: done in" in said.out and "04_student stopped: no room\n" in said.out
    assert "04_student stopped: no room\nits notebook: somewhere" in said.err
    assert "its process ended with exit status 7 and no word" in said.err


def test_ctrl_c_stops_the_jobs(fakes, monkeypatch):
    monkeypatch.setenv("SLEEPY_SECONDS", "60")
    first = fakes / "eight.seed-0" / "pid"

    def interrupt():
        while not first.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell that starts the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            runner.run_grid("tiny", EIGHT)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(first.read_text()), 0)


def test_a_grid_that_is_killed_takes_its_jobs_along(tmp_path):
    program = (
        "from pathlib import Path; from cpsd_lib.workbench.grids.engines import work\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "work('grid_fakes', str(folder / 'job.yaml'), folder / 'log', {'CPSD_OUTPUTS': str(folder)})"
    )
    (tmp_path / "job.yaml").write_text("name: job\n")
    environment = os.environ | {"SLEEPY_SECONDS": "60", "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests")])}
    environment |= {"GRID_FAKE": "sleepy"}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "job" / "pid").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    pid = int((tmp_path / "job" / "pid").read_text())
    while gone := Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not gone


def test_a_grid_that_runs_already_is_not_run_beside_itself(fakes, capsys):
    (fakes / "eight").mkdir(parents=True)
    with FileLock(fakes / "eight" / ".runner.lock"):
        assert cli.main(["grid", "tiny", "name=eight", "vary.seed=[0, 1]"]) == 1
    assert "is held by process" in capsys.readouterr().err and not journal(fakes)


def test_what_a_job_and_its_children_print_goes_to_its_log_and_its_environment_is_its_own(tmp_path, monkeypatch):
    program = "import os, sys\nos.system('echo $CPSD_TEST; echo two >&2')\nprint(*sys.argv[1:])"
    (tmp_path / "printing.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), str(tmp_path)]))
    assert engines.work("printing", "x", tmp_path / "logs" / "job.log", {"CPSD_TEST": "1"}) is None
    assert (tmp_path / "logs" / "job.log").read_text() == "1\ntwo\nrun x\n" and "CPSD_TEST" not in os.environ


def test_a_job_is_cpsd_run_and_its_last_words_say_why_it_stopped(outputs, tmp_path):
    path, log = tmp_path / "job.yaml", tmp_path / "job.log"
    path.write_text("name: job\ndata: {kind: scenes}\nmodel: {name: test_resnet}\nsed: 1\n")
    assert engines.work(engines.JOB, str(path), log, {}) == "sed: unknown parameter; did you mean seed?"
    assert log.read_text().startswith("nothing was started:\n")


def test_the_engine_ray_without_its_package_says_how_to_get_it(outputs, monkeypatch):
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
        write_json(folder / "data.json", {"incomplete": "", "notes": ["a note"]})


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
    _, _, (bars,) = axis.containers[1]
    assert line.get_xdata().tolist() == [1, 3, 5] and line.get_ydata().tolist() == [62, 72, 52]
    assert [np.ptp(segment[:, 1]) for segment in bars.get_segments()] == [2, 2, 2]  # one s.d. each way
    assert axis.get_ylabel() == "mAP on test (%)" and "partition.k" in axis.get_xlabel()
    assert "3 seeds, bars: one s.d." in figure.get_suptitle() and "protocol: paper" in figure.get_suptitle()


def test_one_seed_has_no_error_bars_and_says_so(outputs, monkeypatch):
    figure = drawn(jobs_of(asked()), outputs, "partition.k", 1, monkeypatch)
    assert not figure.axes[0].containers
    assert "one seed: no spread is known" in figure.get_suptitle()


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
    described = {"incomplete": "INCOMPLETE: two images", "notes": [subset, "another note"]}
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


def test_two_real_jobs_train_their_teachers_once_and_end_as_a_run_by_itself(outputs, monkeypatch, capsys):
    for name in ("notebooks", "params"):  # a copy that nobody edits while this runs
        shutil.copytree(REPO / name, outputs.parent / name, ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setenv("CPSD_ROOT", str(outputs.parent))
    fake(monkeypatch, "without_kernels")
    # Both at the same moment: whoever comes second waits for the teachers of the first.
    assert runner.run_grid("tiny", {"threads": 1, "jobs": 2}) == 0, [
        p.read_text() for p in outputs.glob("*/logs/*.log")
    ]
    first, second = (read_json(outputs / f"tiny_grid.match-{match}" / "artifacts.json") for match in ("mse", "kl"))
    for name in ("seed0/teachers/whole", "seed0/teachers/co", "seed0/soft_targets/co"):
        assert first[name]["keys"] == second[name]["keys"]
    assert first["seed0/students/cgpd"]["keys"] != second["seed0/students/cgpd"]["keys"]
    assert len(list((outputs / ".store" / "model").glob("*"))) == 1 + 2 + 2
    frame = pd.read_csv(outputs / "tiny_grid" / "grid.csv")
    assert set(frame["student.match"]) == {"mse", "kl"} and set(frame["row"]) == {"baseline", "cgpd", "teachers_co"}
    assert (outputs / "tiny_grid" / "figures" / "mAP_over_student_match.png").exists()
    before = journal(outputs)
    assert (
        len(before) == len(set(before)) and runner.run_grid("tiny", {"threads": 1}) == 0 and journal(outputs) == before
    )


# ---- Ray -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ray_fakes(fakes, monkeypatch):
    pytest.importorskip("ray")
    return fakes


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_on_ray_a_job_whose_worker_is_killed_is_started_once_more_and_all_end_well(ray_fakes):
    killer = Killer(ray_fakes, ["eight.seed-1"], random.Random(1))
    killer.start()
    assert runner.run_grid("tiny", EIGHT | {"vary": {"seed": [0, 1, 2]}, "engine": "ray", "threads": 1}) == 0
    killer.stop = True
    assert killer.killed == ["eight.seed-1"]
    counts = {line: journal(ray_fakes).count(line) for line in journal(ray_fakes)}
    assert counts.pop("start eight.seed-1") == 2 and set(counts.values()) == {1} and len(counts) == 5


@pytest.mark.filterwarnings("ignore")
def test_on_ray_a_job_that_fails_says_why_and_the_others_go_on(ray_fakes, monkeypatch, capsys):
    fake(monkeypatch, "refusing")
    changed = {"vary": {"seed": [1, 2, 3]}, "overrides": {}, "jobs": 3, "engine": "ray", "threads": 1}
    assert runner.run_grid("tiny", changed) == 1
    said = capsys.readouterr()
    assert "seed-1: done in" in said.out and "04_student stopped: no room\nits notebook: somewhere" in said.err
    assert "tiny_grid.seed-3: its process ended with exit status 7 and no word" in said.err
