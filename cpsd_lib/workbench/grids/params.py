"""A grid file: every combination of some parameters' values, a run each; all checked before anything starts."""

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from cpsd_lib.support import digest
from cpsd_lib.workbench.loading import format_error, load_params
from cpsd_lib.workbench.params import Params, Section, once_each
from cpsd_lib.workbench.yaml_files import ParameterError, find_params, near_name, read_params

MOST_JOBS = 1000


class Grid(Section):
    """Which runs."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$")  # folder below outputs/; its jobs are name.<values>
    # A parameter file, or its name in params/; None where `vary` has several.
    base: str | None = None
    # {dotted key: values}, and "base": parameter files
    vary: dict[str, Annotated[list[Any], Field(min_length=1), AfterValidator(once_each)]] = Field(min_length=1)
    overrides: dict[str, Any] = Field(default_factory=dict)  # {dotted key: value} of every job

    @model_validator(mode="after")
    def _fits_together(self):
        if "name" in {*self.vary, *self.overrides}:
            raise ValueError("name: the grid itself names its jobs")
        if seeds := {"seed", "seeds"} & {*self.vary}:
            raise ValueError(f"vary.{min(seeds)}: a grid's table is over seeds; give seed and seeds as overrides")
        if "base" in self.overrides:
            raise ValueError("overrides.base: give a parameter file as `base:`, several as `vary: {base: [...]}`")
        if (self.base is None) != ("base" in self.vary):
            raise ValueError(
                "base: give one parameter file as `base:` or several as `vary: {base: [...]}`, and not both"
            )
        if not all(isinstance(base, str) for base in self.vary.get("base", [])):
            raise ValueError(f"vary.base: must be names or paths of parameter files; got {self.vary['base']}")
        both = [*itertools.product(self.overrides, self.vary), *itertools.combinations(self.vary, 2)]
        for one, other in both:
            if f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}."):
                raise ValueError(f"{one} and vary.{other} set the same parameter; to narrow a grid: vary.{other}=[...]")
        return self


@dataclass(eq=False)
class Job:
    """One run of a grid."""

    name: str  # <grid>.<slug>
    slug: str  # of its varied values
    varied: dict
    params: Params
    # A plan's: names of the stages that are not done and fresh, in order, and the Cost of all of it.
    left: list = ()
    cost: object = None


def load_grid(source, overrides=None):
    """Return the checked Grid of a file (a path, or a name in params/ or params/grids/).

    overrides {dotted key: value}: a grid's own (vary.partition.k, ...), else a parameter of every job.
    Raises ParameterError that lists every fault.
    """
    raw, overrides = read_params(find_params(source, grid=True)), overrides or {}
    if "vary" not in raw and "base" not in raw:
        raise ParameterError(f"{source} is one run, not a grid (it has no `vary:`); run it by: cpsd run {source}")
    # What is varied now has no one value any more, whatever the file has.
    varied = {key.removeprefix("vary.") for key in overrides if key.startswith("vary.")}
    varied |= set(overrides["vary"]) if isinstance(overrides.get("vary"), dict) else set()
    if isinstance(raw.get("overrides"), dict):
        raw["overrides"] = {key: value for key, value in raw["overrides"].items() if key not in varied}
    if "base" in varied:
        raw.pop("base", None)
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        section, rest = (head, rest) if head in Grid.model_fields else ("overrides", key)
        beside = raw.get(section) if isinstance(raw.get(section), dict) else {}
        raw[section] = beside | {rest: value} if rest else value
    try:
        return Grid.model_validate(raw)
    except ValidationError as error:
        raise ParameterError("\n".join(dict.fromkeys(_explain(fault) for fault in error.errors()))) from None


def _explain(fault):
    location = ".".join(map(str, fault["loc"]))
    if fault["type"] != "extra_forbidden":
        return format_error(fault, fault["loc"])
    hint = near_name(location, list(Grid.model_fields), "a grid has")
    if location in (*Params.model_fields, "train"):
        hint = f"a run's parameters stand under overrides, as {location}.name: value"
    return f"{location}: unknown parameter of a grid; {hint}"


def jobs_of(grid):
    """Return the Jobs of a Grid, in the order of the product; ParameterError lists every fault and whose it is."""
    count = math.prod(len(values) for values in grid.vary.values())
    if count > MOST_JOBS:
        raise ParameterError(f"vary: {count:,} jobs; at most {MOST_JOBS:,} in one grid")
    combinations = [dict(zip(grid.vary, values, strict=True)) for values in itertools.product(*grid.vary.values())]
    slugs, jobs, faults = _slugs(grid.name, combinations), [], {}
    for slug, varied in zip(slugs, combinations, strict=True):
        name = f"{grid.name}.{slug}"
        try:
            params = load_params(grid.base or varied["base"], grid.overrides | _without_base(varied) | {"name": name})
            jobs.append(Job(name, slug, varied, params))
        except ParameterError as error:
            for line in str(error).splitlines():
                faults.setdefault(line, []).append(slug)
    refuse(faults, len(combinations))
    return jobs


def refuse(faults, count):
    """Raise ParameterError of {fault: slugs of the jobs that have it}, if there is any."""
    if faults:
        whose = {text: "every job" if len(slugs) == count else ", ".join(slugs) for text, slugs in faults.items()}
        raise ParameterError("\n".join(f"{text} ({jobs})" for text, jobs in whose.items()))


def _slugs(grid_name, combinations):
    """Return a name for each combination of values, short and unlike the others, that can be a folder's."""
    keys = list(_without_base(combinations[0]))
    short = {key: key.rpartition(".")[2] for key in keys}
    if len(set(short.values())) < len(keys):
        short = {key: key.replace(".", "-") for key in keys}
    slugs = []
    for varied in combinations:
        base = [re.sub(r"[^A-Za-z0-9._-]+", "-", Path(varied["base"]).stem)] if "base" in varied else []
        slugs.append("_".join(base + [f"{short[key]}-{_word(varied[key])}" for key in keys]))
    room = 100 - len(grid_name) - 1
    return [
        f"{slug[: room - 17]}-{digest(varied)}" if slugs.count(slug) > 1 or len(slug) > room else slug
        for slug, varied in zip(slugs, combinations, strict=True)
    ]


def _without_base(varied):
    return {key: value for key, value in varied.items() if key != "base"}


def _word(value):
    if isinstance(value, list | dict):
        return "-".join(map(_word, value.values() if isinstance(value, dict) else value))
    # Of a path the last name.
    return re.sub(r"[^A-Za-z0-9.-]+", "-", "none" if value is None else Path(str(value)).name)
