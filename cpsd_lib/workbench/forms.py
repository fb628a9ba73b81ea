"""The JSON files of a run, their form checked when they are read: a damaged or foreign one is a sentence that names it."""

from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

from cpsd_lib.support import read_json


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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg']}" if where else first["msg"]
        raise ValueError(
            f"{path} is not as this version writes it ({why}); delete it and run its stage again"
        ) from None
    return value
