import subprocess
import sys

import pytest

from cpsd_lib import __main__ as command
from cpsd_lib.param_files import repo_root


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    folder = tmp_path / "outputs"
    monkeypatch.setenv("CPSD_OUTPUTS", str(folder))
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "student.epoch=5"], "did you mean student.epochs?"),
        (["tiny", "student.epochs=0"], "student.epochs: Input should be greater than or equal to 1; got 0"),
        (["tiny", "student.epochs=many"], "student.epochs: Input should be a valid integer; got 'many'"),
        (["tiny", "student.epochs"], "write overrides as key=value"),
        (["tiny", "name=../elsewhere"], "name: String should match pattern"),
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
    assert command.main(["run", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "nothing was started" in printed.err
    assert "Traceback" not in printed.err and printed.out == ""
    assert not outputs.exists()


def test_both_ways_to_start_it_answer_the_same_without_a_traceback(outputs, tmp_path):
    words = ["run", "tiny", "sed=1", "train.lr=.nan"]
    program = "import sys; from cpsd_lib.__main__ import main; sys.exit(main())"
    found = [
        subprocess.run([*start, *words], cwd=tmp_path, capture_output=True, text=True)
        for start in ([sys.executable, "-m", "cpsd_lib"], [sys.executable, "-c", program])
    ]
    assert [done.returncode for done in found] == [2, 2]
    assert found[0].stderr == found[1].stderr
    assert "sed: unknown parameter; did you mean seed?" in found[0].stderr
    assert "train.lr: Input should be a finite number" in found[0].stderr
    assert "Traceback" not in found[0].stderr and not outputs.exists()


def test_a_wrong_parameter_is_answered_before_torch_is_loaded(outputs):
    program = (
        "import sys; from cpsd_lib.__main__ import main; status = main(['run', 'tiny', 'sed=1']); "
        "print(status, 'torch' in sys.modules, 'papermill' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root(), capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False", "False"]


@pytest.mark.parametrize("words", [[], ["ran"], ["run"], ["run", "tiny", "--force"]])
def test_a_wrong_command_line_ends_with_status_2_and_the_usage(outputs, capsys, words):
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == 2
    assert "usage: cpsd" in capsys.readouterr().err


def test_ctrl_c_ends_with_status_130_and_says_how_to_go_on(outputs, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", interrupted)
    assert command.main(["run", "tiny"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_overrides_reach_the_run_as_values(monkeypatch):
    seen = []
    monkeypatch.setattr(command, "_run", lambda *arguments: seen.append(arguments) or 0)
    assert command.main(["run", "params/tiny.yaml", "train.lr=1e-4", "student.rows=[sd]"]) == 0
    assert seen == [("params/tiny.yaml", {"train.lr": 1e-4, "student.rows": ["sd"]})]


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
    assert command.main(["grid", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "nothing was started" in printed.err and "Traceback" not in printed.err
    assert not list(outputs.glob("*.*/manifest.json"))
