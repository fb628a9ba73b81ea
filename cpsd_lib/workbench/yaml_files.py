"""Parameter files as they are written: where they lie, their YAML, the file one extends, and overrides from outside."""

import difflib
import os
import re
from contextlib import contextmanager
from pathlib import Path

import yaml


class ParameterError(ValueError):
    """A parameter is unknown, has the wrong type or range, or names something that is not there."""


@contextmanager
def blamed_on(section):
    """Raise what goes wrong inside as a ParameterError that begins with `section`: the user's choice did not work out."""
    try:
        yield
    except ParameterError:
        raise
    except (ValueError, TypeError, AssertionError, RuntimeError, OSError) as error:  # timm asserts
        raise ParameterError(f"{section}: {error}") from error


def repo_root():
    """Return the project's folder: CPSD_ROOT, or the nearest parent (of the working folder, of this file) with notebooks/."""
    if os.environ.get("CPSD_ROOT"):
        return Path(os.environ["CPSD_ROOT"]).resolve()
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "params").is_dir() and (folder / "notebooks").is_dir():
                return folder
    raise ParameterError(
        "no folder with params/ and notebooks/ above here: start in the project, or set CPSD_ROOT to it"
    )


def outputs_root():
    """Return the folder all runs are written below: CPSD_OUTPUTS, or outputs/ in the project."""
    # From the project's folder, not the working folder: runner and notebooks work in different ones.
    return (repo_root() / os.path.expanduser(os.environ.get("CPSD_OUTPUTS") or "outputs")).resolve()


def find_params(source):
    """Return the path of a parameter file given as a path or a name in params/ (ParameterError if there is none)."""
    folder = repo_root() / "params"
    for candidate in (Path(source), folder / source, folder / f"{source}.yaml"):
        if os.path.isfile(candidate):  # False, where Path.is_file raises, for a name too long to be one
            return candidate
    if any(os.path.isfile(folder / "grids" / name) for name in (source, f"{source}.yaml")):
        raise ParameterError(f"{source} is a grid, many runs in one file; run it by: cpsd grid {source}")
    near = difflib.get_close_matches(Path(source).stem, [file.stem for file in folder.glob("*.yaml")], 1)
    hint = (
        f"; did you mean {near[0]}?"
        if near
        else f"; there are: {', '.join(sorted(f.stem for f in folder.glob('*.yaml')))}"
    )
    raise ParameterError(f"no parameter file {source!r}{hint}")


def read_params(path):
    """Return the mapping in a parameter file laid over the one it `extends`, section by section (one level, no chains).

    `extends: base/coco2014` names a file beside this one or else in params/, with or without .yaml. Raises ParameterError
    for a base that is not there, is the file itself, or extends another.
    """
    path = Path(path)
    raw = read_yaml(path)
    if "extends" not in raw:
        return raw
    found = _base(path, raw.pop("extends"))
    base = read_yaml(found)
    if "extends" in base:
        raise ParameterError(f"{path} extends {found}, which extends another; write {found.name} out in full")
    return base | {key: _over(base.get(key), value) for key, value in raw.items()}


def _base(path, name):
    folders = list(dict.fromkeys((path.parent.resolve(), repo_root() / "params")))
    places = [folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".yaml")]
    found = next((place for place in places if os.path.isfile(place)), None) if name and isinstance(name, str) else None
    if found is None:
        looked = " and ".join(map(str, folders))
        raise ParameterError(f"{path} extends {name!r}, and there is no such parameter file; looked in {looked}")
    if found.samefile(path):
        raise ParameterError(
            f"{path} extends itself; name another file after `extends:`, or give this one another name"
        )
    return found


def is_grid(raw):
    """Return whether the mapping of a YAML file is a grid's: it says what to vary."""
    return "vary" in raw


def _over(below, above):
    # A section gives way name by name; a value, or a list, as a whole.
    return below | above if isinstance(below, dict) and isinstance(above, dict) else above


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error."""

    def construct_mapping(self, node, deep=False):
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "expected `name: value` lines", node.start_mark)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len({str(key) for key in keys}) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, f"a key stands twice among {keys}", node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 as text; in a table of learning rates that is never meant.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path):
    """Return the mapping in a YAML file; only plain values, no key twice (ParameterError)."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ParameterError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error.strerror}") from None
    return _parse(text, str(path), dict)


def _parse(text, where, kind):
    try:
        value = yaml.load(text, _UniqueKeys)  # a SafeLoader: it builds plain values only
    # PyYAML lets what its constructors raise through: ValueError for the date 2024-13-45, KeyError for `!!bool x`, ...
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ParameterError(f"{where} is not valid YAML: {error}") from None
    if kind and not isinstance(value, kind):
        held = "nothing" if value is None else type(value).__name__
        raise ParameterError(f"{where} must hold `name: value` lines; it holds {held}")
    return value


def parse_overrides(pairs):
    """Return {dotted key: value} of `key=value` words, values read as YAML (ParameterError for anything else)."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ParameterError(f"{pair!r}: write overrides as key=value, e.g. student.epochs=5")
        overrides[key] = _parse(value, pair, None)
    return overrides


def set_dotted(raw, key, value):
    """Set raw["a"]["b"] for the key "a.b", making sections on the way (ParameterError for a key that is no such name)."""
    names = str(key).split(".")
    if not all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names):
        raise ParameterError(f"{key!r} is not a parameter name; names look like student.epochs")
    for name in names[:-1]:
        below = raw.get(name)
        if below is not None and not isinstance(below, dict):
            raise ParameterError(f"{key}: {name} is a value, not a section")
        # A copy: an anchor in the file (`student: *settings`) makes two sections one object.
        raw[name] = dict(below or {})
        raw = raw[name]
    raw[names[-1]] = value
