"""The one loop: side by side, interrupted, selected by EMA or validation, and stopped when the loss is not finite."""

import copy
import csv
import os
import pickle
import random
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from cpsd_lib.evaluation.metrics import mean_average_precision
from cpsd_lib.models.classifier import Output, build_model
from cpsd_lib.models.trunk import make_tail, make_trunk
from cpsd_lib.objectives import Supervised
from cpsd_lib.support import derive_seed, pick_device, pick_precision, sha256, write_json
from cpsd_lib.training import checkpoint, loop
from cpsd_lib.training.batches import Batches, predict_logits
from cpsd_lib.training.learner import Compiled, Ema, Learner, optimizer_of, start_state
from cpsd_lib.training.loop import Diverged, Validation, fit
from cpsd_lib.workbench.params import TrainParams

CLASSES = 4


class Tiny(nn.Module):
    """Convolution, batch norm, dropout and a linear layer: all that has a state or draws a random number.

    The convolution has no bias: batch norm makes its gradient rounding noise, which Adam blows up to the size of lr.
    """

    def __init__(self, classes, dropout=0.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.convolution, self.norm = nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(4, classes)

    def forward(self, images):
        features = self.norm(self.convolution(images)).relu()
        return Output(self.linear(self.dropout(features.mean((2, 3)))), None, features)


class Interrupt(Exception):
    """Stands for a kill: nothing in the loop may catch it."""


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)


@pytest.fixture(scope="module")
def targets():
    return np.random.default_rng(1).integers(0, 2, (40, CLASSES)).astype(np.int8)


def recipe(**changes):
    return TrainParams(**({"epochs": 3, "batch_size": 8, "lr": 1e-2, "checkpoint_seconds": 0} | changes))


def learner(name="whole", columns=(0, 1, 2, 3), dropout=0.0, model=None):
    model = model or Tiny(len(columns), dropout, seed=len(name))
    objective = Supervised(torch.tensor(columns))
    return Learner(name, model, objective, list(columns))


def three(dropout=0.0):
    return [learner("whole", dropout=dropout), learner("co-0", (0, 2), dropout=dropout), learner("co-1", (3, 1))]


def run(learners, folder, images, targets, *, rows=range(32), training=None, seed=5, **more):
    training = training or recipe()
    batches = Batches(
        images, targets, np.array(rows), batch_size=training.batch_size, view=training.view, seed=seed, device="cpu"
    )
    return fit(learners, batches, training, folder, **more)


def weights(learners):
    return {(x.name, key): tensor.clone() for x in learners for key, tensor in x.model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def interrupting(objective, at):
    """Return `objective` that raises Interrupt at its call number `at` (from 0)."""
    calls = iter(range(10**9))

    def wrapped(output, targets, soft):
        if next(calls) == at:
            raise Interrupt
        return objective(output, targets, soft)

    return wrapped


# ---- the same weights, whoever trains beside, whenever interrupted --------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_learners_side_by_side_get_bitwise_the_weights_they_get_one_by_one(images, targets, tmp_path, dropout):
    together, alone = three(dropout), three(dropout)
    run(together, tmp_path / "together", images, targets)
    for x in alone:
        run([x], tmp_path / x.name, images, targets)
    assert same(weights(together), weights(alone))


def test_the_order_of_the_learners_changes_nothing(images, targets, tmp_path):
    forward, backward = three(0.5), three(0.5)[::-1]
    run(forward, tmp_path / "a", images, targets)
    run(backward, tmp_path / "b", images, targets)
    assert same(weights(forward), weights(backward))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(images, targets, tmp_path):
    found = {}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        x = [learner()]
        run(x, tmp_path / name, images, targets, seed=seed)
        found[name] = weights(x)
    assert same(found["a"], found["b"]) and not same(found["a"], found["c"])


@pytest.mark.parametrize("select", ["last", "val"])
def test_a_training_interrupted_at_random_steps_ends_bitwise_like_an_unbroken_one(images, targets, tmp_path, select):
    validation = Validation(images, targets, np.arange(32, 40)) if select == "val" else None
    unbroken = three(0.5)
    entries = run(unbroken, tmp_path / "unbroken", images, targets, validation=validation)
    rng, broken, runs = random.Random(0), None, 0
    while True:
        runs, broken = runs + 1, three(0.5)
        broken[1].objective = interrupting(broken[1].objective, rng.randint(1, 3))
        try:
            found = run(broken, tmp_path / "broken", images, targets, validation=validation)
            break
        except Interrupt:
            pass
    assert runs > 4
    assert same(weights(unbroken), weights(broken))
    assert history(tmp_path / "unbroken") == history(tmp_path / "broken")
    for name, entry in entries.items():
        differing = {key for key in entry if entry[key] != found[name][key]}
        assert differing <= {"seconds"}


def test_ctrl_c_waits_for_the_end_of_a_step_and_loses_none(images, targets, tmp_path, capsys):
    unbroken, broken, again, calls = three(0.5), three(0.5), three(0.5), []
    training = recipe(checkpoint_seconds=1000)
    run(unbroken, tmp_path / "unbroken", images, targets, training=training)
    objective = broken[1].objective

    def pressing(*given):
        calls.append(1)
        if len(calls) == 7:  # in the middle of a step: the first of three has made it
            os.kill(os.getpid(), signal.SIGINT)
        return objective(*given)

    broken[1].objective, before = pressing, signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path / "broken", images, targets, training=training)
    assert signal.getsignal(signal.SIGINT) is before
    run(again, tmp_path / "broken", images, targets, training=training)
    assert "training: resumed at step 7 of 12" in capsys.readouterr().out
    assert same(weights(unbroken), weights(again))


@pytest.mark.parametrize("where", ["the next batch", "the validation"])
def test_ctrl_c_between_steps_loses_none_and_a_notebook_shows_one_sentence(
    images, targets, tmp_path, capsys, monkeypatch, where
):
    unbroken, broken, again, calls = three(0.5), three(0.5), three(0.5), []
    validation, training = Validation(images, targets, np.arange(32, 40)), recipe(checkpoint_seconds=1000)
    run(unbroken, tmp_path / "unbroken", images, targets, training=training, validation=validation)
    patched, name, at = (Batches, "_augmented", 7) if where == "the next batch" else (loop, "mean_average_precision", 5)
    original = getattr(patched, name)

    def pressing(*given):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(patched, name, pressing)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(broken, tmp_path / "broken", images, targets, training=training, validation=validation)
    (sentence,) = stopped.value._render_traceback_()
    step = {"the next batch": 6, "the validation": 8}[where]
    assert (
        sentence
        == f"Interrupted: training: stopped at step {step} of 12; run it again and it goes on from its checkpoint"
    )
    run(again, tmp_path / "broken", images, targets, training=training, validation=validation)
    assert f"training: resumed at step {step} of 12" in capsys.readouterr().out
    assert same(weights(unbroken), weights(again))
    assert history(tmp_path / "unbroken") == history(tmp_path / "broken")


def test_what_a_second_ctrl_c_left_in_the_middle_of_a_step_is_not_kept(images, targets, tmp_path):
    broken, calls = three(), []
    objective = broken[1].objective

    def pressing(*given):
        calls.append(1)
        for _ in range(2 if len(calls) == 7 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return objective(*given)

    broken[1].objective = pressing
    with pytest.raises(KeyboardInterrupt, match="stopped at step 6 of 12"):
        run(broken, tmp_path, images, targets, training=recipe(checkpoint_seconds=1000))
    assert not (tmp_path / checkpoint.CHECKPOINT).exists()


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), checkpoint.interrupt_waits() as pressed:
        os.kill(os.getpid(), signal.SIGINT)
        assert pressed
        os.kill(os.getpid(), signal.SIGINT)


def test_drop_path_draws_the_same_after_an_interruption(images, targets, tmp_path):
    def resnet():
        torch.manual_seed(0)
        return learner(model=build_model("test_resnet", CLASSES, drop_path_rate=0.5), dropout=0.5)

    unbroken, broken, again = resnet(), resnet(), resnet()
    training = recipe(epochs=1)
    run([unbroken], tmp_path / "unbroken", images, targets, training=training)
    broken.objective = interrupting(broken.objective, 2)
    with pytest.raises(Interrupt):
        run([broken], tmp_path / "broken", images, targets, training=training)
    run([again], tmp_path / "broken", images, targets, training=training)
    assert same(weights([unbroken]), weights([again]))


def test_an_interrupted_training_goes_on_from_its_last_step_and_not_from_the_start(images, targets, tmp_path):
    first, second, calls = learner(), learner(), []
    first.objective = interrupting(first.objective, 7)  # step 3 of epoch 1
    with pytest.raises(Interrupt):
        run([first], tmp_path, images, targets)
    objective = second.objective
    second.objective = lambda *given: calls.append(given) or objective(*given)
    run([second], tmp_path, images, targets)
    assert len(calls) == 12 - 7


def test_an_interruption_between_the_last_step_and_the_epochs_end_loses_nothing(images, targets, tmp_path, monkeypatch):
    unbroken, broken, again = learner(), learner(), learner()
    run([unbroken], tmp_path / "unbroken", images, targets)

    def stop(*_):
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_end_epoch", stop)
        with pytest.raises(Interrupt):
            run([broken], tmp_path / "broken", images, targets)
    run([again], tmp_path / "broken", images, targets)
    assert same(weights([unbroken]), weights([again]))
    assert history(tmp_path / "unbroken") == history(tmp_path / "broken")


def test_killed_before_the_last_checkpoint_is_written_nothing_but_the_end_is_trained_again(
    images, targets, tmp_path, monkeypatch
):
    unbroken, broken, again = three(), three(), three()
    run(unbroken, tmp_path / "unbroken", images, targets)
    write = loop.write_checkpoint

    def killed(path, content):
        if content["epoch"] == 3:
            raise Interrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_checkpoint", killed)
        with pytest.raises(Interrupt):
            run(broken, tmp_path / "broken", images, targets)
    again[1].objective = interrupting(again[1].objective, 0)  # all steps are there: none is made again
    run(again, tmp_path / "broken", images, targets)
    assert same(weights(unbroken), weights(again))
    assert history(tmp_path / "broken") == history(tmp_path / "unbroken")


# ---- the optimiser, the schedule, the average -----------------------------------------------------------------------


def test_the_ema_equals_a_naive_loop_buffers_and_counters_too():
    for warmup in (True, False):
        model = Tiny(2)
        ema = Ema(model, 0.6, warmup)
        naive = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for step in range(1, 12):
            with torch.no_grad():
                for number, parameter in enumerate(model.parameters()):
                    parameter.add_(0.1 * step + number)
                model.norm.running_mean.add_(step)
                model.norm.num_batches_tracked.add_(1)
            ema.update(step)
            decay = min(0.6, (1 + step) / (10 + step)) if warmup else 0.6
            for name, live in model.state_dict().items():
                moved = decay * naive[name] + (1 - decay) * live if live.is_floating_point() else live
                naive[name] = moved.clone()
        for name, tensor in ema.state.items():
            torch.testing.assert_close(tensor, naive[name])
        assert ema.state["norm.num_batches_tracked"] == 11


@pytest.mark.parametrize("warmup", [False, True])
def test_the_last_ema_is_what_a_naive_training_loop_ends_with(images, targets, tmp_path, warmup):
    """The whole loop written out naively: the specification of fit."""
    training, found = recipe(epochs=2, ema_decay=0.5, ema_warmup=warmup, optimizer="adam"), learner()
    naive = copy.deepcopy(found.model)
    entry = run([found], tmp_path, images, targets, training=training)["whole"]
    batches = Batches(images, targets, np.arange(32), batch_size=8, view="default", seed=5, device="cpu")
    matrices = [p for p in naive.parameters() if p.ndim > 1]
    others = [p for p in naive.parameters() if p.ndim <= 1]
    optimizer = torch.optim.Adam([{"params": matrices, "weight_decay": 1e-2}, {"params": others}], lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=8, pct_start=1.5 / 8)
    average = {name: tensor.clone() for name, tensor in naive.state_dict().items()}
    naive.train()
    step = 0
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            step += 1
            decay = min(0.5, (1 + step) / (10 + step)) if warmup else 0.5
            loss = sum(found.objective(naive(batch.images), batch.targets, {}).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            for name, live in naive.state_dict().items():
                moved = decay * average[name] + (1 - decay) * live if live.is_floating_point() else live
                average[name] = moved.clone()
    for name, tensor in found.model.state_dict().items():
        torch.testing.assert_close(tensor, average[name], rtol=1e-4, atol=1e-5)
    assert (entry["weights"], entry["epoch"], entry["val_map"]) == ("ema", 2, None)
    assert not found.model.training


def learning_rates(images, targets, folder, training, monkeypatch):
    seen, step = [], loop._step

    def watched(track, *arguments):
        seen.append([group["lr"] for group in track.optimizer.param_groups])
        return step(track, *arguments)

    monkeypatch.setattr(loop, "_step", watched)
    run([learner()], folder, images, targets, training=training)
    assert all(len(set(rates)) == 1 for rates in seen)
    return [rates[0] for rates in seen]


@pytest.mark.parametrize("epochs", [4, 10])
def test_the_learning_rate_is_one_cycle_over_exactly_the_steps_of_the_training(
    images, targets, tmp_path, monkeypatch, epochs
):
    training = recipe(epochs=epochs, pct_start=0.3, lr=0.02)
    found = learning_rates(images, targets, tmp_path, training, monkeypatch)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, epochs=epochs, steps_per_epoch=4, pct_start=0.3)
    expected = []
    for _ in range(4 * epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[0] == pytest.approx(0.02 / 25) and found[-1] == pytest.approx(0.02 / 25 / 1e4)


@pytest.mark.parametrize(("rows", "epochs", "pct_start"), [(8, 1, 0.5), (8, 2, 0.5), (16, 5, 0.1), (8, 3, 0.34)])
def test_very_short_trainings_divide_by_nothing(images, targets, tmp_path, monkeypatch, rows, epochs, pct_start):
    training = recipe(epochs=epochs, pct_start=pct_start)
    step_losses = run([learner()], tmp_path / "a", images, targets, rows=range(rows), training=training)
    assert step_losses["whole"]["epoch"] == epochs
    rates = learning_rates(images, targets, tmp_path / "b", training, monkeypatch)
    assert all(0 < rate <= 1e-2 for rate in rates)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_weight_decay_moves_matrices_and_leaves_biases_alone(images, targets, tmp_path, optimizer):
    class Idle(Tiny):
        """Two parameters that the loss does not depend on, but that have a gradient: zero."""

        def __init__(self):
            super().__init__(CLASSES)
            self.matrix, self.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))

        def forward(self, images):
            output = super().forward(images)
            return output._replace(logits=output.logits + 0 * (self.matrix.sum() + self.bias.sum()))

    x = learner(model=Idle())
    training = recipe(optimizer=optimizer, weight_decay=0.5, ema_decay=0.0, ema_warmup=False)
    run([x], tmp_path, images, targets, training=training)
    assert x.model.bias.tolist() == [1, 1]
    assert (x.model.matrix < 0.999).all() and (x.model.matrix > 0).all()


def test_frozen_parameters_stay_as_they_are(images, targets, tmp_path):
    x = learner()
    x.model.convolution.requires_grad_(False)
    before = x.model.convolution.weight.clone()
    run([x], tmp_path, images, targets)
    assert torch.equal(x.model.convolution.weight, before)


# ---- a loss that is not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_once_and_leaves_the_last_good_checkpoint(images, targets, tmp_path, value):
    learners, files = three(), [f"photo_{row:02}.jpg" for row in range(40)]
    objective, seen = learners[1].objective, []

    def breaks(output, targets, soft):
        seen.append(targets)
        return {"asl": objective(output, targets, soft)["asl"] + (value if len(seen) == 7 else 0)}

    learners[1].objective = breaks
    with pytest.raises(Diverged) as caught:
        run(learners, tmp_path, images, targets, files=files)
    text = str(caught.value)
    assert "co-0" in text and "epoch 2" in text and str(tmp_path / "last.ckpt") in text
    order = Batches(images, targets, np.arange(32), batch_size=8, seed=5).order(1)[2]  # step 7: the third of epoch 2
    assert len(seen) == 7 and all((name in text) == (row in order) for row, name in enumerate(files))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (saved["epoch"], saved["step"]) == (1, 2)
    for track in saved["states"].values():
        assert all(tensor.isfinite().all() for tensor in track["model"].values())
        assert all(tensor.isfinite().all() for tensor in track["ema"])
    assert not list(tmp_path.glob("*.safetensors"))
    unbroken, again = three(), three()
    run(unbroken, tmp_path / "unbroken", images, targets)
    run(again, tmp_path, images, targets)  # the cause is gone: the same training goes on
    assert same(weights(unbroken), weights(again))


@pytest.mark.parametrize("at", [5, 12])
def test_a_finite_loss_with_an_infinite_gradient_leaves_no_broken_weights_on_disk(images, targets, tmp_path, at):
    x, calls = learner(), []
    objective = x.objective

    def breaks(output, targets, soft):
        calls.append(targets)
        loss = objective(output, targets, soft)["asl"]
        if len(calls) == at:  # step 12 is the last one of all
            loss = loss + (output.logits.sum() * 0).sqrt()  # 0, whose gradient is infinite times 0
        return {"asl": loss}

    x.objective = breaks
    with pytest.raises(Diverged, match="weights of whole are not finite"):
        run([x], tmp_path, images, targets)
    assert len(calls) == at
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["states"]["whole"]
    assert all(tensor.isfinite().all() for tensor in [*saved["model"].values(), *saved["ema"]])
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_loss_that_is_not_finite_before_any_checkpoint_says_so(images, targets, tmp_path):
    x = learner()
    x.objective = lambda output, targets, soft: {"asl": output.logits.sum() * float("nan")}
    with pytest.raises(Diverged, match=r"of whole is nan in epoch 1, on the batch of \d+, .*there was no checkpoint"):
        run([x], tmp_path, images, targets)
    assert not (tmp_path / "last.ckpt").exists()


# ---- which weights are kept -----------------------------------------------------------------------------------------


def test_validation_keeps_the_best_epochs_ema_and_records_its_score(images, targets, tmp_path):
    x, held_out, states = learner(), np.arange(32, 40), []
    validation = Validation(images, targets, held_out)
    validate = loop._validate

    def remember(tracks, epoch, *arguments):
        states.append({name: tensor.clone() for name, tensor in tracks[0].ema.state.items()})
        return validate(tracks, epoch, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_validate", remember)
        entry = run([x], tmp_path, images, targets, training=recipe(epochs=6), validation=validation)["whole"]
    model, scores = Tiny(CLASSES).eval(), []
    for state in states:
        model.load_state_dict(state)
        (logits,) = predict_logits([model], images, held_out, "cpu")
        scores.append(100 * mean_average_precision(logits, targets[held_out]))
    assert len(set(scores)) > 1
    assert entry["epoch"] == 1 + int(np.argmax(scores)) and entry["val_map"] == max(scores)
    assert entry["weights"] == "ema"
    assert same(dict(x.model.state_dict()), states[entry["epoch"] - 1])
    assert [float(row["val_map_ema"]) for row in history(tmp_path)] == scores


def test_validation_every_other_epoch_still_looks_at_the_last(images, targets, tmp_path):
    validation = Validation(images, targets, np.arange(32, 40))
    run([learner()], tmp_path, images, targets, training=recipe(validate_every=2), validation=validation)
    assert [bool(row["val_map_ema"]) for row in history(tmp_path)] == [False, True, True]


def test_a_trunk_that_learners_share_sees_each_image_once_in_a_validation(images, targets, tmp_path):
    whole, seen = build_model("test_resnet", CLASSES), []
    trunk = make_trunk(whole, -1)
    tails = [learner(f"co-{n}", model=make_tail(copy.deepcopy(whole), trunk, -1)) for n in range(3)]
    trunk.register_forward_hook(lambda module, inputs, features: seen.append(features))
    run(
        tails,
        tmp_path,
        images,
        targets,
        training=recipe(epochs=1),
        validation=Validation(images, targets, np.arange(32, 40)),
    )
    assert len({id(features) for features in seen}) == 4 + 1  # steps, and the held-out images in one batch


def test_a_checkpoint_of_a_machine_that_scales_no_loss_is_gone_on_with_by_one_that_does():
    track = start_state(learner(), recipe(precision="float16"), 4, torch.device("cpu"))
    state = track.state() | {"scaler": {}}
    track.scaler = torch.amp.GradScaler("cpu", enabled=True)
    track.load(state)
    assert track.scaler.get_scale() == 65536


@pytest.mark.parametrize(("precision", "scales"), [("float16", True), ("bfloat16", False), ("float32", False)])
def test_float16_alone_scales_its_loss(monkeypatch, precision, scales):
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": None}
    monkeypatch.setattr("cpsd_lib.training.learner.pick_precision", lambda name, device: dtypes[name])
    track = start_state(learner(), recipe(precision=precision), 4, torch.device("cpu"))
    assert track.scaler.is_enabled() == scales


def test_a_loss_that_is_scaled_trains_to_the_same_weights(images, targets, tmp_path, monkeypatch):
    plain, scaled = learner(), learner()
    run([plain], tmp_path / "plain", images, targets, training=recipe(epochs=1))
    original = loop.start_state

    def with_scaler(*arguments):
        track = original(*arguments)
        track.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return track

    monkeypatch.setattr(loop, "start_state", with_scaler)
    run([scaled], tmp_path / "scaled", images, targets, training=recipe(epochs=1))
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(scaled.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_compile_is_done_where_it_is_wanted_and_nowhere_else():
    compiled = start_state(learner(), recipe(compile=True), 4, torch.device("cpu"))
    plain = start_state(learner(), recipe(), 4, torch.device("cpu"))
    assert isinstance(compiled.forward, Compiled) and plain.forward is plain.learner.model


def test_writing_checkpoints_takes_a_fiftieth_of_the_time_at_most(images, targets, tmp_path, monkeypatch):
    written, write = [], loop.write_checkpoint

    def slow(*arguments):
        written.append(time.sleep(0.2))
        write(*arguments)

    monkeypatch.setattr(loop, "write_checkpoint", slow)
    run([learner()], tmp_path, images, targets, training=recipe(epochs=3, checkpoint_seconds=0.001))
    assert len(written) == 2  # after the first of twelve steps, the next being due after 10 seconds, and at the end


def test_a_checkpoint_is_a_copy_that_a_thread_writes_while_the_training_goes_on(images, targets, tmp_path, monkeypatch):
    order, copy, write, step = [], loop.copy_of, loop.write_checkpoint, loop._step
    begun, stepped = threading.Event(), threading.Event()

    def copies(*arguments):
        order.append("copied")
        return copy(*arguments)

    def writes(path, content):
        assert threading.current_thread() is not threading.main_thread()
        (kept,) = content["states"].values()
        before = {name: tensor.clone() for name, tensor in kept["model"].items()}
        begun.set()
        assert stepped.wait(60)
        assert all(torch.equal(tensor, kept["model"][name]) for name, tensor in before.items())
        order.append("written")
        write(path, content)

    def steps(*arguments):
        if "copied" in order:
            assert begun.wait(60)  # a thread may begin late
        loss = step(*arguments)
        if begun.is_set():
            order.append("step")
            stepped.set()
        return loss

    monkeypatch.setattr(loop, "copy_of", copies)
    monkeypatch.setattr(loop, "write_checkpoint", writes)
    monkeypatch.setattr(loop, "_step", steps)
    run([learner()], tmp_path, images, targets, training=recipe(epochs=3, checkpoint_seconds=0))
    assert order[:3] == ["copied", "step", "written"]


def test_a_learner_is_validated_on_its_own_columns(images, targets, tmp_path):
    x, validation = learner("co-1", (3, 1)), Validation(images, targets, np.arange(32, 40))
    entry = run([x], tmp_path, images, targets, training=recipe(epochs=1), validation=validation)["co-1"]
    (logits,) = predict_logits([x.model], images, np.arange(32, 40), "cpu")
    assert entry["val_map"] == 100 * mean_average_precision(logits, targets[32:40][:, [3, 1]])


def test_raw_weights_win_only_where_they_are_asked_for_and_better(images, targets, tmp_path):
    # An average that hardly moves is worse than the weights themselves on the very images that were trained on.
    training, validation = recipe(epochs=10, ema_decay=0.9999, ema_warmup=False, view="plain"), np.arange(32)
    raw, ema = learner(), learner()
    chosen = run(
        [raw],
        tmp_path / "raw",
        images,
        targets,
        training=training,
        validation=Validation(images, targets, validation, True),
    )
    only = run(
        [ema], tmp_path / "ema", images, targets, training=training, validation=Validation(images, targets, validation)
    )
    assert (chosen["whole"]["weights"], only["whole"]["weights"]) == ("raw", "ema")
    assert chosen["whole"]["val_map"] > only["whole"]["val_map"]
    assert {"val_map_raw", "val_map_ema"} <= set(history(tmp_path / "raw")[0])
    assert "val_map_raw" not in history(tmp_path / "ema")[0]


def test_held_out_images_without_a_positive_leave_the_last_ema(images, targets, tmp_path):
    nobody = targets.copy()
    nobody[32:, 1:] = 0
    nobody[33:, 1:] = -1
    last, val = learner("co-0", (1, 3)), learner("co-0", (1, 3))
    run([last], tmp_path / "last", images, nobody)
    entry = run([val], tmp_path / "val", images, nobody, validation=Validation(images, nobody, np.arange(32, 40)))[
        "co-0"
    ]
    assert (entry["val_map"], entry["epoch"]) == (None, 3)
    assert same(weights([last]), weights([val]))


def test_looking_at_the_held_out_images_does_not_change_the_training(images, targets, tmp_path):
    without, with_ = learner(dropout=0.5), learner(dropout=0.5)
    run([without], tmp_path / "a", images, targets, training=recipe(epochs=2))
    run(
        [with_],
        tmp_path / "b",
        images,
        targets,
        training=recipe(epochs=2),
        validation=Validation(images, np.zeros_like(targets), np.arange(8)),  # without a positive the last EMA is kept
    )
    assert same(weights([without]), weights([with_]))


# ---- what is on disk ------------------------------------------------------------------------------------------------


def test_the_folder_holds_the_finished_training_and_its_history(images, targets, tmp_path):
    entry = run([learner("co-0", (2, 0))], tmp_path, images, targets)["co-0"]
    assert {path.name for path in tmp_path.iterdir()} <= {
        ".lock",
        "history.csv",
        "last.ckpt",
        "previous.ckpt",
        "checksums.json",
    }
    rows = history(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and all(float(row["asl"]) > 0 for row in rows)
    assert [str(line["asl"]) for line in entry["history"]] == [row["asl"] for row in rows]


@pytest.mark.parametrize("select", ["last", "val"])
def test_a_finished_training_is_read_and_not_trained_again(images, targets, tmp_path, select):
    validation = Validation(images, targets, np.arange(32, 40)) if select == "val" else None
    first, second = three(), three()
    entries = run(first, tmp_path, images, targets, validation=validation)
    for x in second:
        x.objective = None  # training with it would fail
        x.model = Tiny(len(x.class_indices), seed=99)
    assert run(second, tmp_path, images, targets, validation=validation) == entries
    assert same(weights(first), weights(second)) and not any(x.model.training for x in second)


def test_another_way_to_choose_the_epoch_does_not_read_the_finished_training(images, targets, tmp_path):
    validation, last, best = Validation(images, targets, np.arange(32, 40)), learner(), learner()
    run([last], tmp_path, images, targets)
    found = run([best], tmp_path, images, targets, validation=validation)["whole"]
    assert found["val_map"] is not None


def test_another_group_in_a_folder_is_trained_to_the_same_weights(images, targets, tmp_path):
    together, later, again = three(0.5), three(0.5), three(0.5)
    run(together, tmp_path / "together", images, targets)
    run(later[:2], tmp_path / "later", images, targets)
    run(again, tmp_path / "later", images, targets)
    assert same(weights(together), weights(again)) and same(weights(together[:2]), weights(later[:2]))


def test_some_learners_of_a_checkpoint_go_on_without_the_others(images, targets, tmp_path):
    unbroken, broken, again = three(0.5), three(0.5), three(0.5)
    run(unbroken, tmp_path / "unbroken", images, targets)
    broken[2].objective = interrupting(broken[2].objective, 7)
    with pytest.raises(Interrupt):
        run(broken, tmp_path / "broken", images, targets)
    again[1].objective = interrupting(again[1].objective, 12 - 7)  # one call more than there are steps left
    found = run(again[1:], tmp_path / "broken", images, targets)
    assert same(weights(unbroken[1:]), weights(again[1:]))
    assert [line["epoch"] for line in found["co-0"]["history"]] == [1, 2, 3]


@pytest.mark.parametrize(
    "change", [{"lr": 2e-2}, {"epochs": 4}, {"view": "plain"}, {"batch_size": 4}, "seed", "images"]
)
def test_a_training_with_other_settings_does_not_go_on_from_a_checkpoint(images, targets, tmp_path, change):
    more = {"seed": {"seed": 6}, "images": {"rows": range(24)}}.get(change, {}) if isinstance(change, str) else {}
    changed = more | ({} if isinstance(change, str) else {"training": recipe(**change)})
    fresh, here = learner(), learner()
    run([learner()], tmp_path / "a", images, targets)
    run([here], tmp_path / "a", images, targets, **changed)
    run([fresh], tmp_path / "b", images, targets, **changed)
    assert same(weights([fresh]), weights([here]))


@pytest.mark.parametrize("harm", ["cut short", "empty", "text", "another pickle"])
def test_a_checkpoint_that_cannot_be_read_starts_the_training_anew_and_says_so(images, targets, tmp_path, capsys, harm):
    unbroken, broken, again = learner(), learner(), learner()
    run([unbroken], tmp_path / "unbroken", images, targets)
    broken.objective = interrupting(broken.objective, 6)
    with pytest.raises(Interrupt):
        run([broken], tmp_path / "broken", images, targets)
    path = tmp_path / "broken" / "last.ckpt"
    path.with_name("previous.ckpt").unlink(missing_ok=True)
    data = path.read_bytes()
    path.write_bytes(
        {"cut short": data[: len(data) // 2], "empty": b"", "text": b"hello", "another pickle": pickle.dumps({1: 2})}[
            harm
        ]
    )
    run([again], tmp_path / "broken", images, targets)
    assert same(weights([unbroken]), weights([again]))
    said = capsys.readouterr().out
    assert "last.ckpt cannot be read" in said and "starts anew" in said


@pytest.mark.parametrize("part", range(12))
def test_a_changed_byte_of_a_checkpoint_is_seen_and_the_one_before_is_gone_on_from(
    images, targets, tmp_path, capsys, part
):
    unbroken, broken, again = learner(), learner(), learner()
    run([unbroken], tmp_path / "unbroken", images, targets)
    broken.objective = interrupting(broken.objective, 7)
    with pytest.raises(Interrupt):
        run([broken], tmp_path / "broken", images, targets)
    path = tmp_path / "broken" / "last.ckpt"
    assert path.with_name("previous.ckpt").exists()
    data = bytearray(path.read_bytes())
    place = random.Random(part).randrange(len(data))
    data[place] ^= 0x40
    path.write_bytes(data)
    run([again], tmp_path / "broken", images, targets)
    assert same(weights([unbroken]), weights([again]))
    said = capsys.readouterr().out
    assert "resumed at step" in said and "cannot be read; this training goes on from previous.ckpt" in said


def test_no_changed_bit_of_a_checkpoint_gives_other_content(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.write_checkpoint(path, {"epoch": 3, "weights": torch.arange(300.0)})
    data = path.read_bytes()
    assert sha256(path) in checkpoint._sums(path)
    for place in range(0, len(data), 2):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        assert sha256(path) not in checkpoint._sums(path)


def test_a_checkpoint_runs_no_code_when_it_is_loaded(images, targets, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    torch.save({"training": {}, "states": Hostile()}, tmp_path / "last.ckpt")
    write_json(tmp_path / "checksums.json", [sha256(tmp_path / "last.ckpt")])  # as if it were our own
    with suppress(pickle.UnpicklingError):
        run([learner()], tmp_path, images, targets)
    assert not (tmp_path / "hacked").exists()


def test_a_checkpoint_made_of_other_things_is_not_gone_on_with(images, targets, tmp_path):
    other, fresh, here = learner("lr 1"), learner("lr 2"), learner("lr 2")
    other.objective = interrupting(other.objective, 6)
    with pytest.raises(Interrupt):
        run([other], tmp_path / "a", images, targets)
    run([here], tmp_path / "a", images, targets)
    run([fresh], tmp_path / "b", images, targets)
    assert same(weights([fresh]), weights([here]))


def test_what_a_killed_process_left_half_written_is_cleared_away(images, targets, tmp_path):
    leftover = tmp_path / ".last.ckpt.123.tmp"
    leftover.write_bytes(b"half")
    run([learner()], tmp_path, images, targets)
    assert not leftover.exists()


def test_a_second_process_in_the_same_folder_is_refused_with_words(images, targets, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "LOCK_SECONDS", 0.1)
    with FileLock(tmp_path / ".lock"), pytest.raises(RuntimeError, match="another process trains in"):
        run([learner()], tmp_path, images, targets)
    run([learner()], tmp_path, images, targets)  # the lock was given back: by the other, and by the refused


def test_a_failed_training_gives_its_lock_back(images, targets, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "LOCK_SECONDS", 0.1)
    x = learner()
    x.objective = interrupting(x.objective, 1)
    with pytest.raises(Interrupt):
        run([x], tmp_path, images, targets)
    run([learner()], tmp_path, images, targets)


# ---- devices and precision ------------------------------------------------------------------------------------------


def test_bfloat16_trains_and_keeps_float32_weights(images, targets, tmp_path):
    x = learner()
    run([x], tmp_path, images, targets, training=recipe(precision="bfloat16"))
    assert {tensor.dtype for tensor in x.model.state_dict().values()} == {torch.float32, torch.int64}


def test_precision_and_device_fall_back_to_what_there_is():
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) is None and pick_precision("float16", cpu) is None
    assert pick_precision("bfloat16", cpu) is torch.bfloat16
    if not torch.cuda.is_available():
        assert pick_device("auto") == cpu
        with pytest.raises(ValueError, match="sees no GPU"):
            pick_device("cuda:0")


def test_a_derived_seed_is_a_function_of_its_parts_and_fits_torch():
    assert derive_seed(1, "a", 2) == derive_seed(1, "a", 2)
    found = {derive_seed(seed, name, step) for seed in range(5) for name in ("a", "b") for step in range(100)}
    assert len(found) == 1000 and all(0 <= seed < 2**63 for seed in found)


def test_dropout_draws_anew_at_every_step_and_for_every_seed(images, targets, tmp_path):
    drawn = []
    for seed in (5, 6):
        one = learner(dropout=0.5)
        one.model.dropout.register_forward_hook(
            lambda _, given, kept: drawn.append(tuple((kept != 0).flatten().tolist()))
        )
        run([one], tmp_path / str(seed), images, targets, training=recipe(epochs=1), seed=seed)
    assert len(drawn) == len(set(drawn)) == 8


@pytest.mark.parametrize(("optimizer", "left"), [("adamw", 1 - 4e-4 * 0.5), ("adam", 1 - 4e-4)])
def test_adamw_decays_the_weight_and_adam_the_gradient(optimizer, left):
    layer = nn.Linear(2, 2)
    nn.init.ones_(layer.weight)
    made, _ = optimizer_of(layer, recipe(optimizer=optimizer, weight_decay=0.5), 4)  # the first lr is 1e-2 / 25
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    assert layer.weight.flatten().tolist() == pytest.approx([left] * 4, abs=1e-6)
