"""What is read is checked by pydantic, its errors in the words of a YAML file: parameter files, and a run's JSON files."""

import re
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

from cpsd_lib import graph
from cpsd_lib.support import counted, listed, read_json
from cpsd_lib.training import Training
from cpsd_lib.workbench.params import Params, Section, StudentParams, TeacherParams, TrainParams
from cpsd_lib.workbench.rows import COMPONENTS, ROWS
from cpsd_lib.workbench.yaml_files import ParameterError, find_params, near_name, read_params, set_dotted

# What pydantic says, in the words of whoever wrote the YAML; in this order.
_WORDS = {
    "Input should": "must",
    "String should": "must",
    "List should": "must",
    " after validation": "",
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
# What the released codes of CPSD and L2D have in common.
_RELEASED = {"gamma_pos": 0, "epochs": 80, "optimizer": "adam", "weight_decay": 1e-4, "ema_warmup": False}
_RELEASED |= {"view": "release", "precision": "float16"}
# What a recipe has instead of the defaults in params.py, which fine-tune small data well on one machine.
RECIPES = {
    # CPSD's, as its released code has it.
    "release": {
        "train": _RELEASED | {"gamma_neg": 4, "clip": 0.05, "batch_size": 24, "pct_start": 0.1, "ema_decay": 0.9997},
        "teachers": {"lr": 1e-4},
        "student": {"lr": 1e-5},
        "model": {"normalize": "none"},
    },
    # L2D's, as its released code has it: BCE (ASL without its focus and its clip), inputs in [0, 1], no moving average.
    "l2d": {
        "train": _RELEASED
        | {"gamma_neg": 0, "clip": 0, "batch_size": 64, "lr": 1e-4, "pct_start": 0.2, "ema_decay": 0},
        "teachers": {"stop_after": 30},
        "model": {"head": "ml_decoder", "normalize": "none"},
    },
}
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


def on_disk(name, section):
    """Return a section of Params with its paths resolved, which paths=False leaves; ParameterError where one is not there."""
    try:
        return type(section).model_validate(section.model_dump())
    except ValidationError as error:
        faults = [format_error(fault, (name, *fault["loc"])) for fault in error.errors()]
        raise ParameterError("\n".join(faults)) from None


def check_count(params, table):
    """Raise ParameterError where a LabelTable leaves a training fewer than two images, after those that `select: val` holds out.

    Batch norm has no statistics of one image.
    """
    train = len(table.indices("train"))
    if len(table.indices("val")) or params.protocol == "paper" or params.data.kind == "labels":
        return
    for name, training in (("teachers", params.teachers), ("student", params.student)):
        held_out = training.held_out(train) if training.select == "val" else 0
        if held_out and train - held_out < 2:
            raise ParameterError(
                f"{name}.select: val holds out {held_out} of {counted(train, 'training image')}, and a training needs two of "
                "them: give more images, a split val, or select: last"
            )


def check_k(k, num_classes):
    """Raise ParameterError for more parts than classes."""
    if k > num_classes:
        only = counted(num_classes, "class", "classes")
        raise ParameterError(f"partition.k is {k}, but the data set has only {only}")


def check_cut(params, table):
    """Raise ParameterError for more parts than classes, or rows of CGP where no two classes of a LabelTable ever co-occur."""
    settings, rows = params.partition, params.student.rows
    if settings.use_released:
        return
    check_k(settings.k, len(table.names))
    cgp = [row for row in rows if "co" in ROWS[row].teachers]
    counts, _ = graph.cooccurrence(table.targets[table.indices("train")])
    if cgp and not counts.any() and params.data.kind != "labels":
        others = ", ".join(row for row in COMPONENTS if row not in cgp)
        raise ParameterError(
            f"student.rows: {', '.join(cgp)} learn from parts of classes that co-occur (CGP), and no two classes occur in one "
            f"training image; the others need none, as student.rows=[{others}]"
        )


def resolve(raw, paths=True):
    """Return Params of a raw mapping: recipe, then `train` (both trainings), then the method, then `teachers` and `student`."""
    raw, faults = dict(raw), []
    sections = {name: raw.get(name) for name in ("train", "teachers", "student", *MODELS)}
    for name, section in sections.items():
        if section is not None and not isinstance(section, dict):
            faults.append(f"{name}: must be a section of `name: value` lines, not {section!r:.80}")
        sections[name] = section if isinstance(section, dict) else {}
    raw.pop("train", None)
    shared = {name: value for name, value in sections["train"].items() if name in TrainParams.model_fields}
    faults += [_unknown(("train", str(name)), TrainParams) for name in sections["train"] if name not in shared]
    usual = _usual(raw.get("recipe"), raw.get("method"), shared, sections)
    raw |= {name: usual[name] | sections[name] for name in ("teachers", "student")}
    raw |= {name: usual["model"] | sections[name] for name in MODELS if sections[name] or name == "model"}
    try:
        params = Params.model_validate(raw, context={"paths": paths})
    except ValidationError as error:
        faults += [_explain(fault, shared, sections) for fault in error.errors()]
    if faults:
        raise ParameterError(listed(dict.fromkeys(faults), 40, "\n"))
    return params


def _usual(recipe, method, shared, given):
    """Return {section: settings} of recipe, then `train` (shared), then method (params/README); given: each section's own."""
    recipe = RECIPES.get(str(recipe), {})  # a wrong one is a fault among the others, and Params names it
    usual = {name: recipe.get("train", {}) | recipe.get(name, {}) | shared for name in ("teachers", "student")}
    of_baseline = {"epochs": Training.epochs} | usual["teachers"] | given["teachers"]
    batch = (usual["student"] | given["student"]).get("batch_size", TrainParams.model_fields["batch_size"].default)
    epochs = [of_baseline[name] for name in ("epochs", "stop_after") if of_baseline.get(name) is not None]
    if epochs and all(isinstance(count, int) for count in [*epochs, batch]):  # else Params says so
        whole, third = epochs[0], max(1, round(min(epochs) / 3))
        if method == "shared_trunk":
            usual["teachers"] |= {"start": "baseline", "frozen_stages": -1, "more_epochs": third}
            usual["student"] |= {"start": "baseline", "epochs": third}
        if method == "patient":
            usual["student"] |= {"epochs": 2 * whole, "stop_after": None, "views": whole, "mld": 2.5 * batch}
    return usual | {"model": recipe.get("model", {})}


def own_params(params):
    """Return what Params have beside the defaults of their recipe and method, JSON-able; `train`: alike in both trainings."""
    full, own = params.model_dump(mode="json"), params.model_dump(mode="json", exclude_defaults=True)
    usual = _usual(params.recipe, params.method, {}, full)
    for name, kind in (("teachers", TeacherParams), ("student", StudentParams)):
        default = {setting: field.default for setting, field in kind.model_fields.items()} | usual[name]
        own[name] = {setting: value for setting, value in full[name].items() if value != default[setting]}
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


# ---- the JSON files of a run: a damaged or foreign one is a sentence that names it -------------------------------------


class Noted(TypedDict):
    """Which artifacts one name of artifacts.json stands for, and by which parameters they were made."""

    keys: list[str]
    params: dict[str, Any]


class Described(TypedDict):
    """data.json."""

    key: str
    class_names: list[str]
    positives: dict[str, list[int]]
    images: dict[str, int]


class Cut(TypedDict):
    """partition/fingerprint.json: the key of the data, and the parameters of the cut or the checksums of released files."""

    data: str
    partition: dict[str, Any]


class Scored(TypedDict):
    """A line of metrics.json."""

    row: str
    seed: int
    split: str
    mAP: float | None


def read_form(path, form):
    """Return the JSON value in `path`; ValueError where it is not of a `form`, such as dict[str, Noted]."""
    value = read_json(path)
    try:
        TypeAdapter(form).validate_python(value)
    except ValidationError as error:
        why = format_error(error.errors()[0], error.errors()[0]["loc"])
        why = f"is not as this version writes it ({why}); delete it and run its stage again"
        raise ValueError(f"{path} {why}") from None
    return value
