import os
import re
import subprocess
import sys
from unittest.mock import Mock

import pytest
from PIL import Image

from cpsd_lib import cli, workbench
from cpsd_lib.support import write_json
from cpsd_lib.workbench import preflight
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.rows import ROWS
from cpsd_lib.workbench.run import open_run, save_params
from cpsd_lib.workbench.yaml_files import repo_root


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    folder = tmp_path / "outputs"
    monkeypatch.setenv("CPSD_OUTPUTS", str(folder))
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "student.epoch=5"], "did you mean student.epochs?"),
        (["tiny", "student.epochs=0"], "student.epochs: must be at least 1; got 0"),
        (["tiny", "student.epochs=many"], "student.epochs: must be a whole number; got 'many'"),
        (["tiny", "student.epochs"], "write overrides as key=value"),
        (["tiny", "name=../elsewhere"], "name: must match pattern"),
        (["tiny", "__class__.x=1"], "is not a parameter name"),
        (["tiny", "seed=!!python/object/apply:os.getcwd []"], "not valid YAML"),
        (["tiny", "data.kind=csv", "data.root=nowhere"], "there is no folder"),
        (["tinny"], "did you mean tiny?"),
        (["tiny", "sed=1", "student.alpha=2"], "student.alpha: "),
    ],
)
def test_a_wrong_parameter_ends_with_status_2_and_its_message_before_anything_is_written(
    outputs, capsys, words, message
):
    assert cli.main(["run", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "nothing was started" in printed.err
    assert "Traceback" not in printed.err and printed.out == ""
    assert not outputs.exists()


def test_both_ways_to_start_it_answer_the_same_without_a_traceback(outputs, tmp_path):
    words = ["run", "tiny", "sed=1", "train.lr=.nan"]
    program = "import sys; from cpsd_lib.cli import main; sys.exit(main())"
    found = [
        subprocess.run([*start, *words], cwd=tmp_path, capture_output=True, text=True)
        for start in ([sys.executable, "-m", "cpsd_lib"], [sys.executable, "-c", program])
    ]
    assert [done.returncode for done in found] == [2, 2]
    assert found[0].stderr == found[1].stderr
    assert "sed: unknown parameter; did you mean seed?" in found[0].stderr
    assert "train.lr: must be a finite number" in found[0].stderr
    assert "Traceback" not in found[0].stderr and not outputs.exists()


def test_a_wrong_parameter_is_answered_before_torch_is_loaded(outputs):
    program = (
        "import sys; from cpsd_lib.cli import main; status = main(['run', 'tiny', 'sed=1']); "
        "print(status, 'torch' in sys.modules, 'papermill' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root(), capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False", "False"]


@pytest.mark.parametrize("narrow", [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}])
def test_a_terminal_that_lacks_a_letter_shows_its_number_and_ends_nothing(outputs, tmp_path, narrow):
    (tmp_path / "images").mkdir()
    lines = [f"{n} 狗.png,{'train' if n < 3 else 'test'},狗;Käse" for n in range(4)]
    (tmp_path / "annotations.csv").write_text("\n".join(["file_name,split,labels", *lines]), encoding="utf-8")
    words = ["tiny", "data={kind: csv}", f"data.root={tmp_path}", "partition.k=1"]
    command = [sys.executable, "-m", "cpsd_lib", "data", "check", *words]
    done = subprocess.run(command, capture_output=True, env=os.environ | narrow)
    text = (done.stdout + done.stderr).decode(narrow["PYTHONIOENCODING"])
    assert done.returncode == 1 and "Traceback" not in text  # no photo is there, and its name is printed
    assert "\\u72d7.png" in text and "verdict: it cannot train" in text
    done = subprocess.run([*command[:3], "run", "tiny", "name=狗"], capture_output=True, env=os.environ | narrow)
    assert done.returncode == 2 and b"\\u72d7" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", [[], ["ran"], ["run"], ["run", "tiny", "--force"]])
def test_a_wrong_command_line_ends_with_status_2_and_the_usage(outputs, capsys, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: cpsd" in capsys.readouterr().err


def test_the_message_of_what_is_missing_names_what_is_needed_alone(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run"])
    assert capsys.readouterr().err.splitlines()[-1].endswith("the following arguments are required: params")


@pytest.mark.parametrize("words", [["run"], ["cost"], ["data", "check"]])
@pytest.mark.parametrize("source", ["scenes_k", "params/grids/scenes_k.yaml"])
def test_a_grid_given_as_a_run_is_told_its_command(outputs, capsys, words, source):
    assert cli.main([*words, source]) == 2
    assert f"{source} is a grid, many runs in one file; run it by: cpsd grid {source}" in capsys.readouterr().err
    assert not outputs.exists()


@pytest.mark.parametrize("source", ["demo", "params/tiny.yaml", "coco_resnet101"])
def test_a_run_given_as_a_grid_is_told_its_command(outputs, capsys, source):
    assert cli.main(["grid", source]) == 2
    assert (
        f"{source} is one run, not a grid (it has no `vary:`); run it by: cpsd run {source}" in capsys.readouterr().err
    )


def test_a_grid_that_lacks_what_to_vary_is_not_called_a_run(outputs, capsys, tmp_path):
    (tmp_path / "half.yaml").write_text("name: half\nbase: tiny\n")
    assert cli.main(["grid", str(tmp_path / "half.yaml")]) == 2
    assert "vary: is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "model.name=resnet19"], "model: timm has no model 'resnet19'"),
        (["tiny", "model.options={nonsense: 1}"], "model: test_resnet cannot be built"),
        (["csv_mobilenetv2", "data.root=/no/where"], "data.root: there is no folder /no/where"),
        (["csv_mobilenetv2", "data.root=notebooks"], "data: there is no file"),
    ],
)
def test_what_a_card_cannot_be_made_of_ends_with_status_2_and_no_half_card(capsys, words, message):
    assert cli.main(["cost", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Error" not in printed.err and printed.out == ""


def test_ctrl_c_ends_with_status_130_and_says_how_to_go_on(outputs, capsys, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["run", "tiny"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_overrides_reach_the_run_as_values(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_run", lambda **options: seen.append(options))
    assert cli.main(["run", "params/tiny.yaml", "train.lr=1e-4", "student.rows=[sd]"]) == 0
    assert seen == [
        {"params": "params/tiny.yaml", "overrides": {"train.lr": 1e-4, "student.rows": ["sd"]}, "dry_run": False}
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny_gird"], "no "),
        (["tiny", "vary.partition.k=[2, 50]"], "partition.k is 50, but the data set has only 20 classes"),
        (["tiny", "engin=ray"], "engin: unknown parameter"),
        (["tiny", "vary.student.match=[mse, sme]"], "student.match: "),
    ],
)
def test_a_wrong_grid_ends_with_status_2_before_any_job_starts(outputs, capsys, words, message):
    assert cli.main(["grid", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "nothing was started" in printed.err and "Traceback" not in printed.err
    assert not list(outputs.glob("*.*/manifest.json"))


@pytest.mark.parametrize("images, fine", [(2, False), (3, True)])
def test_two_photos_of_which_validation_holds_out_one_are_too_few_for_the_check_and_the_run_alike(
    tmp_path, monkeypatch, capsys, images, fine
):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    names = [*[f"train{i}.png" for i in range(images)], "test.png"]
    for number, name in enumerate(names):
        Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(root / "images" / name)
    lines = [f"{name},{name[:-4].rstrip('012')},cat;{'bird' if name == 'test.png' else 'dog'}" for name in names]
    (root / "annotations.csv").write_text("\n".join(["file_name,split,labels", *lines]))
    words = ["tiny", "data={kind: csv}", f"data.root={root}", "partition.k=2", "name=few"]
    assert cli.main(["data", "check", *words]) == 0
    assert cli.main(["data", "check", *words, "train.select=val"]) == (0 if fine else 1)
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert ("holds out 1 of 2 training images" in verdict) is not fine
    if not fine:
        assert cli.main(["run", *words, "train.select=val"]) == 2
        assert "holds out 1 of 2 training images" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["run", "tiny"], ["grid", "params/grids/tiny.yaml"]])
def test_outputs_that_cannot_be_written_are_refused_before_anything_is_computed(tmp_path, capsys, monkeypatch, words):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "file" / "outputs"))
    for name in ("run_stages", "run_grid"):
        monkeypatch.setattr(cli.workbench, name, None)
    assert cli.main(words) == 2
    assert (
        f"{tmp_path / 'file'} cannot be written (Not a directory): name another in CPSD_OUTPUTS"
        in capsys.readouterr().err
    )


# ---- what there is, and what would be done ---------------------------------------------------------------------------


def test_every_parameter_is_listed_with_its_default_and_its_meaning(capsys):
    assert cli.main(["params"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if line.startswith("  ")}
    dumped = load_params("tiny").model_dump()
    sections = {name for name, value in dumped.items() if isinstance(value, dict)} | {"teacher_model", "wide_model"}
    names = {f"{name}.{inner}" for name in sections for inner in dumped[name] or ()} | (dumped.keys() - sections)
    assert words.keys() == names
    assert [name for name, found in words.items() if len(found) < 2] == []
    assert words["student.alpha"] == ["0.5", "CPSD: weight of the co branch; 1 - alpha is the dis branch's"]
    assert words["data.kind"][0] == "(needed)" and words["teachers.batch_size"] == ["32", "images"]
    assert words["student.match"][1].startswith("mse, kl; ") and words["student.rows"][0] == "[baseline,"
    assert cli.main(["params", "evaluation.t"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]) == 1


def test_runs_files_grids_and_rows_are_listed_a_line_each(outputs, capsys):
    scores = [
        {"row": "cpsd", "split": "test", "seed": 0, "mAP": 51.26},
        {"row": "sd", "split": "test", "seed": 0, "mAP": 1},
    ]
    write_json(outputs / "mine" / "manifest.json", {"stages": {"01_data": {"keys": {}}, "02_partition": {"keys": {}}}})
    write_json(outputs / "mine" / "evaluation" / "metrics.json", scores)
    write_json(outputs / "broken" / "manifest.json", {"stages": {"01_data": {"keys": {}}}})
    write_json(outputs / "broken" / "evaluation" / "metrics.json", {"cpsd": 1})
    write_json(outputs / "odd" / "manifest.json", [])
    write_json(outputs / "retrained" / "manifest.json", {"stages": {"05_evaluation": {"keys": {}}}})
    write_json(outputs / "retrained" / "evaluation" / "metrics.json", [one | {"model": "x"} for one in scores])
    described = {"key": "k", "class_names": ["a", "b"], "notes": [], "skipped": [], "incomplete": "INCOMPLETE"}
    write_json(outputs / "mine" / "data.json", described | {"positives": {}, "images": {}})
    for name in ("mine", "broken", "retrained"):
        save_params(open_run("tiny", {"name": name}))
    assert cli.main(["list"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert lines[0][1].startswith("1 stage; ") and "metrics.json is not as this version writes it" in lines[0][1]
    assert (
        lines[1] == ["mine", "2 stages; + CPSD 51.3 mAP (seed 0) (INCOMPLETE)"]
        and "manifest.json is damaged" in lines[2][1]
    )
    assert lines[3][1].startswith("1 stage; ") and "has no seed0/students/cpsd for these parameters" in lines[3][1]
    files = [
        path.stem for folder in ("params", "params/grids") for path in sorted((repo_root() / folder).glob("*.yaml"))
    ]
    assert [name for name, _ in lines] == ["broken", "mine", "odd", "retrained", *files, *ROWS]


def test_a_dry_run_says_what_would_be_done_why_and_how_long_and_leaves_nothing(outputs, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "measured_speed", lambda *_, **__: 1e9)
    assert cli.main(["run", "tiny", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/7] 01_data         to do" and not outputs.exists()
    assert re.fullmatch(r"\[3/7] 03_teachers     to do; 9 models, about \d+ min", lines[2])
    done = {"finished": "yesterday", "fingerprint": {"params": "of others"}, "outputs": {}, "keys": {}}
    write_json(outputs / "tiny" / "manifest.json", {"stages": {"01_data": done}})
    assert cli.main(["run", "tiny", "--dry-run"]) == 0
    assert "[1/7] 01_data         again, its parameters" in capsys.readouterr().out
    assert cli.main(["run", "tiny", "model.name=resnet19", "--dry-run"]) == 2
    assert "timm has no model 'resnet19'" in capsys.readouterr().err


def test_the_cost_is_in_the_time_of_this_machine_too(capsys, monkeypatch):
    monkeypatch.setattr(workbench, "measured_speed", lambda *_: 1e9, raising=False)
    assert cli.main(["cost", "tiny"]) == 0
    assert re.search(r"On this machine, .* at 1 GFLOP/s, it is about \d+ min", capsys.readouterr().out)
    monkeypatch.setattr(
        workbench, "measured_speed", Mock(side_effect=RuntimeError("out of memory. Tried")), raising=False
    )
    assert cli.main(["cost", "tiny"]) == 0
    assert "does not run here (out of memory)." in capsys.readouterr().out


def test_a_check_refuses_what_a_run_would_and_says_what_is_not_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    rows = [
        ("0", "train", "cat;dog"),
        ("1", "train", "cat"),
        ("2", "val", "dog"),
        ("3", "test", "cat;dog"),
        ("4", "test", ""),
    ]
    for number, (name, *_) in enumerate(rows):
        Image.new("RGB", (16, 16), (50 * number, 0, 0)).save(root / "images" / f"{name}.png")
    lines = [f"{name}.png,{split},{labels}" for name, split, labels in [*rows, ("gone", "unlabelled", "")]]
    (root / "annotations.csv").write_text("\n".join(["file_name,split,labels", *lines]))
    words = ["data", "check", "tiny", "data={kind: csv}", f"data.root={root}", "data.bad_files=skip"]
    assert cli.main([*words, "partition.k=3"]) == 1
    assert "verdict: it cannot train: partition.k is 3, but the data set has only 2 classes" in capsys.readouterr().out
    assert cli.main([*words, "partition.k=2"]) == 0
    printed = capsys.readouterr().out
    assert "note: split 'val' is not used by teachers and student: train.select=val does" in printed
    assert "unlabelled: 1 image, for students to learn on from their teachers; 1 image not on disk" in printed
    assert cli.main([*words, "partition.k=2", "train.select=val"]) == 0
    assert "is not used" not in capsys.readouterr().out
