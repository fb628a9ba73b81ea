"""`cpsd check-gpu`: is each promise of the loop kept on this GPU, and how fast is it; a table and a JSON file to send on.

Each check is a function of a torch device, small enough for a CPU too; it returns what it saw and raises AssertionError
with the reason where a promise is broken.
"""

import argparse
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cpsd_lib.models import MetaModel, build_model, fold_models
from cpsd_lib.objectives import SelfDistillation, Supervised
from cpsd_lib.partition import Partition, random_partition
from cpsd_lib.support import memory, pick_device, write_json
from cpsd_lib.teachers import PartTeachers, logits_of
from cpsd_lib.training import Batches, Learner, Training, fit
from cpsd_lib.workbench.store import environment

IMAGES, CLASSES, BATCH, SIZE = 24, 12, 8, 64  # of the checks
TRAINING = Training(epochs=1, precision="float32", checkpoint_seconds=0)


# ---- is it right -----------------------------------------------------------------------------------------------------


def half_precision_trains_as_float32_does(device):
    """One epoch in bfloat16 and in float16 (with its gradient scaler) against float32: the mean loss within 2 %."""
    losses = {}
    for precision in ("float32", "bfloat16", "float16"):
        training = replace(TRAINING, precision=precision)
        record = fit(_experts(1, device), _batches(device), training)["expert0"]
        losses[precision] = record["history"][0]["asl"]
    off = max(abs(loss / losses["float32"] - 1) for loss in losses.values())
    assert off < 0.02, f"the mean loss differs by {100 * off:.1f} %: {losses}"
    return f"mean loss differs by {100 * off:.2f} %"


def a_step_waits_for_nothing(device):
    """Experts and a student with soft targets: the host never waits for the device between two batches."""
    stored, parts = torch.randn(IMAGES, CLASSES), random_partition(CLASSES, 2, 0)
    merged = PartTeachers([_model(len(part)).to(device) for part in parts.parts], parts)
    student = Learner("student", _model(CLASSES), SelfDistillation({"co": 0.5, "dis": 0.5}))

    def soft(view, indices, images):
        return {"co": stored[indices], "dis": merged.soft_targets(images)}

    def watch(number, place):
        mode("error" if number and 0 <= place < len(batches.order(0)) - 1 else "default")

    mode, batches = _watch(device), _batches(device, soft, watch)
    fit([*_experts(2, device), student], batches, replace(TRAINING, precision="auto", epochs=2))
    return f"{batches.steps} steps watched" if device.type == "cuda" else "nothing can wait on a CPU"


def _watch(device):
    return torch.cuda.set_sync_debug_mode if device.type == "cuda" else lambda mode: None


def a_training_resumed_is_the_training_unbroken(device):
    """Stopped in the middle of an epoch and taken up from its checkpoint: the same weights, bit for bit."""

    def stop(number, place):
        if (number, place) == (1, 2):
            raise KeyboardInterrupt

    with _deterministic(device), tempfile.TemporaryDirectory() as folder:
        unbroken, resumed = _experts(2, device), _experts(2, device)
        training = replace(TRAINING, epochs=2)
        fit(unbroken, _batches(device), training)
        try:
            fit(resumed, _batches(device, before=stop), training, folder)
        except KeyboardInterrupt:
            fit(resumed, _batches(device), training, folder)
        return _same(unbroken, resumed)


def an_expert_beside_others_is_the_expert_alone(device):
    """Three experts trained together and one by one: the same weights, bit for bit."""
    with _deterministic(device):
        together, alone = _experts(3, device), _experts(3, device)
        fit(together, _batches(device), TRAINING)
        for expert in alone:
            fit(expert, _batches(device), TRAINING)
        return _same(together, alone)


def folded_experts_compute_what_plain_ones_do(device):
    """Batch norm folded into the convolutions: the soft targets within 1e-3 of their size."""
    experts = _experts(2, device)
    fit(experts, _batches(device), TRAINING)
    merged = PartTeachers([e.model for e in experts], Partition([e.class_indices for e in experts], CLASSES)).eval()
    folded = fold_models({"co": merged.cpu()}, SIZE)["co"]
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    plain, quick = (logits_of(one.to(device).soft_targets(images)) for one in (merged, folded))
    off = float((plain - quick).abs().max() / plain.abs().max())
    assert off < 1e-3, f"the soft targets differ by {off:.1e} of the largest"
    return f"differ by {off:.0e} of the largest"


def every_model_compiles_for_itself(device):
    """More models than Dynamo's own limit of eight code objects, trained with train.compile: each has its graphs."""
    models = [nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, width)) for width in range(1, 11)]
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    fit(models, _batches(device), replace(TRAINING, compile=True), objective=_sum_of_squares)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert graphs >= len(models), f"{graphs} graphs for {len(models)} models of ten shapes; is there a C++ compiler?"
    return f"{len(models)} models, {graphs} graphs"


def _sum_of_squares(output, targets, soft):
    return {"square": output.square().sum()}


CHECKS = (
    half_precision_trains_as_float32_does,
    a_step_waits_for_nothing,
    a_training_resumed_is_the_training_unbroken,
    an_expert_beside_others_is_the_expert_alone,
    folded_experts_compute_what_plain_ones_do,
    every_model_compiles_for_itself,
)


def _images(count=IMAGES, size=SIZE):
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)


def _targets(count=IMAGES, classes=CLASSES):
    return (np.random.default_rng(1).random((count, classes)) < 0.2).astype(np.int8)


def _batches(device, soft=None, before=None):
    options = {"batch_size": BATCH, "view": "release", "device": device, "soft": soft}
    batches = Batches(_images(), _targets(), **options)
    return batches if before is None else _Hooked(batches, before)


class _Hooked(Batches):
    """Batches that call before(epoch, step) ahead of each of their steps, and before(epoch, -1) at an epoch's end."""

    def __init__(self, batches, before):
        self.__dict__ |= batches.__dict__
        self.before = before

    def epoch(self, number, start=0):
        try:
            for place, batch in enumerate(super().epoch(number, start)):
                self.before(number, place)
                yield batch
        finally:
            self.before(number, -1)


def _model(classes, name="test_resnet"):
    torch.manual_seed(0)
    return build_model(name, classes)


def _experts(count, device, classes=CLASSES, name="test_resnet"):
    parts = random_partition(classes, count, 0).parts
    return [
        Learner(f"expert{n}", _model(len(part), name), Supervised(torch.tensor(part, device=device)), part)
        for n, part in enumerate(parts)
    ]


def _same(one, other):
    off = {}
    for a, b in zip(one, other, strict=True):
        pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
        off[a.name] = max(float((x.double() - y.double()).abs().max()) for x, y in pairs)
    assert not any(off.values()), f"the largest difference of a weight is {off}"
    return "no bit differs"


@contextmanager
def _deterministic(device):
    # cuDNN chooses among algorithms that add in another order each time: the promise is that of the loop, not of cuDNN.
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


# ---- how fast is it --------------------------------------------------------------------------------------------------


def figures(device, name, size, batch, steps, classes=80):
    """Return a list of dicts {what, images_per_second, tflops, of_peak, gib}: the loop's steps of a model on random photos.

    An image that trains eight experts counts eight times; a training step is 3 forward passes of FLOP.
    """
    peak = matmul_tflops(device, 8192 if device.type == "cuda" else 512)
    images, targets = _images(2 * batch, size), _targets(2 * batch, classes)
    flop = MetaModel(build_model(name, classes).to("meta"), size).flop
    soft = {branch: torch.randn(2 * batch, classes) for branch in ("co", "dis")}
    student = [Learner("student", _model(classes, name), SelfDistillation({"co": 0.5, "dis": 0.5}))]
    kinds = {
        "teacher step": (_experts(1, device, classes, name), None),
        "student step, soft targets stored": (
            student,
            lambda view, indices, _: {b: s[indices] for b, s in soft.items()},
        ),
        "eight experts side by side": (_experts(8, device, classes, name), None),
    }
    found = [{"what": "bfloat16 matrix product", "tflops": peak}]
    for what, (learners, targets_of) in kinds.items():
        batches = Batches(images, targets, batch_size=batch, view="release", device=device, soft=targets_of)
        training = Training(epochs=max(1, steps // 2), checkpoint_seconds=1e9)
        fit(learners, batches, replace(training, epochs=1))  # warm
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = sum(record["seconds"] for record in fit(learners, batches, training).values())
        passes = len(learners) * training.epochs * batches.steps * batch
        found.append(_figure(what, passes / seconds, 3 * flop, peak, device))
        for learner in learners:
            learner.model.cpu()
    return found


def matmul_tflops(device, side):
    """Return the 1e12 FLOP a second of a bfloat16 product of two random [side, side] matrices: the best of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = np.inf
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e12


def _figure(what, rate, flop, peak, device):
    line = {"what": what, "images_per_second": rate, "tflops": rate * flop / 1e12}
    line["of_peak"] = line["tflops"] / peak
    if device.type == "cuda":
        line["gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return line


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- the command -----------------------------------------------------------------------------------------------------


def check_gpu(device, path):
    """Run all checks and figures on a torch device, print them, write them to the JSON file `path`; return whether all passed."""
    device, outcomes = torch.device(device), []
    for check in CHECKS:
        began = time.perf_counter()
        try:
            outcome = {"passed": True, "saw": check(device)}
        except Exception as error:  # one broken promise must not hide the next
            outcome = {"passed": False, "saw": f"{type(error).__name__}: {error}"}
        outcomes.append({"check": check.__name__, "seconds": time.perf_counter() - began} | outcome)
        print(
            f"{'passed' if outcome['passed'] else 'FAILED'}  {check.__name__.replace('_', ' ')}: {outcome['saw']}",
            flush=True,
        )
    large = ("resnet101", 448, 64, 12) if device.type == "cuda" else ("test_resnet", SIZE, BATCH, 4)
    lines = figures(device, *large)
    for line in lines:
        rate, share = line.get("images_per_second"), line.get("of_peak")
        print(
            f"{line['what']:<36}{'' if rate is None else f'{rate:>9,.0f} images/s'}{line['tflops']:>9,.1f} TFLOP/s"
            f"{'' if share is None else f'{100 * share:>6.0f} % of that product'}"
            f"{'   ' + memory(line['gib']) if 'gib' in line else ''}"
        )
    about = {"model": large[0], "size": large[1], "batch": large[2], "device": str(device)}
    write_json(Path(path), about | environment() | {"checks": outcomes, "figures": lines})
    return all(outcome["passed"] for outcome in outcomes)


def main(arguments=None):
    """Run the command; return its exit status: 1 for a broken promise, 2 for a device that is not there."""
    parser = argparse.ArgumentParser(
        prog="cpsd check-gpu", description="Is the training right on this GPU, and how fast?"
    )
    parser.add_argument(
        "--device", default="cuda", help="cuda (the default), cuda:N; cpu: what can be checked without one"
    )
    parser.add_argument(
        "--to", default="check-gpu.json", metavar="FILE", help="the JSON file; check-gpu.json by default"
    )
    options = parser.parse_args(arguments)
    try:
        device = pick_device(options.device)
    except (ValueError, RuntimeError) as error:
        print(f"--device: {error}", file=sys.stderr)
        return 2
    passed = check_gpu(device, options.to)
    print(f"written: {options.to}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
