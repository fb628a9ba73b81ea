"""Finished weights on disk: safetensors with a JSON beside them, written last, that says what they are."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from cpsd_lib.files import atomic, read_json, sha256, write_json


def save_learner(learner, folder, about):
    """Write a learner's weights as safetensors, then `about` and their hash as the JSON that makes them valid; return that."""
    path = folder / f"{learner.name}.safetensors"
    with atomic(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in learner.model.state_dict().items()}, temporary)
    entry = about | {
        "file": path.name,
        "sha256": sha256(path),
        "columns": [int(column) for column in learner.columns],
        "made_of": learner.made_of,
    }
    write_json(path.with_suffix(".json"), entry)
    return entry


def load_learner(learner, folder):
    """Load finished weights into the learner and return their record; None when absent, changed, or made of other things."""
    record = Path(folder) / f"{learner.name}.json"
    if not record.exists() or read_json(record)["made_of"] != learner.made_of:
        return None
    return load_weights(learner.model, record)


def load_weights(model, record):
    """Load the weights that the JSON at `record` describes and return it; None when the file is gone or was changed."""
    entry = read_json(record)
    path = Path(record).with_name(entry["file"])
    if not path.exists() or sha256(path) != entry["sha256"]:
        return None
    model.load_state_dict(load_file(path))
    model.eval()
    return entry
