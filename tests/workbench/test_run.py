"""The runner: what is done and fresh is skipped, what fails says so, and what was killed goes on to the same weights.

Most tests put a quick stand-in in papermill's place; three start real kernels on notebooks of one line, and the last one
on broken photos. `make faults` alone kills the whole tiny pipeline; a twentieth of the kills of tests/faults is in `make test`.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import faults
import nbformat
import psutil
import pytest
from filelock import FileLock
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from small_copies import picture

from cpsd_lib.cli import main
from cpsd_lib.support import read_json, sha256
from cpsd_lib.workbench import pipeline
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.pipeline import STAGES
from cpsd_lib.workbench.recipes import VERSIONS
from cpsd_lib.workbench.run import open_run
from cpsd_lib.workbench.yaml_files import ParameterError, Stopped

REPO = Path(__file__).resolve().parents[2]
ALL = list(STAGES)
LONG = 900  # seconds: a busy machine is no fault


def files_of(stage):
    """Return names that fit the patterns of the files a stage leaves."""
    return sorted(pattern.replace("*", "x") for pattern in STAGES[stage][1])


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project folder of its own: the real notebooks and parameters, runs in outputs/."""
    shutil.copytree(REPO / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    shutil.copytree(REPO / "params", tmp_path / "params")
    monkeypatch.setenv("CPSD_ROOT", str(tmp_path))
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


class Stand:
    """Stands in for papermill: notes which stages were run, and writes files that depend on what the stage reads."""

    def __init__(self, monkeypatch):
        self.stages, self.before = [], {}
        monkeypatch.setattr(pipeline.papermill, "execute_notebook", self)
        monkeypatch.setattr(pipeline, "models_to_train", lambda *_: {"03_teachers": "9 models, about 5 min"})

    def __call__(self, notebook, out, parameters, **_):
        stage = Path(notebook).stem
        self.stages.append(stage)
        if stage in self.before:
            self.before[stage](parameters)
        params = load_params(parameters["params"], parameters["overrides"])
        read = [pipeline._value(params.model_dump(mode="json"), section) for section in STAGES[stage][0]]
        Path(out).write_text("executed")
        for name in files_of(stage):
            path = Path(out).parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([stage, name, read]))

    def run(self, **overrides):
        """Run the tiny parameters; return the stages that were executed."""
        self.stages.clear()
        pipeline.run_stages("tiny", {name.replace("__", "."): value for name, value in overrides.items()})
        return list(self.stages)


@pytest.fixture
def stand(root, monkeypatch):
    return Stand(monkeypatch)


def manifest(root):
    return read_json(root / "outputs" / "tiny" / "manifest.json")


# ---- what is redone, and what is not ---------------------------------------------------------------------------------


def test_a_second_run_executes_nothing_and_leaves_the_manifest_as_it_is(root, stand):
    assert stand.run() == ALL
    path = root / "outputs" / "tiny" / "manifest.json"
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert stand.run() == []
    assert before == (path.read_bytes(), path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"student__alpha": 0.3}, ["04_student", "05_evaluation", "06_explanation", "07_ablation"]),
        ({"student__start": "baseline"}, ALL[2:]),
        ({"student__epochs": 1}, ["04_student", "05_evaluation", "06_explanation", "07_ablation"]),
        (
            {"student__rows": ["baseline", "cpsd"]},
            ["03_teachers", "04_student", "05_evaluation", "06_explanation", "07_ablation"],
        ),
        ({"seeds": 2}, ["03_teachers", "04_student", "05_evaluation", "06_explanation", "07_ablation"]),
        ({"teachers__lr": 0.01}, ["03_teachers", "04_student", "05_evaluation", "06_explanation", "07_ablation"]),
        ({"partition__k": 3}, ALL[1:]),
        ({"evaluation__threshold": 0.4}, ["05_evaluation", "06_explanation", "07_ablation"]),
        ({"model__prior": 0.3}, ALL[2:]),
        ({"protocol": "paper"}, ALL[2:]),
        ({"data__images": 500}, ALL),
        ({"seed": 1}, ALL),
    ],
)
def test_a_changed_parameter_redoes_the_stages_that_depend_on_it_and_no_others(stand, change, redone):
    stand.run()
    assert stand.run(**change) == redone
    assert stand.run(**change) == []  # and after that everything is fresh again


def test_another_version_of_the_training_code_trains_again_and_keeps_the_cut(stand, monkeypatch, capsys):
    stand.run()
    monkeypatch.setitem(VERSIONS, "training", 99)
    assert stand.run() == ALL[2:]
    assert "03_teachers ... again: its code changed" in capsys.readouterr().out
    assert stand.run() == []
    monkeypatch.setattr(pipeline, "SCORES_VERSION", 99)
    assert stand.run() == ALL[4:]
    monkeypatch.setattr(pipeline, "code_of", lambda *_: "of another cut")
    assert stand.run() == ALL and stand.run() == []


@pytest.mark.parametrize("stage", ALL)
@pytest.mark.parametrize("harm", ["deleted", "altered"])
def test_a_stage_whose_output_was_deleted_or_altered_is_redone_alone(root, stand, stage, harm):
    stand.run()
    path = root / "outputs" / "tiny" / sorted(manifest(root)["stages"][stage]["outputs"])[-1]
    before = sha256(path)
    if harm == "deleted":
        path.unlink()
    else:
        path.write_text("altered")
    assert stand.run() == [stage]
    assert sha256(path) == before


def test_other_bytes_in_the_teachers_file_of_weights_redo_the_teachers(root, stand, monkeypatch):
    (root / "weights").write_text("some")
    teacher = {"teacher_model": {"name": "test_resnet", "weights": str(root / "weights")}, "student__rows": ["sd"]}
    monkeypatch.setattr(pipeline, "check_run", lambda _: None)  # they are no weights
    assert stand.run(**teacher) == ALL and stand.run(**teacher) == []
    (root / "weights").write_text("others")
    assert stand.run(**teacher)[0] == "03_teachers"


def test_every_stage_leaves_at_least_one_file_in_the_manifest(root, stand):
    stand.run()
    for stage, entry in manifest(root)["stages"].items():
        assert set(entry["outputs"]) == set(files_of(stage))
        assert all(sha256(root / "outputs" / "tiny" / name) == known for name, known in entry["outputs"].items())
        assert {"seconds", "finished", "seed", "versions", "hardware", "commit", "fingerprint"} <= set(entry)


def test_each_stage_is_announced_with_its_number_and_why_it_is_done_again(root, stand, capsys):
    stand.run()
    assert "[3/7] 03_teachers ... 9 models, about 5 min\n" in capsys.readouterr().out
    stand.run(student__alpha=0.3)
    said = capsys.readouterr().out
    assert "[4/7] 04_student ... again: its parameters changed\n" in said and "[3/7]" not in said
    edit_notebook(root / "notebooks" / "06_explanation.ipynb", "code")
    stand.run(student__alpha=0.3)
    assert "[6/7] 06_explanation ... again: its notebook changed" in capsys.readouterr().out
    next((root / "outputs" / "tiny" / "evaluation").glob("metrics.json")).write_text("altered")
    stand.run(student__alpha=0.3)
    assert "[5/7] 05_evaluation ... again: what it left is not there unchanged" in capsys.readouterr().out


def test_the_project_is_named_where_it_is_not_the_librarys_own_and_its_own_comes_before_the_working_folder(
    root, stand, monkeypatch, capsys
):
    stand.run()
    assert capsys.readouterr().out.startswith(f"project: {root}\n")
    monkeypatch.delenv("CPSD_ROOT")
    monkeypatch.chdir(root)  # it has params/ and notebooks/ too
    assert pipeline.repo_root() == REPO
    stand.run()
    assert "project:" not in capsys.readouterr().out


def test_a_notebook_of_ones_own_that_is_broken_is_not_to_be_deleted(root, stand):
    path = root / "notebooks" / "03_teachers.ipynb"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"03_teachers\.ipynb is not valid JSON") as caught:
        stand.run()
    assert "delete" not in str(caught.value) and path.read_text() == "{"


def edit_notebook(path, kind):
    notebook = read_json(path)
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == kind)
    cell["source"] = [*cell["source"], "\n# edited"]
    path.write_text(json.dumps(notebook))


def test_an_edited_text_cell_makes_no_stage_stale_and_an_edited_code_cell_makes_its_own(root, stand):
    stand.run()
    edit_notebook(root / "notebooks" / "04_student.ipynb", "markdown")
    assert stand.run() == []
    edit_notebook(root / "notebooks" / "04_student.ipynb", "code")
    assert stand.run()[0] == "04_student"


def test_a_parameter_file_edited_while_the_run_goes_on_does_not_mix_into_it(root, stand):
    seen, file = [], root / "params" / "tiny.yaml"
    stand.before["01_data"] = lambda _: file.write_text(file.read_text().replace("k: 4", "k: 3"))
    stand.before["02_partition"] = lambda parameters: seen.append(load_params(parameters["params"]).partition.k)
    stand.run(student__epochs=1)
    assert seen == [4]
    assert load_params(root / "outputs" / "tiny" / "params.yaml") == load_params(
        "tiny", {"partition.k": 4, "student.epochs": 1}
    )


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["student.epoch=5", "partition.k=0", "name=../elsewhere", "seeds=many", "__class__=1"])
def test_wrong_parameters_stop_before_anything_is_written(root, stand, capsys, word):
    assert main(["run", "params/tiny.yaml", word]) == 2
    assert stand.stages == [] and not (root / "outputs").exists()
    assert "nothing was started" in capsys.readouterr().err


def test_a_run_refused_after_a_look_at_its_data_leaves_nothing_and_an_old_one_as_it_was(root, stand, capsys):
    assert main(["run", "params/tiny.yaml", "partition.k=21"]) == 2
    assert stand.stages == [] and not (root / "outputs").exists()
    stand.run()
    folder = root / "outputs" / "tiny"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["run", "params/tiny.yaml", "partition.k=21"]) == 2
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_of_a_version_before_the_store_is_refused_in_words_and_left_as_it_was(root, stand, capsys):
    stand.run()
    path = root / "outputs" / "tiny" / "manifest.json"
    old = read_json(path)
    for entry in old["stages"].values():
        del entry["keys"]
    path.write_text(json.dumps(old))
    stand.stages.clear()
    assert main(["run", "params/tiny.yaml"]) == 2 and stand.stages == [] and read_json(path) == old
    said = capsys.readouterr().err
    assert str(path.parent) in said and "older version" in said and "name=" in said


@pytest.mark.parametrize("shape", ["[]", "{}", "null", "5", '{"stages": [1]}', '{"stages": {"01_data": 1}}'])
def test_a_manifest_of_another_shape_is_named(tmp_path, shape):
    (tmp_path / "manifest.json").write_text(shape)
    with pytest.raises(ParameterError, match=r"manifest\.json is damaged, or .* remove that folder"):
        pipeline.read_manifest(tmp_path)


def test_a_model_gone_from_the_store_makes_its_stage_stale_and_no_other(root, stand):
    def makes(_):
        weights = root / "weights"
        weights.write_text("trained")
        run = open_run("tiny")
        run.note("seed0/teachers/co", [run.store.commit("model", {"of": "a teacher"}, {"model": weights}, {})])

    stand.before["03_teachers"] = makes
    stand.run()
    assert stand.run() == []
    (key,) = manifest(root)["stages"]["03_teachers"]["keys"]["seed0/teachers/co"]
    shutil.rmtree(root / "outputs" / ".store" / "model" / key)
    assert stand.run() == ["03_teachers"] and stand.run() == []


def error_of_a_notebook():
    return PapermillExecutionError(3, 4, "cut_labels(run)", "ParameterError", "partition.k is 50", "traceback")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (error_of_a_notebook(), "03_teachers stopped: ParameterError: partition.k is 50"),
        (DeadKernelError("Kernel died"), "memory are free without it, and dmesg says whether"),
    ],
)
def test_a_failed_stage_is_named_with_its_error_and_notebook_and_has_no_entry(root, stand, error, words):
    def fails(_):
        raise error

    stand.before["03_teachers"] = fails
    with pytest.raises(Stopped) as caught:
        stand.run()
    assert words in str(caught.value) and str(root / "outputs" / "tiny" / "03_teachers.ipynb") in str(caught.value)
    assert list(manifest(root)["stages"]) == ALL[:2]
    del stand.before["03_teachers"]
    assert stand.run() == ALL[2:]


def test_what_a_stage_left_by_other_parameters_is_gone_before_it_runs_again(root, stand):
    stand.run()
    old, seen = root / "outputs" / "tiny" / "figures" / "05_of_other_parameters.png", []
    old.write_text("old")
    stand.before["05_evaluation"] = lambda _: seen.append(old.exists())
    stand.run(student__alpha=0.2)
    assert seen == [False]
    assert not any(old.name in name for entry in manifest(root)["stages"].values() for name in entry["outputs"])


def test_a_kernel_that_dies_for_want_of_this_library_is_told_so_with_its_python(root, stand, monkeypatch):
    def dies(_):
        raise DeadKernelError("Kernel died")

    other = SimpleNamespace(get_kernel_spec=lambda name: SimpleNamespace(argv=["/bin/false"]))
    monkeypatch.setattr(pipeline, "KernelSpecManager", lambda: other)
    stand.before["01_data"] = dies
    with pytest.raises(Stopped, match="the notebooks' python, /bin/false, cannot import cpsd_lib") as caught:
        stand.run()
    assert "memory" not in str(caught.value)


def test_a_stage_that_is_redone_has_no_entry_until_it_is_done(root, stand):
    stand.run()
    seen = []
    stand.before["04_student"] = lambda _: seen.append(list(manifest(root)["stages"]))
    stand.run(student__alpha=0.2)
    assert seen == [["01_data", "02_partition", "03_teachers", "05_evaluation", "06_explanation", "07_ablation"]]


def test_a_failure_leaves_the_environment_and_the_lock_as_they_were(root, stand):
    before = dict(os.environ)
    stand.before["01_data"] = lambda _: 1 / 0
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            stand.run()
        assert dict(os.environ) == before
    assert not (root / "outputs" / "tiny" / ".runner.json").exists()


def test_a_second_run_on_one_folder_is_told_who_holds_it(root, stand, capsys):
    def meanwhile(_):
        with pytest.raises(Stopped) as caught:
            pipeline.run_stages("tiny")
        said.append(str(caught.value))

    said, stand.before["02_partition"] = [], meanwhile
    assert stand.run() == ALL
    assert f"held by process {os.getpid()}" in said[0] and str(root / "outputs" / "tiny") in said[0]
    with FileLock(root / "outputs" / "tiny" / ".runner.lock"):  # and the command line answers with exit status 1
        assert main(["run", "params/tiny.yaml"]) == 1
    assert "is held by process" in capsys.readouterr().err


def test_two_runs_of_other_names_do_not_disturb_each_other(root, stand):
    stand.before["02_partition"] = lambda _: stand.before.clear() or pipeline.run_stages("tiny", {"name": "other"})
    stand.run()
    assert list(read_json(root / "outputs" / "other" / "manifest.json")["stages"]) == ALL
    assert list(manifest(root)["stages"]) == ALL


# ---- real kernels, notebooks of a few lines --------------------------------------------------------------------------

QUICK = """
import json, os, time
from pathlib import Path
folder = Path(params).parent
(folder / "evaluation").mkdir(exist_ok=True)
if {name!r} == "02_partition":
    (folder / "kernel.pid.new").write_text(str(os.getpid()))
    os.replace(folder / "kernel.pid.new", folder / "kernel.pid")
    if (folder.parent / "die").exists():
        os.kill(os.getpid(), 9)
    if (folder.parent / "hang").exists():
        time.sleep(600)
records = [{{"split": "test", "row": "baseline", "seed": 0, "mAP": 50.0, "CF1": 1.0, "OF1": 1.0, "seconds": 1.0}}]
if {name!r} == "01_data":
    described = {{"key": "k", "class_names": ["a"], "positives": {{"train": [1]}}, "images": {{"train": 1}}}}
    (folder / "data.json").write_text(json.dumps(described | {{"incomplete": "", "notes": [], "skipped": []}}))
if {name!r} == "05_evaluation":
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(records))
    (folder / "evaluation" / "per_class.csv").write_text("row,seed,split,class,ap\\nbaseline,0,test,a,50\\n")
"""


@pytest.fixture
def quick(root):
    """A project whose notebooks take no time; the second hangs or dies while a file of that name is in outputs/."""
    for name in STAGES:
        cells = [
            nbformat.v4.new_code_cell('params = "tiny"\noverrides = {}', metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(QUICK.format(name=name)),
        ]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
    (root / "outputs").mkdir()
    return root


def start(outputs, *words):
    """Start `cpsd run params/tiny.yaml words...` in a process of its own."""
    environment = os.environ | {"CPSD_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cpsd_lib", "run", "params/tiny.yaml", *words]
    log = open(outputs / "log.txt", "a+")  # noqa: SIM115
    with log:
        return subprocess.Popen(command, cwd=REPO, env=environment, stdout=log, stderr=log)


def wait_for(condition, process, seconds=LONG):
    """Wait until `condition` holds; False when the process ended before."""
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return False


def gone(pid, seconds=LONG):
    deadline = time.monotonic() + seconds
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
    return True


def test_ctrl_c_leaves_no_kernel_alive_and_the_same_command_goes_on(quick):
    (quick / "outputs" / "hang").touch()
    process = start(quick / "outputs")
    assert wait_for((quick / "outputs" / "tiny" / "kernel.pid").exists, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(LONG) == 130
    log = (quick / "outputs" / "log.txt").read_text()
    assert "the same command goes on" in log and "Traceback" not in log
    assert gone(int((quick / "outputs" / "tiny" / "kernel.pid").read_text()))
    assert list(manifest(quick)["stages"]) == ["01_data"]
    (quick / "outputs" / "hang").unlink()
    assert start(quick / "outputs").wait(LONG) == 0
    log = (quick / "outputs" / "log.txt").read_text()
    assert list(manifest(quick)["stages"]) == ALL
    assert "01_data: done" in log and "report:" in log and "50.0" in log


def test_a_ctrl_c_that_was_swallowed_comes_again(monkeypatch):
    monkeypatch.setattr(pipeline, "INTERRUPT_SECONDS", 2)
    with pytest.raises(KeyboardInterrupt), pipeline._ctrl_c_gets_through():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        time.sleep(20)


def test_a_kernel_that_dies_stops_the_run_with_words_and_exit_status_1(quick):
    (quick / "outputs" / "die").touch()
    assert start(quick / "outputs").wait(LONG) == 1
    log = (quick / "outputs" / "log.txt").read_text()
    assert "02_partition stopped: its process died" in log and "Traceback" not in log
    assert str(quick / "outputs" / "tiny" / "02_partition.ipynb") in log
    assert list(manifest(quick)["stages"]) == ["01_data"]


# ---- the whole tiny run ----------------------------------------------------------------------------------------------

# Every step is a checkpoint, and there are enough of them to be hit.
OVERRIDES = ("train.checkpoint_seconds=0", "train.epochs=3")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The tiny run, unbroken (about 100 s by one thread)."""
    outputs = tmp_path_factory.mktemp("reference")
    assert start(outputs, *OVERRIDES).wait(LONG) == 0, (outputs / "log.txt").read_text()[-3000:]
    return outputs


def result(folder):
    """Return what a run ends with: the hash of each partition, weights and targets file, and the scores without seconds."""
    paths = [
        *folder.parent.glob(".store/model/*/model.safetensors"),
        *folder.parent.glob(".store/soft_targets/*/logits.npy"),
        *folder.glob("partition/*.json"),
        *folder.glob("evaluation/scores/*.npy"),
    ]
    scores = [{k: v for k, v in r.items() if k != "seconds"} for r in read_json(folder / "evaluation" / "metrics.json")]
    return {path.relative_to(folder.parent).as_posix(): sha256(path) for path in paths}, scores


class Moments:
    """The moments at which the run is killed, relative to its progress: each is (name, condition, seconds to wait then)."""

    def __init__(self, folder, rng):
        self.folder, self.rng, self.seen, self.count = folder, rng, {}, 0

    def done(self, stage):
        path = self.folder / "manifest.json"
        return lambda: path.exists() and stage in path.read_text()

    def checkpoints(self, after, number):
        """True once `number` checkpoints were written since the stage `after` was done."""
        self.seen, self.count, pattern, stage_done = {}, 0, ".store/.work/*/last.ckpt", self.done(after)

        def enough():
            if not stage_done():
                return False
            for path in self.folder.parent.glob(pattern):
                try:
                    inode = path.stat().st_ino, path.stat().st_mtime_ns
                except FileNotFoundError:
                    continue  # a training has just finished
                self.count += self.seen.get(path) != inode
                self.seen[path] = inode
            return self.count > number

        return enough

    def plan(self):
        rng, started = self.rng, self.folder / "01_data.ipynb"
        yield "data", started.exists, rng.uniform(0, 3)
        yield "partition", self.done("01_data"), rng.uniform(1, 5)
        for _ in range(4):
            yield "teachers", self.checkpoints("02_partition", rng.randint(1, 4)), rng.uniform(0, 0.2)
        yield "soft targets", self.done("03_teachers"), rng.uniform(2, 5)
        for _ in range(4):
            yield "students", self.checkpoints("03_teachers", rng.randint(3, 18)), rng.uniform(0, 0.1)
        yield "evaluation", self.done("04_student"), rng.uniform(1, 5)
        yield "table", self.done("05_evaluation"), rng.uniform(0, 3)


@faults.only_with_all
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(reference, tmp_path):
    """The runner alone is killed, 13 times."""
    kills, orphans, folder = [], [], tmp_path / "tiny"
    for name, condition, pause in Moments(folder, random.Random(0)).plan():
        process = start(tmp_path, *OVERRIDES)
        if not wait_for(condition, process):
            assert process.returncode == 0, (tmp_path / "log.txt").read_text()[-3000:]
            break
        time.sleep(pause)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()  # the runner alone: its kernel is left an orphan, while the next run already starts
        if process.wait() == -signal.SIGKILL:
            kills.append(name)
        orphans += children
    assert len(kills) >= 10 and {"teachers", "students"} <= set(kills), kills
    assert start(tmp_path, *OVERRIDES).wait(LONG) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert result(folder) == result(reference / "tiny")
    assert orphans and not any(orphan.is_running() for orphan in orphans)
    assert [path.name for path in (tmp_path / ".store" / ".work").iterdir()] == ["locks"]  # nothing half made is left


def test_a_notebooks_own_error_and_path_end_the_run_with_exit_status_1(tmp_path):
    photos = tmp_path / "photos"
    lines = [
        f"{number}.jpg,{'test' if number % 4 == 0 else 'train'},{'cat;dog' if number % 2 else 'dog'}"
        for number in range(24)
    ]
    for number in range(24):
        picture(photos / "images" / f"{number}.jpg")
    (photos / "annotations.csv").write_text("\n".join(["file_name,split,labels", *lines]))
    (photos / "images" / "7.jpg").write_bytes(b"\xff\xd8 no photo")  # what is checked before a run opens no photos
    overrides = ("data.kind=csv", f"data.root={photos}", "partition.k=1", "name=broken")
    assert start(tmp_path, *OVERRIDES, *overrides).wait(LONG) == 1
    log = (tmp_path / "log.txt").read_text()
    assert "01_data stopped: ValueError: 1 of 24 image files cannot be used" in log and "7.jpg" in log
    assert str(tmp_path / "broken" / "01_data.ipynb") in log
    assert "Traceback" not in log and "nothing was started" not in log
    manifest = tmp_path / "broken" / "manifest.json"
    assert not manifest.exists() or not read_json(manifest)["stages"]
