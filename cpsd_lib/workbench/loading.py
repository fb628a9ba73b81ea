"""Parameter files checked: recipe, method and overrides resolved, and pydantic's errors in the words of a YAML file."""

import re
from typing import get_args

from pydantic import ValidationError

from cpsd_lib.support import counted
from cpsd_lib.workbench.defaults import RECIPES, method_sections
from cpsd_lib.workbench.params import DataParams, Params, Section, StudentParams, TeacherParams, TrainParams
from cpsd_lib.workbench.yaml_files import ParameterError, find_params, near_name, read_params, set_dotted

# What pydantic says, in the words of whoever wrote the YAML; in this order.
_WORDS = {
    "Input should": "must",
    "String should": "must",
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid dictionary": "a section of `name: value` lines",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
}
MODELS = ("model", "teacher_model", "wide_model")
_YAML = {None: "null", True: "true", False: "false"}


def format_error(fault, location):
    """Return where a fault is, what a value must be and what it is; fault: one of ValidationError.errors()."""
    where, kind, value = ".".join(map(str, location)), fault["type"], fault["input"]
    if kind == "missing":
        return f"{where}: is needed and has no default"
    if kind == "value_error":  # our own validators
        text = fault["msg"].removeprefix("Value error, ")
    else:
        text = re.sub(r" or instance of \w+$|, got a number with .*", "", fault["msg"])
        for pydantics, ours in _WORDS.items():
            text = text.replace(pydantics, ours)
        text = text.replace("must be", "must be one of") if kind == "literal_error" else text
    if not isinstance(value, dict):  # a whole section is too long to repeat
        got = _YAML[value] if value is None or isinstance(value, bool) else repr(value)
        text = f"{text}; got {got[:80]}"
    return f"{where}: {text}" if where else text  # an error of several sections names them itself


def load_params(source, overrides=None, paths=True):
    """Return the checked Params of a YAML file (a path, or a name in params/) with `overrides`, a dict of dotted keys.

    paths=False takes files and folders as they are written, for a look at a run whose data is not on this machine.
    Raises ParameterError that lists every fault at once, with the nearest name for an unknown key.
    """
    raw = read_params(find_params(source))
    if "vary" in raw:
        raise ParameterError(f"{source} is a grid, many runs in one file; run it by: cpsd grid {source}")
    if isinstance(raw.get("engine"), str):  # `engine: ray` is short for its kind
        raw["engine"] = {"kind": raw["engine"]}
    for key, value in (overrides or {}).items():
        key = "engine.kind" if key == "engine" and isinstance(value, str) else key
        # A section is laid over the file's name by name, as `extends` does it.
        section = raw.get(key)
        set_dotted(raw, key, section | value if isinstance(section, dict) and isinstance(value, dict) else value)
    return resolve(raw, paths)


def data_on_disk(data):
    """Return DataParams `data` with its paths resolved; ParameterError where one is not there."""
    try:
        return DataParams.model_validate(data.model_dump())
    except ValidationError as error:
        raise ParameterError(
            "\n".join(format_error(fault, ("data", *fault["loc"])) for fault in error.errors())
        ) from None


def check_count(params, table):
    """Raise ParameterError where a LabelTable leaves a training fewer than two images, after those that `select: val` holds out.

    Batch norm has no statistics of one image.
    """
    train, val = len(table.indices("train")), len(table.indices("val"))
    for name, training in (("teachers", params.teachers), ("student", params.student)):
        held_out = training.select == "val" and not val and params.protocol == "honest" and params.data.kind != "labels"
        if held_out and train - held_out_count(training, train) < 2:
            raise ParameterError(
                f"{name}.select: val holds out {held_out_count(training, train)} of {counted(train, 'training image')}, and a "
                "training needs two of them: give more images, a split val, or select: last"
            )


def held_out_count(training, count):
    """Return how many of `count` training images `select: val` holds out where the data has no val split."""
    return max(1, int(training.val_share * count))


def resolve(raw, paths=True):
    """Return Params of a raw mapping: recipe, then `train` (both trainings), then the method, then `teachers` and `student`."""
    raw, faults = dict(raw), []
    # A wrong recipe is a fault among the others, and Params names it.
    recipe = next((RECIPES[name] for name in RECIPES if raw.get("recipe") == name), RECIPES["default"])
    sections = {name: raw.get(name) for name in ("train", "teachers", "student", *MODELS)}
    for name, section in sections.items():
        if section is not None and not isinstance(section, dict):
            faults.append(f"{name}: must be a section of `name: value` lines, not {section!r:.80}")
        sections[name] = section if isinstance(section, dict) else {}
    raw.pop("train", None)
    shared = {name: value for name, value in sections["train"].items() if name in TrainParams.model_fields}
    faults += [_unknown(("train", str(name)), TrainParams) for name in sections["train"] if name not in shared]
    usual = {name: recipe["train"] | recipe.get(name, {}) | shared for name in ("teachers", "student")}
    method = method_sections(raw.get("method"), usual["teachers"] | sections["teachers"])
    for name in usual:
        raw[name] = usual[name] | method[name] | sections[name]
    for name in MODELS:
        if sections[name] or name == "model":
            raw[name] = recipe.get("model", {}) | sections[name]
    try:
        params = Params.model_validate(raw, context={"paths": paths})
    except ValidationError as error:
        faults += [_explain(fault, shared, sections) for fault in error.errors()]
    if faults:
        faults = list(dict.fromkeys(faults))
        raise ParameterError("\n".join(faults[:40] + [f"... and {len(faults) - 40:,} more"] * (len(faults) > 40)))
    return params


def own_params(params):
    """Return what Params have beside the defaults of their recipe and method, JSON-able; `train`: alike in both trainings."""
    full, own = params.model_dump(mode="json"), params.model_dump(mode="json", exclude_defaults=True)
    recipe, method = RECIPES[params.recipe], method_sections(params.method, full["teachers"])
    for name, kind in (("teachers", TeacherParams), ("student", StudentParams)):
        usual = {setting: field.default for setting, field in kind.model_fields.items()} | recipe["train"]
        usual |= recipe.get(name, {}) | method[name]
        own[name] = {setting: value for setting, value in full[name].items() if value != usual[setting]}
    both = {item[0]: item[1] for item in own["teachers"].items() if item in own["student"].items()}
    for name in ("teachers", "student"):
        own[name] = {setting: value for setting, value in own[name].items() if setting not in both}
    order = [*(name for name in full if name not in ("teachers", "student")), "train", "teachers", "student"]
    own["train"] = both
    return {name: own[name] for name in order if own.get(name)}


def _explain(fault, shared, sections):
    location = fault["loc"]
    if fault["type"] == "extra_forbidden":
        return _unknown(location, SECTIONS[".".join(location[:-1])])
    if len(location) > 1 and location[1] in shared and location[1] not in sections.get(location[0], shared):
        location = ("train", *location[1:])  # where the user wrote it
    return format_error(fault, location)


# The kind of each section by its name; "": the top level.
SECTIONS = {"": Params, "train": TrainParams} | {
    name: kind
    for name, field in Params.model_fields.items()
    for kind in (field.annotation, *get_args(field.annotation))
    if isinstance(kind, type) and issubclass(kind, Section)
}


def _unknown(location, section):
    name, here = location[-1], ".".join(location[:-1])
    known = [*section.model_fields, *(["train"] if section is Params else [])]
    # The right name in the wrong place, or else a wrong name in the right place.
    places = [f"{place}.{name}".lstrip(".") for place, kind in SECTIONS.items() if name in kind.model_fields]
    if places:
        hint = f"did you mean {places[0]}?"
    else:
        hint = near_name(name, known, f"{here or 'the top level'} has", f"{here}." if here else "")
    return f"{'.'.join(location)}: unknown parameter; {hint}"
