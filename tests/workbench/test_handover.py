"""A finished model handed over: as a model folder, as ONNX, as timm's own weights; and its card."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.special import expit, logit

import cpsd_lib
from cpsd_lib.cli import main
from cpsd_lib.evaluation import best_thresholds, expected_calibration_error, precision_recall_f1
from cpsd_lib.models import build_model
from cpsd_lib.partition import Partition
from cpsd_lib.support import read_json, sha256, write_json
from cpsd_lib.teachers import PartTeachers, logits_of
from cpsd_lib.workbench import scoring
from cpsd_lib.workbench.handover import _trial_images, finished_model, model_card
from cpsd_lib.workbench.model_folder import state_of, write_tensors
from cpsd_lib.workbench.open import opened_run
from cpsd_lib.workbench.run import Run, held_out_indices
from cpsd_lib.workbench.scoring import evaluate, score_path, scored_by

ROWS = ("baseline", "cpsd", "teachers_co", "teachers_dis")


@pytest.fixture(scope="module")
def folders(finished, tmp_path_factory):
    """A model folder of every row of the finished run, written by the command."""
    root = tmp_path_factory.mktemp("folders")
    for row in ROWS:
        assert main(["export", "finished", "--row", row, "--to", str(root / row)]) == 0
    return root


def test_files(run):
    places = run.dataset.table.indices("test")
    return [str(run.dataset.source.paths[place]) for place in places]


test_files.__test__ = False


# ---- the model folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_a_model_folder_computes_what_the_run_s_own_model_computes_and_stage_05_scored(finished, folders, row):
    images = torch.rand(3, 3, 16, 16)
    own, loaded = cpsd_lib.load_model("finished", row=row), cpsd_lib.load_model(folders / row)
    assert torch.equal(logits_of(own(images)), logits_of(loaded(images)))
    assert not own.training and not loaded.training and own.config == loaded.config.model_copy(update={"sha256": {}})
    table = loaded.predict(test_files(finished), batch_size=5)
    scores = np.load(score_path(finished, 0, row, "test"))
    np.testing.assert_allclose(table.to_numpy(), expit(scores), atol=1e-5)
    assert list(table.columns) == ["1", "NA", "a, b", 'say "d"'] == loaded.class_names
    assert list(table.index) == test_files(finished)


def test_paths_pictures_and_arrays_are_predicted_alike_and_a_run_is_opened_by_its_folder_too(finished):
    model, paths = cpsd_lib.load_model(finished.folder), test_files(finished)[:6]
    expected = model.predict(paths)
    pictures = [Image.open(path) for path in paths]
    np.testing.assert_allclose(model.predict(pictures), expected, atol=1e-6)
    assert list(model.predict(pictures).index) == [0, 1, 2, 3, 4, 5]
    plain = np.asarray(Image.open(paths[0]).convert("RGB"))
    np.testing.assert_allclose(model.predict(plain), expected[:1], atol=1e-6)
    np.testing.assert_allclose(model.predict(paths[0]), expected[:1], atol=1e-6)
    np.testing.assert_allclose(model.predict([plain, paths[1]]), expected[:2], atol=1e-6)


def test_what_predict_cannot_read_is_listed_and_nothing_is_predicted_of_the_wrong_size(finished, tmp_path):
    model, path = cpsd_lib.load_model("finished"), test_files(finished)[0]
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"2 of 3 images cannot be read(.|\n)*empty.jpg: the file is empty(.|\n)*2: .* not dict"
    ):
        model.predict([path, tmp_path / "empty.jpg", {}])
    with pytest.raises(ValueError, match="Cannot handle this data type"):
        model.predict(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="takes 16 x 16 pixels; give a list"):
        model.predict(np.zeros((2, 3, 32, 32), np.uint8))
    for tensors in (torch.rand(3, 32, 32), [torch.rand(3, 16, 16), torch.rand(3, 16, 32)]):
        with pytest.raises(ValueError, match="takes 16 x 16 pixels; give a list"):
            model.predict(tensors)
    with pytest.raises(ValueError, match="no images"):
        model.predict([])


def test_a_copied_folder_loads_in_a_fresh_python_without_run_data_network_and_original_weights(
    finished, folders, tmp_path
):
    shutil.copytree(folders / "teachers_co", tmp_path / "copy")
    shutil.copytree(Path(cpsd_lib.__file__).parent, tmp_path / "installed" / "cpsd_lib")  # without its project
    images = test_files(finished)[:3]
    for path in images:
        shutil.copy(path, tmp_path)
    program = """
        import socket, cpsd_lib.workbench.open
        socket.socket = None
        print(cpsd_lib.load_model("copy").predict(PHOTOS).to_json(double_precision=15))
    """
    program = textwrap.dedent(program).replace("PHOTOS", repr([os.path.basename(path) for path in images]))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CPSD_")}
    clean["PYTHONPATH"] = str(tmp_path / "installed")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    values = np.array([list(column.values()) for column in json.loads(done.stdout).values()]).T
    np.testing.assert_allclose(values, cpsd_lib.load_model("finished", "teachers_co").predict(images), atol=1e-6)


def config_of(folder, architecture, parts=None, **change):
    """Return a config.json's content for the weights in a folder, of three classes."""
    return {
        "format": 1,
        "run": "by hand",
        "row": "cpsd",
        "seed": 0,
        "class_names": ["a", "b", "c"],
        "architecture": architecture,
        "parts": parts,
        "frozen_stages": 0,
        "size": 64,
        "preprocessing": {},
        "thresholds": None,
        "calibration": None,
        "tuned_on": "none",
        "recipe": [],
        "versions": {},
        "sha256": {"model.safetensors": sha256(folder / "model.safetensors")},
    } | change


@pytest.mark.parametrize("head", ["label_transformer", "query2label", "ml_decoder"])
def test_every_head_and_merged_experts_without_a_trunk_come_back_from_their_folder(tmp_path, head):
    parts, vectors = Partition([[0, 2], [1]], 3), torch.randn(3, 7)
    architecture = {"name": "test_resnet", "head": head, "head_width": 16}

    def build(classes):
        options = {"label_vectors": vectors[:classes]} if head == "label_transformer" else {}
        return build_model("test_resnet", classes, head=head, head_width=16, normalize="imagenet", **options)

    architecture |= {"label_vectors": "file"} if head == "label_transformer" else {}
    for model, of_parts in ((build(3), None), (PartTeachers([build(2), build(1)], parts), parts.parts)):
        write_tensors(tmp_path / "model.safetensors", state_of(model))
        write_json(tmp_path / "config.json", config_of(tmp_path, architecture, of_parts))
        loaded, images = cpsd_lib.load_model(tmp_path), torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(logits_of(loaded(images)), logits_of(model.eval()(images)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format: must be one of 1; got 2"),
        ({"class_names": ["a", "b"]}, r"does not fit its config.json; 2 of another shape: head.linear.weight"),
        ({"parts": [[0, 1]]}, "exactly one part"),
        ({"architecture": {"name": "resnet19"}}, "timm has no model 'resnet19'"),
        ({"architecture": {"name": "local-dir:/tmp"}}, "timm has no model"),
        (
            {"architecture": {"name": "test_resnet", "options": {"checkpoint_path": "x.pth"}}},
            "checkpoint_path cannot be set",
        ),
        ({"sha256": {}}, "is not the file that config.json was written for"),
        ({"calibration": [1.0]}, "calibration: "),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_words(tmp_path, change, words):
    write_tensors(tmp_path / "model.safetensors", build_model("test_resnet", 3).state_dict())
    write_json(tmp_path / "config.json", config_of(tmp_path, {"name": "test_resnet"}) | change)
    with pytest.raises(ValueError, match=words):
        cpsd_lib.load_model(tmp_path)


def test_changed_missing_and_pickled_weights_are_refused(folders, tmp_path):
    shutil.copytree(folders / "cpsd", tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is not the file .* \(its sha256\): copy the folder again"):
        cpsd_lib.load_model(tmp_path / "copy")
    path.unlink()
    torch.save({"anything": object}, tmp_path / "copy" / "model.pth")
    with pytest.raises(ValueError, match=r"nothing else is read as weights; the folder holds .*model\.pth"):
        cpsd_lib.load_model(tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        cpsd_lib.load_model(tmp_path / "copy")


def test_a_row_seed_or_run_that_is_not_there_is_named_with_those_that_are(
    finished, folders, tmp_path, monkeypatch, capsys
):
    for words, message in (
        (
            ["finished", "--row", "sd"],
            "finished has no row 'sd'; its rows are baseline, teachers_co, teachers_dis, cpsd",
        ),
        (["finished", "--seed", "7"], "finished has no seed 7, only 0"),
        (["finnished"], "no parameter file 'finnished'"),
        ([str(folders / "cpsd"), "--row", "sd"], "holds row cpsd of seed 0 alone; leave out row and seed"),
    ):
        assert main(["export", *words, "--to", str(tmp_path / "new")]) == 2
        assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="holds row cpsd of seed 0 alone; leave out row and seed"):
        cpsd_lib.load_model(folders / "cpsd", row="baseline")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders / "cpsd", tmp_path / "finished")
    assert cpsd_lib.load_model("finished", "cpsd").config.sha256  # the folder that is here before the run of its name
    folder = finished.folder
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"is not the run finished in .*: set CPSD_OUTPUTS"):
        cpsd_lib.load_model(folder)


def test_a_folder_that_is_in_use_is_left_as_it_is(finished, tmp_path, capsys):
    (tmp_path / "notes").write_text("mine")
    assert main(["export", "finished", "--to", str(tmp_path)]) == 1
    assert "exists and is not an empty folder; name a new one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def run_card(folder, monkeypatch, finished):
    """Run the Python in a model card, where its folder and a photo.jpg are; return what it defines."""
    monkeypatch.chdir(folder.parent)
    if not Path("photo.jpg").exists():
        shutil.copy(next(path for path in test_files(finished) if path.endswith("00.png")), "photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    defined = {}
    exec(code, defined)
    return defined


# ---- what was tuned, and the card ------------------------------------------------------------------------------------


def test_thresholds_and_calibration_are_those_of_the_held_out_images_and_the_card_says_what_they_are_worth(
    finished, folders
):
    model, targets = cpsd_lib.load_model(folders / "cpsd"), finished.dataset.table.targets
    logits = np.load(score_path(finished, 0, "cpsd", "held_out")).astype(float)
    of_held_out = targets[held_out_indices(finished, 0)]
    assert np.array_equal(model.thresholds, best_thresholds(expit(logits), of_held_out)) and len(of_held_out) == 14
    test = np.load(score_path(finished, 0, "cpsd", "test")).astype(float)
    of_test = targets[finished.dataset.table.indices("test")]
    f1 = precision_recall_f1(expit(test), of_test, model.thresholds)
    errors = [expected_calibration_error(expit(test / t + b), of_test) for t, b in ((1, 0), model.calibration)]
    card = (folders / "cpsd" / "README.md").read_text()
    assert f"| test | 24 | CF1 at the thresholds above | {100 * f1['CF1']:.1f} |" in card
    assert f"Expected calibration error on test: {100 * errors[0]:.1f} %" in card
    assert f"it is {100 * errors[1]:.1f} %." in card
    assert "best F1 on 14 held-out training images" in card and "14 held-out training images" in model.config.tuned_on
    counts = (of_test == 1).sum(0)
    assert f"| a, b | {counts[2]} |" in card and "no pretrained weights are in it" in card
    paths = test_files(finished)[:4]
    temperature, offset = model.calibration
    expected = expit(logit(model.predict(paths).to_numpy().astype(float)) / temperature + offset)
    np.testing.assert_allclose(model.predict(paths, calibrated=True), expected, atol=1e-6)


def test_the_card_s_own_lines_load_the_folder_and_predict_a_photo(finished, folders, monkeypatch):
    table = run_card(folders / "cpsd", monkeypatch, finished)["table"]
    assert list(table.columns) == ["1", "NA", "a, b", 'say "d"'] and list(table.index) == ["photo.jpg"]


def test_scores_of_another_model_tune_nothing(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.folder.parent, tmp_path / "outputs", ignore=shutil.ignore_patterns(".cache"))
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    path = tmp_path / "outputs" / "finished" / "evaluation" / "metrics.json"
    assert cpsd_lib.load_model("finished").thresholds is not None
    write_json(path, [record | {"model": "another"} for record in read_json(path)])
    model = cpsd_lib.load_model("finished")
    assert model.thresholds is None and model.calibration is None
    assert model.config.tuned_on == "none: 05_evaluation has not scored this model"
    with pytest.raises(ValueError, match="no calibrated probabilities: none: 05_evaluation has not"):
        model.predict([], calibrated=True)
    assert main(["export", "finished", "--to", str(tmp_path / "folder")]) == 0
    assert "Not known: 05_evaluation has not scored this model." in (tmp_path / "folder" / "README.md").read_text()


def test_what_was_scored_before_does_not_outlive_another_evaluation(finished):
    stale = score_path(finished, 0, "sd", "held_out")
    np.save(stale, np.zeros((1, 4)))
    (finished.folder / "evaluation" / "metrics.json").unlink()
    evaluate(finished)
    assert not stale.exists() and scored_by(finished, 0, "cpsd", "held_out") is not None


def test_what_is_scored_of_these_very_models_is_not_scored_again(finished, monkeypatch):
    before = evaluate(finished)
    settings = finished.params.evaluation.model_copy(update={"threshold": 0.4})
    other = Run(finished.params.model_copy(update={"evaluation": settings}))
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "predict_logits", None)
        assert evaluate(finished) == before
        with pytest.raises(TypeError):  # with another threshold it begins
            evaluate(other)
    assert not (finished.folder / "evaluation" / "metrics.json").exists()  # and what it began vouches for nothing
    assert evaluate(finished) == before


# ---- other programs --------------------------------------------------------------------------------------------------


def test_the_onnx_file_of_merged_experts_has_all_it_needs_inside_and_computes_the_same(
    finished, tmp_path, capsys, monkeypatch
):
    onnxruntime, row = pytest.importorskip("onnxruntime"), "teachers_co"
    assert main(["export", "finished", "--row", row, "--format", "onnx", "--to", str(tmp_path / "onnx")]) == 0
    assert "onnxruntime on 8 test images: logits differ by" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["1", "NA", "a, b", 'say "d"']
    defined = run_card(tmp_path / "onnx", monkeypatch, finished)
    expected = cpsd_lib.load_model("finished", row).predict("photo.jpg")
    assert defined["names"] == ["1", "NA", "a, b", 'say "d"']
    np.testing.assert_allclose(defined["probabilities"], expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"there is no .*model\.safetensors"):
        cpsd_lib.load_model(tmp_path / "onnx")


def test_a_model_folder_is_exported_as_its_run_is(finished, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    for row, form in (("teachers_co", "onnx"), ("baseline", "timm"), ("baseline", "cpsd")):
        model, again, of_run = (tmp_path / f"{row} {form} {what}" for what in ("model", "again", "of run"))
        assert main(["export", "finished", "--row", row, "--to", str(model)]) == 0
        assert main(["export", str(model), "--format", form, "--to", str(again)]) == 0
        card = (again / "README.md").read_text()
        assert card == model_card(finished, *finished_model(finished, row), again.name, form)
        if form == "onnx":
            assert "onnxruntime on random pixels" in capsys.readouterr().out and (again / "model.onnx").is_file()
            continue
        assert main(["export", "finished", "--row", row, "--format", form, "--to", str(of_run)]) == 0
        names = sorted(path.name for path in of_run.iterdir() if path.name != "README.md")
        assert [(again / name).read_bytes() for name in names] == [(of_run / name).read_bytes() for name in names]


def test_random_pixels_are_tried_where_the_photos_of_the_run_are_not(finished):
    images, what = _trial_images(finished, 16)
    assert what == "8 test images" and np.array_equal(images[0], finished.dataset.images[0])
    root = finished.params.data.root
    os.rename(root, f"{root}.away")
    try:
        images, what = _trial_images(opened_run("finished"), 16)
    finally:
        os.rename(f"{root}.away", root)
    assert "random pixels" in what and images.shape == (8, 3, 16, 16)


def test_timm_loads_the_backbone_strictly_and_merged_experts_are_refused(finished, tmp_path, capsys, monkeypatch):
    assert main(["export", "finished", "--format", "timm", "--to", str(tmp_path / "timm")]) == 0
    backbone = timm.create_model("test_resnet", num_classes=0)
    backbone.load_state_dict(load_file(tmp_path / "timm" / "backbone.safetensors"), strict=True)
    images, model = torch.rand(2, 3, 16, 16), cpsd_lib.load_model("finished")
    assert torch.equal(
        run_card(tmp_path / "timm", monkeypatch, finished)["backbone"].conv1[0].weight, backbone.conv1[0].weight
    )
    assert torch.equal(backbone.eval().forward_features(images), model.forward_features(images))
    capsys.readouterr()
    assert main(["export", "finished", "--row", "teachers_co", "--format", "timm", "--to", str(tmp_path / "co")]) == 1
    assert "take another row or format" in capsys.readouterr().err and not (tmp_path / "co").exists()


def test_the_card_of_a_model_whose_data_has_changed_since_has_no_counts_and_says_so(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.folder.parent, tmp_path / "outputs", ignore=shutil.ignore_patterns(".cache"))
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    path = tmp_path / "outputs" / "finished" / "data.json"
    write_json(path, read_json(path) | {"key": "another", "positives": {"test": [1]}})
    assert main(["export", "finished", "--to", str(tmp_path / "folder")]) == 0
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "the run's data has changed since, so that no counts stand here" in card
    assert "| class | threshold |\n|---|--:|\n| 1 | 0." in card
