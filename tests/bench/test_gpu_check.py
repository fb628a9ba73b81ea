"""`cpsd check-gpu`: its checks on the CPU, on a GPU where there is one, and each of them seen failing."""

import functools

import pytest
import torch

from bench import gpu_check
from bench.gpu_check import main
from cpsd_lib import cli
from cpsd_lib.support import read_json
from cpsd_lib.training import learner, loop

CPU = torch.device("cpu")
# Dynamo's part alone: no compiler is needed, and ten compilations take ten seconds.
EAGER = functools.partial(torch.compile, backend="eager")
NAMES = [check.__name__ for check in gpu_check.CHECKS]


@pytest.mark.parametrize("check", gpu_check.CHECKS, ids=NAMES)
def test_each_promise_is_kept_on_a_cpu(check, monkeypatch):
    monkeypatch.setattr(torch, "compile", EAGER)
    assert check(CPU)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("check", gpu_check.CHECKS, ids=NAMES)
@pytest.mark.filterwarnings("ignore")  # torch calls the watch for synchronisation a prototype
def test_each_promise_is_kept_on_a_gpu(check):
    assert check(torch.device("cuda"))


def test_a_resumed_training_that_differs_is_found(monkeypatch):
    original = learner.TrainState.load

    def forgets(state, saved):
        original(state, saved)
        list(state.ema.state.values())[-1].add_(1)

    monkeypatch.setattr(learner.TrainState, "load", forgets)
    with pytest.raises(AssertionError, match="largest difference"):
        gpu_check.a_training_resumed_is_the_training_unbroken(CPU)


def test_an_expert_that_depends_on_its_neighbours_is_found(monkeypatch):
    original, before = loop._step, []

    def leaks(state, batch, *rest):
        before.append(state)
        with torch.no_grad():
            next(state.learner.model.parameters()).add_(1e-3 * (before[-2:] != [state, state]))
        return original(state, batch, *rest)

    monkeypatch.setattr(loop, "_step", leaks)
    with pytest.raises(AssertionError, match="largest difference"):
        gpu_check.an_expert_beside_others_is_the_expert_alone(CPU)


def test_a_step_that_is_not_watched_is_found(monkeypatch):
    """On a CPU nothing can wait; the watch itself must be on in every step but the first and the last."""
    modes = []
    monkeypatch.setattr(gpu_check, "_watch", lambda device: modes.append)
    gpu_check.a_step_waits_for_nothing(CPU)
    assert modes == ["default"] * 4 + ["error"] * 2 + ["default"] * 2


def test_the_limit_that_leaves_models_eager_is_found(monkeypatch):
    monkeypatch.setattr(torch, "compile", EAGER)
    monkeypatch.setattr(learner, "COMPILED", 8)
    with torch._dynamo.config.patch(recompile_limit=8), pytest.raises(AssertionError, match="graphs for 10 models"):
        torch._dynamo.reset()
        gpu_check.every_model_compiles_for_itself(CPU)


def test_a_model_that_does_not_compile_trains_eagerly_and_a_line_says_so(monkeypatch, capsys):
    def fails(graph, inputs):
        raise RuntimeError("no compiler here")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=fails))
    model = torch.nn.Linear(2, 1)
    compiled = learner.Compiled("expert0", model)
    assert torch.equal(compiled(torch.ones(1, 2)), model(torch.ones(1, 2)))
    assert torch.equal(compiled(torch.ones(1, 2)), model(torch.ones(1, 2)))
    assert capsys.readouterr().out.count("expert0 does not compile and trains eagerly") == 1


def test_the_command_writes_its_json_and_a_failed_check_is_its_exit_status(tmp_path, monkeypatch, capsys):
    def broken(device):
        raise AssertionError("off by one")

    monkeypatch.setattr(gpu_check, "CHECKS", (gpu_check.folded_experts_compute_what_plain_ones_do,))
    assert main(["--device", "cpu", "--to", str(tmp_path / "a.json")]) == 0
    written = read_json(tmp_path / "a.json")
    assert written["checks"][0]["passed"] and {"versions", "hardware", "commit"} <= written.keys()
    assert [line["what"] for line in written["figures"]][1:] == [
        "teacher step",
        "student step, soft targets stored",
        "eight experts side by side",
    ]
    assert all(line["images_per_second"] > 0 for line in written["figures"][1:])
    monkeypatch.setattr(gpu_check, "CHECKS", (broken,))
    assert main(["--device", "cpu", "--to", str(tmp_path / "b.json")]) == 1
    assert "FAILED  broken: AssertionError: off by one" in capsys.readouterr().out


def test_cpsd_check_gpu_runs_the_projects_own_and_says_where_it_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "CHECKS", (gpu_check.folded_experts_compute_what_plain_ones_do,))
    assert cli.main(["check-gpu", "--device", "cpu", "--to", str(tmp_path / "a.json")]) == 0
    assert read_json(tmp_path / "a.json")["checks"][0]["passed"]
    monkeypatch.setenv("CPSD_ROOT", str(tmp_path))
    assert cli.main(["check-gpu"]) == 2
    assert f"which is not in {tmp_path / 'tests'}" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_command_says_what_to_do(capsys):
    assert main([]) == 2
    assert "use device=auto or device=cpu" in capsys.readouterr().err
