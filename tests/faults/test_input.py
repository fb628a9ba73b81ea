"""Hostile input: parameters that are refused at once, and weights that execute nothing."""

import codecs
import io
import json
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from cpsd_lib.data.readers.labels import read_labels
from cpsd_lib.models import build_model, read_label_vectors, read_state
from cpsd_lib.support import sha256, write_json
from cpsd_lib.training.checkpoint import CHECKPOINT, SUMS, resume
from cpsd_lib.workbench.model_folder import WEIGHTS, read_model
from cpsd_lib.workbench.yaml_files import repo_root
from faults import count, tries

TIMES = 5  # the CPU time of refusing a small file: a slow machine, or others beside, change both
MIB = 300  # of memory, from the start of Python on
SMALL = "name: small\ndata: {kind: scenes, size: 32, images: 400}\nmodel: {name: test_resnet}\n"


def laughs(rng):
    """Return ten lines that stand for a billion values, as a value of a parameter that may be long."""
    width, word = rng.randint(8, 12), rng.choice(["sd", "cpsd", "1", "{a: 1}"])
    lines = [f"x0: &x0 [{', '.join([word] * width)}]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * width)}]" for n in range(1, 10)]
    return SMALL + "\n".join(lines) + f"\nstudent: {{rows: *x{rng.randint(6, 9)}}}\n"


def merged(rng):
    """Return mappings merged into mappings: each nine times the one before."""
    lines = [f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}" for n in range(1, 9)]
    return "x0: &x0 {lr: 1, momentum: 2}\n" + "\n".join(lines) + f"\n{SMALL}train: *x{rng.randint(5, 8)}\n"


def long_list(rng):
    return f"{SMALL}student: {{rows: [{'cpsd, ' * rng.choice([5_000, 8_000, 800_000])}]}}\n"


def many_names(rng):
    return SMALL + "".join(f"name_{n}: {n}\n" for n in range(rng.choice([3_000, 300_000])))


def deep(rng):
    opened = rng.choice(["[", "{a: ", "- ", "? ", "[[["])
    return f"{SMALL}seed: {opened * rng.choice([60, 1_000, 15_000, 1_000_000])}\n"


def long_value(rng):
    text = rng.choice(
        ["9", "x", "1_", "0.", "é", "\\x41", "'", '"', "/a", "${A}", "~", "*a", "!", "%", "\t", "-", "1e", "../"]
    )
    quoted = rng.choice(["{}", "'{}'", '"{}"', "|\n  {}", "!!float {}", "!!timestamp {}", "!!binary {}"])
    name = rng.choice(["seed", "name", "device", "protocol", "recipe", "method", "train", "teacher_model"])
    return f"{SMALL}{name}: {quoted.format(text * rng.choice([3_000, 30_000, 1_000_000]))}\n"


def tagged(rng):
    tag = rng.choice(
        ["python/object/apply:os.system", "python/name:os.system", "python/module:os", "python/object/new:os.system"]
    )
    return f"{SMALL}seed: !!{tag} ['touch hit']\n"


def itself(rng):
    return SMALL + rng.choice(["train: &t {lr: *t}\n", "seed: &s [*s]\n", "model: &m {options: {a: [*m]}}\n"])


def odd_name(rng):
    escape = rng.choice(["\\e[31m", "\\0", "\\r", "\\a", "\\x9b1m", "\\u202e", "\\n"])
    return SMALL.replace("name: small", f'name: "a{escape}b"') + rng.choice(["", f'"{escape}": 1\n'])


def no_text(rng):
    return rng.randbytes(rng.choice([1, 1_000, 1_000_000]))


PARAMETERS = [laughs, merged, long_list, many_names, deep, long_value, tagged, itself, odd_name, no_text]


# The process itself says what it used: to its parent it counts what the parent had when it forked.
MEASURED = """
import re, sys, time
from cpsd_lib.cli import main
status = main(sys.argv[1:])
print("used", time.process_time(), int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
sys.exit(status)
"""


def cpsd(words, folder):
    """Run one command in a process of its own; return (status, what it said, CPU seconds, MiB at most)."""
    environment = os.environ | {"CPSD_OUTPUTS": str(folder / "outputs")}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], cwd=repo_root(), env=environment, capture_output=True, text=True
    )
    seconds, mib = done.stdout.rpartition("used")[2].split() or (0, 0)
    return done.returncode, done.stderr, float(seconds), float(mib)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """CPU seconds that this machine takes to refuse a small file with an unknown name."""
    folder = tmp_path_factory.mktemp("usual")
    (folder / "p.yaml").write_text(f"{SMALL}sed: 1\n")
    status, _, seconds, _ = cpsd(["run", str(folder / "p.yaml")], folder)
    assert status == 2 and seconds > 0
    return seconds


@pytest.mark.parametrize("number", range(tries(200)))
def test_hostile_parameters_are_refused_at_the_price_of_small_ones_and_within_300_mib(tmp_path, number, usual):
    rng = random.Random(number)
    made = PARAMETERS[number % len(PARAMETERS)](rng)
    (tmp_path / "p.yaml").write_bytes(made if isinstance(made, bytes) else made.encode())
    command = rng.choice(["run", "cost", "grid"])
    status, text, seconds, mib = cpsd([command, str(tmp_path / "p.yaml")], tmp_path)
    assert status == 2 and "Traceback" not in text and len(text) < 50_000, (made[:200], status, text[-500:])
    assert not (tmp_path / "hit").exists() and not (tmp_path / "outputs").exists()
    assert seconds < TIMES * usual and mib < MIB, (made[:200], seconds, usual, mib)
    count("hostile parameter files", f"refused within {TIMES} times the CPU time of a small wrong file and {MIB} MiB")


# ---- weights ---------------------------------------------------------------------------------------------------------


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payload(rng, hit):
    """Return an object whose unpickling writes the file `hit`, one way or another."""
    code = f"open({str(hit)!r}, 'w').close()"
    return rng.choice(
        [
            Call(os.system, f"touch {hit}"),
            Call(exec, code),
            Call(eval, f"[{code}]"),
            Call(open, str(hit), "w"),
            Call(subprocess.call, ["touch", str(hit)]),
            Call(codecs.open, str(hit), "w"),
            Call(os.mkdir, str(hit)),
            Call(getattr, Call(__import__, "os"), "getcwd"),
            Call(torch.load, str(hit)),
            Call(np.save, str(hit), 1),
        ]
    )


def weights_file(rng, hit):
    """Return (name, bytes) of a file that claims to hold weights, with a payload somewhere in it."""
    evil = payload(rng, hit)
    held = rng.choice(
        [evil, [evil], {"state_dict": evil}, {"conv1.weight": evil}, {"model": {"a": torch.zeros(1), "b": evil}}]
    )
    buffer, kind = io.BytesIO(), rng.choice(["zip", "legacy", "plain", "protocol 0", "safetensors"])
    if kind in ("zip", "legacy"):
        torch.save(held, buffer, _use_new_zipfile_serialization=kind == "zip")
    else:
        pickle.dump(held, buffer, protocol=0 if kind == "protocol 0" else 4)
    return "w.safetensors" if kind == "safetensors" else rng.choice(["w.pth", "w.ckpt"]), buffer.getvalue()


def as_weights(path, folder):
    build_model("test_resnet", 2, weights=path)


def as_model_folder(path, folder):
    write_json(folder / "config.json", CONFIG | {"sha256": {WEIGHTS: sha256(path)}})
    os.replace(path, folder / WEIGHTS)
    read_model(folder)


def as_checkpoint(path, folder):
    write_json(folder / SUMS, [sha256(path)])
    os.replace(path, folder / CHECKPOINT)
    return resume(folder, [], {"learners": {}}, "cpu")


CONFIG = {
    "run": "r",
    "row": "cpsd",
    "seed": 0,
    "class_names": ["a", "b"],
    "parts": None,
    "frozen_stages": 0,
    "size": 32,
}
CONFIG |= {"architecture": {"name": "test_resnet"}, "preprocessing": {}, "thresholds": None, "calibration": None}
CONFIG |= {"tuned_on": "none", "recipe": [], "versions": {}}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("number", range(tries(200)))
def test_malicious_weights_are_refused_and_execute_nothing(tmp_path, number):
    rng, hit = random.Random(number), tmp_path / "hit"
    name, content = weights_file(rng, hit)
    path = tmp_path / name
    path.write_bytes(content)
    read = [as_weights, as_model_folder, as_checkpoint][number % 3]
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        read(path, tmp_path)
    assert not hit.exists()
    count("malicious weights", "refused by name, nothing executed")


@pytest.mark.parametrize("number", range(tries(40)))
def test_malicious_arrays_are_refused_and_execute_nothing(tmp_path, number):
    rng, hit, path = random.Random(number), tmp_path / "hit", tmp_path / "labels.npz"
    np.savez(path, class_names=["a", "b"], vectors=np.zeros((2, 3)), image_id=[1], targets=np.zeros((1, 1), np.uint8))
    with np.load(path) as arrays:
        whole = dict(arrays)
    as_labels = number % 2 == 0
    evil = rng.choice(["class_names", "image_id", "targets"] if as_labels else ["class_names", "vectors"])
    np.savez(path, **whole | {evil: np.array([payload(rng, hit)], object)})
    with pytest.raises(ValueError, match=r"labels\.npz"):
        read_labels(tmp_path) if as_labels else read_label_vectors(path, ["a"])
    assert not hit.exists()
    count("malicious arrays", "refused by name, nothing executed")


def test_headers_that_promise_terabytes_are_refused_by_them(tmp_path):
    path = tmp_path / "w.safetensors"
    header = {"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    for content in (json.dumps(header).encode(), b" " * 10):
        for length in (len(content), 2**40, 2**63):
            path.write_bytes(length.to_bytes(8, "little") + content)
            with pytest.raises(ValueError, match=r"w\.safetensors"):
                read_state(path)
            count("safetensors whose header promises terabytes", "refused by the header")
