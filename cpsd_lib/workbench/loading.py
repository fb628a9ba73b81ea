"""Parameter files checked: recipe, method and overrides resolved, and pydantic's errors in the words of a YAML file."""

from pydantic import ValidationError

from cpsd_lib.workbench.defaults import RECIPES, method_sections
from cpsd_lib.workbench.params import DataParams, Params, Section, TrainParams
from cpsd_lib.workbench.yaml_files import ParameterError, find_params, is_grid, near_name, read_params, set_dotted

# Former names, which a user's file may still have.
RENAMED = {
    "share": "frozen_stages",
    "alone": "student_only",
    "sd_again": "sd_continued",
    "baseline_long": "baseline_equal_compute",
    "sd_long": "sd_equal_compute",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a section of `name: value` lines",
    "model": "a section of `name: value` lines",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
    "literal_error": ("one of", "expected"),
}
_YAML = {None: "null", True: "true", False: "false"}


def format_error(fault):
    """Return what a value must be and what it is, without its name; fault: one of ValidationError.errors()."""
    kind, context, value = fault["type"], fault.get("ctx", {}), fault["input"]
    if kind == "literal_error" and isinstance(value, str) and value in RENAMED:
        return f"unknown value {value!r}; did you mean {RENAMED[value]}?"
    if kind == "finite_number":
        text = "must be a finite number"
    elif kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        text = f"must be {words} {_plain(context[name])}"
    elif kind == "int_from_float":
        text = "must be a whole number"
    elif kind.removesuffix("_type") in _KINDS:
        text = f"must be {_KINDS[kind.removesuffix('_type')]}"
    else:  # our own validators
        text = fault["msg"].removeprefix("Value error, ").replace("String should", "must")
    if isinstance(value, dict):  # a whole section is too long to repeat
        return text
    got = _YAML[value] if value is None or isinstance(value, bool) else repr(value)
    return f"{text}; got {got[:80]}"


def _plain(bound):
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound  # 1, not 1.0


def load_params(source, overrides=None, paths=True):
    """Return the checked Params of a YAML file (a path, or a name in params/) with `overrides`, a dict of dotted keys.

    paths=False takes files and folders as they are written, for a look at a run whose data is not on this machine.
    Raises ParameterError that lists every fault at once, with the nearest name for an unknown key.
    """
    raw = read_params(find_params(source))
    if is_grid(raw):
        raise ParameterError(f"{source} is a grid, many runs in one file; run it by: cpsd grid {source}")
    for key, value in (overrides or {}).items():
        set_dotted(raw, key, value)
    return resolve(raw, paths)


def load_data(source, overrides=None):
    """Return (run name, DataParams) of a parameter file as load_params reads it; only the data must be there, no model file."""
    params = load_params(source, overrides, paths=False)
    return params.name, data_on_disk(params.data)


def data_on_disk(data):
    """Return DataParams `data` with its paths resolved; ParameterError where one is not there."""
    try:
        return DataParams.model_validate(data.model_dump())
    except ValidationError as error:
        faults = [_explain(fault | {"loc": ("data", *fault["loc"])}, {}, {}) for fault in error.errors()]
        raise ParameterError("\n".join(faults)) from None


def resolve(raw, paths=True):
    """Return Params of a raw mapping: recipe, then `train` (both trainings), then the method, then `teachers` and `student`."""
    raw, faults = dict(raw), []
    # A wrong recipe is a fault among the others, and Params names it.
    recipe = next((RECIPES[name] for name in RECIPES if raw.get("recipe") == name), RECIPES["default"])
    sections = {name: raw.get(name) for name in ("train", "teachers", "student", "model", "teacher_model")}
    for name, section in sections.items():
        if section is not None and not isinstance(section, dict):
            faults.append(f"{name}: must be a section of `name: value` lines, not {section!r}")
        sections[name] = section if isinstance(section, dict) else {}
    raw.pop("train", None)
    shared = {name: value for name, value in sections["train"].items() if name in TrainParams.model_fields}
    faults += [_unknown(("train", str(name)), TrainParams) for name in sections["train"] if name not in shared]
    usual = {name: recipe["train"] | recipe[name] | shared for name in ("teachers", "student")}
    method = method_sections(raw.get("method"), usual["teachers"] | sections["teachers"])
    for name in usual:
        raw[name] = usual[name] | method[name] | sections[name]
    raw["model"] = recipe["model"] | sections["model"]
    if sections["teacher_model"]:
        raw["teacher_model"] = recipe["model"] | sections["teacher_model"]
    try:
        params = Params.model_validate(raw, context={"paths": paths})
    except ValidationError as error:
        faults += [_explain(fault, shared, sections) for fault in error.errors()]
    if faults:
        raise ParameterError("\n".join(dict.fromkeys(faults)))
    return params


def _explain(fault, shared, sections):
    location = tuple(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return _unknown(location, _section_at(location[:-1]))
    if fault["type"] == "missing":
        return f"{'.'.join(location)}: is needed and has no default"
    if len(location) > 1 and location[1] in shared and location[1] not in sections.get(location[0], shared):
        location = ("train", *location[1:])  # where the user wrote it
    where = f"{'.'.join(location)}: " if location else ""  # an error of several sections names them itself
    return f"{where}{format_error(fault)}"


def _unknown(location, section):
    *above, name = location
    here, name = ".".join(above), RENAMED.get(name, name)
    known = [*section.model_fields, *(["train"] if section is Params else [])]
    # The right name in the wrong place, or else a wrong name in the right place.
    places = [place for place in _places(name) if place != ".".join(location)]
    if places:
        hint = f"did you mean {places[0]}?"
    else:
        hint = near_name(name, known, f"{here or 'the top level'} has", f"{here}." if here else "")
    return f"{'.'.join(location)}: unknown parameter; {hint}"


def _places(name):
    sections = {"": Params, "train": TrainParams} | {
        section: field.annotation for section, field in Params.model_fields.items() if _is_section(field.annotation)
    }
    return [f"{section}.{name}".lstrip(".") for section, kind in sections.items() if name in kind.model_fields]


def _is_section(kind):
    return isinstance(kind, type) and issubclass(kind, Section)


def _section_at(location):
    section = Params
    for name in location:
        section = section.model_fields[name].annotation
    return section
