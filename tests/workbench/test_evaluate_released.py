"""`cpsd evaluate --released`: a checkpoint in each of the paper's layouts, scored on a small true-to-format copy of MS-COCO."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from small_copies import coco, voc

from cpsd_lib import cli
from cpsd_lib.data.readers.coco2014 import COCO_CLASSES
from cpsd_lib.models import released
from cpsd_lib.models.classifier import build_model
from cpsd_lib.models.heads import sine_position
from cpsd_lib.models.released import LAYOUTS
from cpsd_lib.support import write_json
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.published import no_figure, published
from cpsd_lib.workbench.run import Run
from cpsd_lib.workbench.scoring import against_paper, evaluate

PIXELS = 64
PARAMS = {"tresnet_l": "coco_tresnet_l", "resnext50_swsl": "coco_resnext50_swsl", "q2l_resnet101": "coco_q2l_resnet101"}
PARAMS |= {"resnet101": "coco_resnet101", "resnet101_tf": "coco_resnet101_tf"}


def released_state(name, num_classes=80):
    """A state dict in a release's layout, with its usual prefix, from random weights."""
    torch.manual_seed(0)
    vectors = torch.zeros(num_classes, 300) if name == "resnet101_tf" else None
    model = build_model(name, num_classes, label_vectors=vectors)
    state = {}
    for key, value in model.state_dict().items():
        if key not in ("mean", "std", "head.label_vectors"):
            old, new = next((old, new) for old, new in LAYOUTS[name].items() if key.startswith(new))
            state["module." + old + key[len(new) :]] = value
    if name == "q2l_resnet101":
        state["module.backbone.1.pe"] = sine_position(2048, 14, 14)
    return state


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Folders of a user: MS-COCO, label vectors, outputs."""
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("COCO2014", str(coco(tmp_path / "coco")))
    vectors = np.random.default_rng(0).standard_normal((80, 300)).astype(np.float32)
    np.savez(tmp_path / "vectors.npz", class_names=np.array(COCO_CLASSES), vectors=vectors)
    monkeypatch.setenv("GLOVE", str(tmp_path / "vectors.npz"))
    return tmp_path


def run_of(place, name, checkpoint="F.ckpt", **more):
    overrides = {"evaluation.released": name, "evaluation.checkpoint": str(place / checkpoint), "device": "cpu"}
    return Run(load_params(PARAMS[name], overrides | {"data.size": PIXELS} | more))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_of_each_layout_is_scored(place, name):
    state = released_state(name)
    torch.save({"state_dict": state} if name == "resnet101" else state, place / "F.ckpt")
    (record,) = evaluate(run_of(place, name))
    assert record["row"] == "released" and record["split"] == "test" and 0 < record["mAP"] <= 100
    assert record["images"] == 2 and record["classes"] == 80  # the third image has no label
    scores = np.load(place / "outputs" / PARAMS[name] / "evaluation" / "scores" / "seed0-released-test.npy")
    assert scores.shape == (2, 80) and np.isfinite(scores).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_taken_for_another_model_names_which_one_it_is(name):
    state = {key.removeprefix("module."): value for key, value in released_state(name, 3).items()}
    for other in LAYOUTS:
        hint = released._looks_like(other, state, True)
        assert hint.startswith(f"this looks like {name}, not {other} (give --released {name}") != (name == other)


def test_the_command_prints_ours_beside_the_papers_row_and_leaves_a_report(place, capfd, monkeypatch):
    torch.save(released_state("resnext50_swsl"), place / "paper model.ckpt")
    monkeypatch.chdir(place)  # a file on the command line is looked for where the user is
    words = ["evaluate", "--released", "resnext50_swsl", "--checkpoint", "paper model.ckpt", "coco_resnext50_swsl"]
    assert cli.main([*words, "device=cpu"]) == 0
    printed = capfd.readouterr().out
    assert "released checkpoint" in printed and "ours  paper  difference" in printed
    assert "87.7" in printed  # the paper's + CPSD
    assert "2 labelled" in printed or "expected 40,137" in printed  # so few images are not comparable, and it says so
    folder = place / "outputs" / "coco_resnext50_swsl_paper-model"
    assert sorted(path.name for path in folder.glob("*.ipynb")) == ["05_evaluation.ipynb"]
    assert "beside the paper" in (folder / "report.html").read_text()
    assert cli.main([*words, "device=cpu"]) == 0 and "05_evaluation: done" in capfd.readouterr().out
    (place / "paper model.json").write_text(json.dumps({"class_names": sorted(COCO_CLASSES, reverse=True)}))
    # A word beside the checkpoint changes what it means; the scores are made again, and here refused.
    assert cli.main([*words, "device=cpu"]) == 2
    assert "in another order" in capfd.readouterr().err


def refused(run, word):
    with pytest.raises(ValueError, match=word):
        evaluate(run)


def test_other_classes_other_inputs_or_another_size_are_refused(place, monkeypatch):
    torch.save(released_state("resnext50_swsl"), place / "F.ckpt")
    run = run_of(place, "resnext50_swsl")
    beside = place / "F.json"
    beside.write_text(json.dumps({"class_names": [*COCO_CLASSES[1:], COCO_CLASSES[0]]}))
    refused(run, "in another order")
    inputs = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    beside.write_text(json.dumps({"preprocessing": inputs}))
    refused(run, "model.normalize is none")
    assert evaluate(run_of(place, "resnext50_swsl", **{"model.normalize": "imagenet"}))
    assert evaluate(run_of(place, "resnext50_swsl", **{"model.normalize": "auto"}))
    beside.write_text(json.dumps({"preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], "size": 448}}))
    refused(run, "made for 448 pixels, but data.size is 64")
    beside.write_text(json.dumps({"class_name": list(COCO_CLASSES)}))
    refused(run, "did you mean class_names")
    (place / "junk.ckpt").write_text("hello")
    refused(run_of(place, "resnext50_swsl", "junk.ckpt"), "no readable file of weights")
    beside.unlink()
    voc_run = run_of(place, "resnext50_swsl", **{"data.kind": "voc2007", "data.root": str(voc(place / "voc"))})
    refused(voc_run, "does not fit the released resnext50_swsl with these classes")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--released", "resnet50", "--checkpoint", "F.ckpt"], "evaluation.released: must be one of 'resnet101', "),
        (["--released", "resnet101", "--checkpoint", "gone.ckpt"], "evaluation.checkpoint: there is no file"),
        (["--released", "tresnet_l", "--checkpoint", "F.ckpt"], "these are the parameters of model resnet101"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_starts(place, capsys, monkeypatch, words, message):
    (place / "F.ckpt").touch()
    monkeypatch.chdir(place)
    assert cli.main(["evaluate", *words, "coco_resnet101"]) == 2
    assert message in capsys.readouterr().err
    assert not (place / "outputs").exists()


# ---- the paper's figures ---------------------------------------------------------------------------------------------


def params(place, name, **overrides):
    return load_params(name, overrides, paths=False)


def test_every_row_of_the_papers_tables_has_a_parameter_file_and_both_its_figures(place):
    figures = {name: published(params(place, name)) for name in PARAMS.values()}
    assert figures["coco_resnet101"]["mAP"]["baseline"] == 81.6 and figures["coco_resnet101"]["OF1"]["cpsd"] == 80.9
    assert published(params(place, "coco_resnet101_tf_576"))["mAP"]["cpsd"] == 86.7
    of_tresnet = published(params(place, "nuswide_tresnet_l")).loc["cpsd"].dropna()
    assert of_tresnet.to_dict() == {"mAP": 66.5, "CF1": 64.6, "OF1": 75.5}
    assert published(params(place, "nuswide_resnet101_tf"))["CF1"]["baseline"] == 62.8
    # CPSD gains in every row, the component rows lie between: a slip of the pen would not.
    for name in ("coco_resnet101_tf_576", "nuswide_tresnet_l", "nuswide_resnet101_tf", *PARAMS.values()):
        rows = published(params(place, name))
        assert rows["mAP"].min() == rows["mAP"]["baseline"] and rows["mAP"].max() == rows["mAP"]["cpsd"], name
        for _, scores in rows.iterrows():
            if scores["CP"] > 0:  # F1 is the harmonic mean of its two, to about the digit that is printed
                for kind in "CO":
                    p, r = scores[f"{kind}P"], scores[f"{kind}R"]
                    assert scores[f"{kind}F1"] == pytest.approx(2 * p * r / (p + r), abs=0.16), (name, scores)


def test_ours_stands_beside_the_papers_with_the_difference_of_the_mean_over_seeds(place):
    records = pd.DataFrame(
        {"row": ["cpsd", "cpsd", "teachers_co", "cpsd"], "split": ["test", "test", "test", "test_shifted"]}
        | {"seed": [0, 1, 0, 0], "mAP": [83.0, 84.0, 10.0, 5.0]}
        | dict.fromkeys(("CP", "CR", "CF1", "OP", "OR", "OF1"), 50.0)
    )
    table = against_paper(records, params(place, "coco_resnet101"))
    assert table.loc[("+ CPSD", "mAP")].tolist() == pytest.approx([83.5, 83.1, 0.4])
    assert len(table) == 7
    assert against_paper(records, params(place, "demo")) is None
    assert against_paper(records, params(place, "coco_resnet101", **{"data.size": 224})) is None


def test_what_the_paper_has_no_figure_for_is_named_for_the_papers_models_only(place):
    assert no_figure(params(place, "coco_resnet101")) is None  # it has
    assert no_figure(params(place, "demo")) is None  # no model of the paper
    text = no_figure(params(place, "coco_resnet101_tf", **{"data.size": 224}))
    assert text.startswith("the paper has no figure of resnet101_tf on coco2014 at 224 px, only at 448 and 576 px")
    scored = {"data.size": 64, "evaluation.released": "resnet101", "evaluation.checkpoint": "F.ckpt"}
    assert "at 64 px, only at 448 px" in no_figure(params(place, "coco_resnet101", **scored))
    assert no_figure(params(place, "voc2007_resnet101")) == "the paper has no figure of resnet101 on voc2007"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"data.limit": 1000}, "with data.limit = 1000"),
        ({"partition.k": 3}, "with partition.k = 3 (only 5)"),
        ({"student.alpha": 0.3, "partition.k": 4}, "with partition.k = 4 (only 5) and student.alpha = 0.3 (only 0.5)"),
    ],
)
def test_the_papers_figure_stands_beside_no_subset_and_no_other_k_or_alpha(place, changed, words):
    assert published(params(place, "coco_resnet101", **changed)).empty
    assert no_figure(params(place, "coco_resnet101", **changed)).endswith(words)
    scored = changed | {"evaluation.released": "resnet101", "evaluation.checkpoint": "F.ckpt"}
    # A checkpoint was trained with the paper's own, and is scored on what there is.
    assert published(params(place, "coco_resnet101", **scored)).empty == ("data.limit" in changed)


def test_what_is_said_of_the_data_is_that_of_this_scoring(place):
    torch.save(released_state("resnet101"), place / "F.ckpt")
    run = run_of(place, "resnet101")
    evaluate(run)
    described = run.described
    write_json(run.folder / "data.json", described | {"incomplete": "of another day"})
    evaluate(run)  # its scores are there already
    assert run.described == described
