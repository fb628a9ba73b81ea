"""pydantic's faults in the words of somebody who writes a YAML file."""

_KINDS = {
    **{"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list"},
    **{"dict": "a section of `name: value` lines", "model": "a section of `name: value` lines"},
}
_BOUNDS = {
    **{"greater_than": ("more than", "gt"), "greater_than_equal": ("at least", "ge")},
    **{"less_than": ("less than", "lt"), "less_than_equal": ("at most", "le")},
    "multiple_of": ("a multiple of", "multiple_of"),
    "literal_error": ("one of", "expected"),
}
_YAML = {None: "null", True: "true", False: "false"}


def said(fault):
    """Return what a value must be and what it is, without its name; fault: one of ValidationError.errors()."""
    kind, context, value = fault["type"], fault.get("ctx", {}), fault["input"]
    if kind == "finite_number":
        text = "must be a finite number"
    elif kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        text = f"must be {words} {_plain(context[name])}"
    elif kind == "int_from_float":
        text = "must be a whole number"
    elif kind.removesuffix("_type") in _KINDS:
        text = f"must be {_KINDS[kind.removesuffix('_type')]}"
    else:  # our own validators say it themselves
        text = fault["msg"].removeprefix("Value error, ").replace("String should", "must")
    if isinstance(value, dict):  # a whole section says nothing
        return text
    return f"{text}; got {(_YAML[value] if value is None or isinstance(value, bool) else repr(value))[:80]}"


def _plain(bound):
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound  # 1, not 1.0
