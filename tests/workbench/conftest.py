"""A finished run of photos of every kind, shared by the tests of what can be done with one (made once, about 10 s)."""

import csv

import numpy as np
import pytest
from PIL import Image

from cpsd_lib.workbench.making import train_student, train_teachers
from cpsd_lib.workbench.run import cut_labels, open_run, save_params
from cpsd_lib.workbench.scoring import evaluate

CLASSES = ["1", "NA", "a, b", 'say "d"']  # texts that a reader of CSV may take for something else


def odd_picture(path, number):
    """Write a picture of a kind that `number` determines: upright or turned, CMYK, 16-bit, palette, with alpha, grey."""
    random = np.random.default_rng(number)
    pixels = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8))
    if number % 6 == 1:
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels.save(path.with_suffix(".jpg"), exif=exif)
        return path.with_suffix(".jpg")
    if number % 6 == 2:
        pixels.convert("CMYK").save(path.with_suffix(".jpg"))
        return path.with_suffix(".jpg")
    if number % 6 == 3:
        pixels = Image.fromarray(random.integers(0, 65536, (30, 40)).astype(np.uint16))
    elif number % 6 == 4:
        pixels.putalpha(Image.fromarray(random.integers(0, 256, (30, 40), np.uint8)))
    elif number % 6 == 5:
        pixels = pixels.convert("P")
    pixels.save(path.with_suffix(".png"))
    return path.with_suffix(".png")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The Run: baseline and + CPSD, whose teachers have one frozen trunk; held-out images; scored by 05_evaluation."""
    root = tmp_path_factory.mktemp("finished")
    (root / "photos" / "images").mkdir(parents=True)
    random, lines = np.random.default_rng(0), [["file_name", "split", "labels"]]
    for number in range(72):
        path = odd_picture(root / "photos" / "images" / f"{number:02d}", number)
        labels = ";".join(name for name in CLASSES if random.random() < 0.5)
        lines.append([path.name, "test" if number % 3 == 0 else "train", labels])
    with open(root / "photos" / "annotations.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPSD_OUTPUTS", str(root / "outputs"))
        settings = {"data": {"kind": "csv", "root": str(root / "photos"), "size": 16, "images": 6000}}
        settings |= {"train.epochs": 1, "train.batch_size": 16, "train.select": "val", "train.val_share": 0.3}
        settings |= {"partition.k": 2, "teachers.start": "baseline", "teachers.frozen_stages": 1, "name": "finished"}
        run = open_run("tiny", settings | {"student.rows": ["baseline", "cpsd"]})
        cut_labels(run)
        train_teachers(run, 0)
        train_student(run, 0, "cpsd")
        save_params(run)
        evaluate(run)
        yield run
