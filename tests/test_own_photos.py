"""README's road from somebody's labels to predictions: its own commands, on sixty small photos (about two minutes)."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from PIL import Image

from cpsd_lib import load_model
from cpsd_lib.data import decode

README = Path(__file__).resolve().parents[1] / "README.md"
SMALL = ["model.name=test_resnet", "model.weights=null", "data.size=32", "train.epochs=1", "seeds=1", "partition.k=2"]


def commands():
    """The commands of README's section, in order, as lists of words."""
    section = README.read_text().split("## Your own photos")[1].split("```bash\n")[1].split("```")[0]
    return [shlex.split(line, comments=True) for line in section.strip().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which all of them have run; each must end well."""
    root, random = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    (root / "new_photos").mkdir()
    lines = ["image,tags"]
    for number in range(70):
        labels = [name for name in ("cat", "dog", "ski lift") if random.random() < 0.5]
        pixels = random.integers(0, 255, (24, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / ("new_photos" if number >= 60 else ".") / f"photo {number}.jpg")
        lines += [f"photo {number}.jpg,{'|'.join(labels)}"] if number < 60 else []
    (root / "labels.csv").write_text("\n".join(lines))
    environment = {"CPSD_OUTPUTS": str(root / "outputs"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    for program, *words in commands():
        assert program == "cpsd"
        words += SMALL if words[0] == "run" or words[:2] == ["data", "check"] else []
        command = [sys.executable, "-m", "cpsd_lib", *words]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    return root


def test_readme_shows_six_commands_from_labels_to_an_exported_model():
    assert [words[1] for words in commands()] == ["data", "data", "run", "predict", "export", "export"]


def test_the_import_reads_each_photo_and_the_run_ends_in_a_report(folder):
    table = pd.read_csv(folder / "my_photos" / "annotations.csv", dtype=str, keep_default_na=False)
    assert len(table) == 60 and set(";".join(table["labels"]).split(";")) == {"cat", "dog", "ski lift", ""}
    assert (folder / "outputs" / "mine" / "report.html").is_file()


def test_new_photos_are_labelled_and_the_folder_and_onnx_say_the_same(folder):
    labelled = pd.read_csv(folder / "predictions.csv")
    columns = [name for name in labelled if name.startswith("p_")]
    assert len(labelled) == 10 and len(columns) == 3
    model = load_model(folder / "my_model")
    found = model.predict([folder / name for name in labelled["file_name"]])
    assert np.allclose(found.to_numpy(), labelled[columns].to_numpy(), atol=1e-5)
    session = onnxruntime.InferenceSession(folder / "my_onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = np.stack([decode(folder / name, 32) for name in labelled["file_name"]])
    (probabilities,) = session.run(["probabilities"], {session.get_inputs()[0].name: pixels})
    assert np.allclose(probabilities, found.to_numpy(), atol=1e-4)


def test_readmes_other_commands_are_words_that_the_program_knows():
    named = set(re.findall(r"^(?:make|cpsd) (\w+)", README.read_text(), flags=re.M))
    makefile = (README.parent / "Makefile").read_text()
    assert all(re.search(rf"^{name}:", makefile, flags=re.M) for name in named & {"demo", "test", "lab"})
