"""The public names in somebody's own script: plain modules, no folder, no YAML, and light to import."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cpsd_lib
from cpsd_lib import Batches, Supervised, Training, fit, predict

README = Path(__file__).resolve().parents[1] / "README.md"
NAMES = """
cooccurrence affinity cut ncut random_partition Partition asymmetric_loss binary_cross_entropy logit_mse class_kl mld led
PartTeachers Supervised SelfDistillation MultiLabelDistillation average_precision mean_average_precision
precision_recall_f1 bootstrap_interval paired_bootstrap build_model load_released Output Training Batches fit predict
load_model open_run explore
"""


def run(program, folder, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CPSD_")}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_these_are_the_public_names_and_each_says_what_it_does():
    assert sorted(cpsd_lib.__all__) == sorted(NAMES.split()) and set(NAMES.split()) <= set(dir(cpsd_lib))
    for name in NAMES.split():
        assert getattr(cpsd_lib, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cpsd_lib.nothing  # noqa: B018


def test_the_import_and_the_help_load_no_torch(tmp_path):
    program = """
        import sys, cpsd_lib
        from cpsd_lib.cli import main
        try:
            main(["--help"])
        except SystemExit:
            pass
        print(sorted({"torch", "numpy", "pydantic", "tqdm"} & sys.modules.keys()))
    """
    assert run(program, tmp_path).endswith("[]\n")


def test_what_the_notebooks_import_leaves_out_the_compiler():
    # Dynamo alone took a third of the notebooks' imports, in each of seven kernels.
    program = """
        import sys
        from cpsd_lib import explore, fit, predict
        from cpsd_lib.viz import plots
        from cpsd_lib.workbench import evaluate, open_run, train_student, train_teachers
        from cpsd_lib.models import make_trunk
        print("torch" in sys.modules, "torch._dynamo" in sys.modules)
    """
    assert run(program, Path.cwd()).endswith("True False\n")


@pytest.mark.parametrize(
    "make",
    [
        'timm.create_model("test_resnet", num_classes=classes)',
        "torchvision.models.mobilenet_v3_small(num_classes=classes)",
    ],
    ids=["timm", "torchvision"],
)
def test_the_fifteen_lines_of_the_readme_run_with_anybodys_models_from_any_folder(tmp_path, make):
    (block,) = re.findall(r"<!-- fifteen lines -->\n+```python\n(.*?)```", README.read_text(), flags=re.S)
    program = re.sub(r"(def make\(classes\):\n    return )[^\n]*", rf"\g<1>{make}", block)
    assert make in program and len(re.findall("from cpsd_lib import", program)) == 1
    assert not re.findall("cpsd_lib[.]", program)  # public names alone
    run(f"import torchvision\n{program}\nprint('done')", tmp_path, OMP_NUM_THREADS="1")


# ---- fit and predict -------------------------------------------------------------------------------------------------


def plain(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, classes),
    )


def data(images=24, classes=3):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (images, 3, 16, 16), np.uint8), random.integers(0, 2, (images, classes)).astype(
        np.int8
    )


def test_fit_needs_no_folder_and_takes_a_plain_model_or_several_side_by_side():
    images, targets = data()
    batches = Batches(images, targets, batch_size=8, view="flip")
    one, (first, second) = plain(), (plain(), plain(seed=1))
    before = plain().state_dict()
    record = fit(one, batches, Training(epochs=2, lr=1e-2))["model"]
    records = fit([first, second], batches, Training(epochs=2, lr=1e-2))
    assert record["epoch"] == 2 and len(record["history"]) == 2 and record["history"][0]["asl"] > 0 and not one.training
    assert set(records) == {"model0", "model1"}
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), first.state_dict().values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), before.values(), strict=True))


def test_fit_distils_with_a_function_that_gives_soft_targets():
    images, targets = data()
    parts = cpsd_lib.Partition([[0, 2], [1]], 3)
    teachers = cpsd_lib.PartTeachers([plain(2), plain(1)], parts)
    soft = Batches(images, targets, batch_size=8, soft=lambda view, indices, x: {"co": teachers.soft_targets(x)})
    record = fit(plain(), soft, Training(epochs=1), objective=cpsd_lib.SelfDistillation({"co": 1.0}))["model"]
    assert record["history"][0]["match_co"] > 0


def test_fit_in_a_folder_loads_what_is_finished(tmp_path):
    images, targets = data()
    first, second = plain(), plain(seed=1)
    for model in (first, second):
        fit(model, Batches(images, targets, batch_size=8), Training(epochs=1), tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_fit_refuses_no_model_at_all():
    with pytest.raises(ValueError, match="models must be at least one"):
        fit([], Batches(*data()), objective=Supervised())


def test_predict_gives_the_same_for_tensors_arrays_pictures_and_paths(tmp_path):
    images, _ = data(5)
    model = plain().train()
    expected = predict(model, images)
    with torch.no_grad():
        by_hand = model.eval()(torch.from_numpy(images).float() / 255).sigmoid()
    model.train()
    np.testing.assert_allclose(expected, by_hand, rtol=1e-5)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    unit = torch.from_numpy(images).float() / 255
    for form in (
        torch.from_numpy(images),
        unit,
        unit.numpy(),
        list(unit),
        pictures,
        paths,
        [str(path) for path in paths],
    ):
        found = predict(model, form, batch_size=2, size=16)
        assert found.dtype == np.float32 and found.shape == (5, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert model.training  # as it was


@pytest.mark.parametrize(
    ("images", "size", "words"),
    [
        (np.zeros((2, 16, 16, 3), np.uint8), None, r"must be \[N, 3, S, S\]"),
        (np.full((2, 3, 16, 16), 255.0), None, "uint8, or floats in"),
        (np.zeros((2, 3, 16, 16), np.int64), None, "uint8, or floats in"),
        (["photo.jpg"], None, "size .pixels. is needed"),
        (np.zeros((0, 3, 16, 16), np.uint8), None, "no images"),
    ],
)
def test_predict_refuses_what_it_cannot_be_sure_of(images, size, words):
    with pytest.raises(ValueError, match=words):
        predict(plain(), images, size=size)


def test_predict_never_returns_what_is_not_finite():
    model = plain()
    model[-1].bias.data[:] = float("nan")
    with pytest.raises(ValueError, match="not finite for 5 images"):
        predict(model, data(5)[0])
