"""`cpsd predict`: photos in, a CSV of labels out, gone on with after a stop; on the finished run of odd photos."""

import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

import cpsd_lib
from cpsd_lib.cli import main
from cpsd_lib.support import read_json
from cpsd_lib.workbench import predicting
from cpsd_lib.workbench.scoring import score_path

NAMES = ["1", "NA", "a, b", 'say "d"']


@pytest.fixture
def photos(finished, tmp_path, monkeypatch):
    """The working folder holds photos/: the test photos, one of them deeper, two broken ones and what is no photo."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    for place in finished.dataset.table.indices("test"):
        path = finished.dataset.source.paths[place]
        shutil.copy(path, tmp_path / "photos" / ("deeper" if path.stem == "06" else ".") / path.name)
    (tmp_path / "photos" / "empty.jpg").write_bytes(b"")
    (tmp_path / "photos" / "broken.png").write_bytes((tmp_path / "photos" / "03.png").read_bytes()[:500])
    (tmp_path / "photos" / "notes.doc").write_text("no photo")
    return tmp_path / "photos"


def read(path):
    return pd.read_csv(path, dtype={"file_name": str, "labels": str}, keep_default_na=False)


def test_a_folder_becomes_a_csv_with_stage_05_s_scores_and_tuned_labels_whatever_cannot_be_read(
    finished, photos, capsys
):
    assert main(["predict", "finished", "photos", "--csv", "out.csv", "--batch-size", "5"]) == 0
    printed, table = capsys.readouterr(), read("out.csv")
    assert "out.csv: 24 photos in" in printed.out and "1 file of other kinds" in printed.err
    assert "2 photos could not be read:\n  photos/broken.png: broken image" in printed.err
    assert "photos/empty.jpg: the file is empty" in printed.err
    assert list(table.columns) == ["file_name", "labels", *(f"p_{name}" for name in NAMES)]
    top = sorted(name for name in table["file_name"] if "deeper" not in name)
    assert table["file_name"].tolist() == [*top, "photos/deeper/06.png"]
    table = table.sort_values("file_name", key=lambda names: names.map(os.path.basename))
    scores = expit(np.load(score_path(finished, 0, "cpsd", "test")).astype(float))
    np.testing.assert_allclose(table[[f"p_{name}" for name in NAMES]], scores, atol=1e-5)
    thresholds = cpsd_lib.load_model("finished").thresholds.astype(np.float32)
    expected = [[n for n, s, t in zip(NAMES, line, thresholds, strict=True) if np.float32(s) >= t] for line in scores]
    different = sum(text != ";".join(names) for text, names in zip(table["labels"], expected, strict=True))
    assert different == 0
    assert set(read_json("out.csv.json")["unreadable"]) == {"photos/broken.png", "photos/empty.jpg"}
    assert main(["predict", "finished", "photos/empty.jpg", "photos/00.png", "--strict"]) == 1


def test_a_list_names_photos_and_a_line_a_photo_is_printed_without_a_csv(photos, capsys, tmp_path):
    (tmp_path / "list.txt").write_text("photos/00.png\nphotos/missing.jpg\n\n")
    assert main(["predict", "finished", "list.txt", "photos/00.png", "--threshold", "0.99"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("photos/00.png: no label (highest: ") and printed.out.count("\n") == 1
    assert "1 photo could not be read:\n  photos/missing.jpg: the file does not exist" in printed.err
    assert main(["predict", "finished", "photos/00.png", "--threshold", "top3"]) == 0
    assert capsys.readouterr().out.count(", ") >= 2


def test_top_3_and_calibrated_probabilities_reach_the_csv(photos):
    assert main(["predict", "finished", "photos", "--csv", "top.csv", "--threshold", "top3", "--calibrated"]) == 0
    table, model = read("top.csv"), cpsd_lib.load_model("finished")
    expected = model.predict(table["file_name"].tolist(), calibrated=True)
    np.testing.assert_allclose(table.filter(like="p_"), expected, atol=1e-6)
    assert (table["labels"].str.count(";") == 2).all()
    assert main(["predict", "finished", "photos", "--csv", "half.csv", "--threshold", "0.5", "--calibrated"]) == 0
    table = read("half.csv")
    counts = [len([name for name in text.split(";") if name]) for text in table["labels"]]
    assert counts == (table.filter(like="p_") >= 0.5).sum(axis=1).tolist()


@pytest.mark.parametrize("end", [0, 1, 25, -1])
def test_a_csv_cut_off_anywhere_is_gone_on_with_and_ends_the_same(photos, end, capsys):
    words = ["predict", "finished", "photos", "--csv", "out.csv"]
    assert main([*words, "--resume"]) == 0
    whole = (photos.parent / "out.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    cut = b"".join(lines[:6]) + lines[6][:end] if end >= 0 else whole[:-1]
    (photos.parent / "out.csv").write_bytes(cut)
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert (photos.parent / "out.csv").read_bytes() == whole
    assert f"{5 if end >= 0 else 23} were there already" in capsys.readouterr().out
    assert main([*words, "--resume"]) == 0
    assert (photos.parent / "out.csv").read_bytes() == whole


def test_a_csv_of_another_model_other_settings_or_other_photos_is_not_gone_on_with(photos, capsys):
    words = ["predict", "finished", "photos/00.png", "--csv", "out.csv"]
    assert main(words) == 0
    before = (photos.parent / "out.csv").read_bytes()
    for change, message in (
        ([], "out.csv exists; --resume goes on with it"),
        (["--resume", "--row", "baseline"], "another row, thresholds, calibration, weights"),
        (["--resume", "--threshold", "0.5"], "another threshold"),
        (["--resume", "--calibrated"], "another calibrated"),
    ):
        assert main([*words, *change]) == 2
        assert message in capsys.readouterr().err
    assert main(["predict", "finished", "photos/03.png", "--csv", "out.csv", "--resume"]) == 2
    assert "has other photos, such as photos/00.png" in capsys.readouterr().err
    assert (photos.parent / "out.csv").read_bytes() == before
    (photos.parent / "out.csv").write_bytes(before.replace(b"labels", b"label"))
    assert main([*words, "--resume"]) == 1
    assert "out.csv is damaged, or not this model's" in capsys.readouterr().err
    for damaged in (before.rpartition(b",")[0] + b"\n", before[:-1] + b",1\n"):
        (photos.parent / "out.csv").write_bytes(damaged)
        assert main([*words, "--resume"]) == 1
        assert "out.csv is damaged" in capsys.readouterr().err
    (photos.parent / "out.csv").write_bytes(before)
    (photos.parent / "out.csv.json").unlink()
    assert main([*words, "--resume"]) == 2
    assert "was made by another model or other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nowhere"], 1, "there is no file or folder nowhere"),
        (["photos/deeper/none"], 1, "there is no file or folder"),
        (["void"], 1, "no image is in the folder void or below it (1 other file)"),
        (["photos/empty.jpg"], 1, "none of 1 photo could be read:\n  photos/empty.jpg: the file is empty"),
        (["photos", "--resume"], 2, "--resume goes on with a CSV: name it by --csv"),
        (["photos", "--device", "cuda"], 1, "torch sees no GPU"),
        (["photos", "--row", "sd"], 2, "has no row 'sd'; its rows are baseline"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_photo_is_read(photos, capsys, words, status, message):
    (photos.parent / "void").mkdir()
    (photos.parent / "void" / "list.csv").write_text("")
    assert main(["predict", "finished", *words]) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--threshold", "tune"], ["--threshold", "2"], ["--batch-size", "0"], ["--seed", "one"]]
)
def test_an_option_of_another_form_is_refused_by_the_command_line(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["predict", "finished", "photos", *words])
    assert caught.value.code == 2 and "error: argument" in capsys.readouterr().err


def test_without_tuned_thresholds_0_5_is_used_with_a_note_and_tuned_is_refused(photos, capsys, monkeypatch):
    real = cpsd_lib.load_model("finished")
    real.thresholds, why = None, "none: the run held out no training images"
    real.config = real.config.model_copy(update={"thresholds": None, "tuned_on": why})
    predicting.label_photos(real, ["photos/00.png"])
    assert f"threshold 0.5 for every class, tuned on: {why}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no tuned thresholds, tuned on: none.*take --threshold 0.5 or top3"):
        predicting.label_photos(real, ["photos/00.png"], threshold="tuned")


def test_ctrl_c_stops_it_between_two_blocks_and_the_same_command_with_resume_goes_on(finished, photos):
    for copy in range(1000):
        for number in ("00", "12", "24"):
            shutil.copy(photos / f"{number}.png", photos / f"copy{copy}_{number}.png")
    words = ["-m", "cpsd_lib", "predict", "finished", "photos", "--csv", "out.csv", "--batch-size", "1"]
    # Started in the background of a shell, this process ignores Ctrl-C, and so would the one that it starts.
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    stopped = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, **heeds)
    csv, end = photos.parent / "out.csv", time.monotonic() + 600
    while not csv.exists() or csv.stat().st_size < 2000:
        assert time.monotonic() < end and stopped.poll() is None
        time.sleep(0.005)
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate(timeout=300)
    assert stopped.returncode == 130 and "the same command with --resume goes on" in said
    assert 0 < len(read(csv)) < 3_024
    assert main([*words[2:], "--resume"]) == 0
    table = read(csv)
    assert len(table) == 3_024 and table["file_name"].is_unique


def test_the_model_is_folded_and_leaves_cores_to_the_decoding(photos, monkeypatch):
    seen, real = [], predicting.decode_batches

    def slowly(*arguments):
        for batch in real(*arguments):
            time.sleep(0.5)
            yield batch

    def look(model, pixels, batch_size):
        assert not any(isinstance(one, torch.nn.BatchNorm2d) for one in model.modules())
        seen.append(torch.get_num_threads())
        return np.full((len(pixels), 4), 0.3, np.float32)

    monkeypatch.setattr(predicting, "decode_batches", slowly)
    monkeypatch.setattr(predicting, "predict", look)
    monkeypatch.setattr(predicting, "cores", lambda: 2)
    model, threads = cpsd_lib.load_model("finished"), torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        photos = [f"photos/{number:02d}.png" for number in (0, 3, 12, 15)]
        predicting.label_photos(model, photos, batch_size=1)
        assert seen[0] == seen[1] == 4 and seen[-1] == 1 and torch.get_num_threads() == 4
        seen.clear()
        monkeypatch.setattr(predicting, "_show", lambda *_: 1 / (len(seen) < 3))  # fails when the threads are fewer
        with pytest.raises(ZeroDivisionError):
            predicting.label_photos(model, photos, batch_size=1)
        assert seen[-1] == 1 and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


def test_tuned_thresholds_are_calibrated_as_the_probabilities_are():
    model = SimpleNamespace(thresholds=np.array([0.5, 0.2]), class_names=["a", "b"])
    threshold, top = predicting._rule(model, None, (2.0, 1.0))
    assert top is None and threshold == pytest.approx(expit([1.0, np.log(0.25) / 2 + 1]))
