"""Parameter files as they are written: where they lie, their YAML, the file one extends, and overrides from outside."""

import difflib
import io
import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.reader import ReaderError

from cpsd_lib.support import Sentence

MAX_CHARACTERS, MAX_ALIASES, MAX_DEPTH = 2**16, 10, 50  # more than any parameter file has, and read in a second


class ParameterError(Sentence, ValueError):
    """A parameter is unknown, has the wrong type or range, or names something that is not there."""


class Stopped(Sentence, RuntimeError):
    """Work that cannot go on, for a reason that the message names: no fault of the parameters, nor of the program."""


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
    """Return the project's folder: CPSD_ROOT, or the nearest parent (of this file, of the working folder) with notebooks/."""
    if os.environ.get("CPSD_ROOT"):
        return Path(os.environ["CPSD_ROOT"]).resolve()
    for start in (Path(__file__).resolve().parent, Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / "params").is_dir() and (folder / "notebooks").is_dir():
                return folder
    raise ParameterError("no folder above here has params/ and notebooks/: start in the project, or set CPSD_ROOT")


def outputs_root():
    """Return the folder all runs are written below: CPSD_OUTPUTS, or outputs/ in the project."""
    # From the project's folder, not the working folder: runner and notebooks work in different ones.
    return (repo_root() / os.path.expanduser(os.environ.get("CPSD_OUTPUTS") or "outputs")).resolve()


def check_outputs(name):
    """Raise ParameterError where a run or grid of this name could not be written: now, not after its data was looked at."""
    wanted = outputs_root() / name
    there = next(folder for folder in (wanted, *wanted.parents) if os.path.exists(folder))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ParameterError(f"{there} cannot be written ({error.strerror}): name another in CPSD_OUTPUTS") from None


def find_params(source, grid=False):
    """Return the path of a parameter file given as a path or a name in params/ (ParameterError if there is none).

    The names in params/grids/ come after those in params/, or before them where a grid is wanted.
    """
    params = repo_root() / "params"
    folders = (params / "grids", params) if grid else (params, params / "grids")
    path = Path(source) if os.path.isfile(source) else _named(source, folders)
    if path is None:
        hint = near_name(Path(source).stem, sorted(file.stem for file in folders[0].glob("*.yaml")), "there are")
        raise ParameterError(f"no {'grid' if grid else 'parameter'} file {source!r}; {hint}")
    return path


def _named(name, folders):
    """Return the path of a file in some folders by its name, with or without .yaml; None where there is none."""
    places = (folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".yaml"))
    # os.path.isfile is False, where Path.is_file raises, for a name too long to be one.
    return next((place for place in places if os.path.isfile(place)), None)


def near_name(name, known, all_are, prefix=""):
    """Return the hint for an unknown name: the nearest of `known`, after `prefix`, or "<all_are>: <all of them>"."""
    near = difflib.get_close_matches(name.lower(), known, 1, cutoff=0.5)
    return f"did you mean {prefix}{near[0]}?" if near else f"{all_are}: {', '.join(known)}"


def read_params(path):
    """Return the mapping in a parameter file laid over the one it `extends`, section by section (one level, no chains).

    `extends: base/coco2014` names a file beside this one or else in params/, with or without .yaml. Raises ParameterError
    for a base that is not there, is the file itself, or extends another.
    """
    path = Path(path)
    raw = read_yaml(path)
    if "extends" not in raw:
        return raw
    name, folders = raw.pop("extends"), list(dict.fromkeys((path.parent.resolve(), repo_root() / "params")))
    base_path = _named(name, folders) if name and isinstance(name, str) else None
    if base_path is None:
        looked = " and ".join(map(str, folders))
        raise ParameterError(f"{path} extends {name!r}, and there is no such parameter file; looked in {looked}")
    if base_path.samefile(path):
        raise ParameterError(f"{path} extends itself; name another file after `extends:`, or rename this one")
    base = read_yaml(base_path)
    if "extends" in base:
        raise ParameterError(f"{path} extends {base_path}, which extends another; write {base_path.name} out in full")
    # A section gives way name by name; a value, or a list, as a whole.
    sections = [key for key in raw.keys() & base.keys() if isinstance(raw[key], dict) and isinstance(base[key], dict)]
    return base | raw | {key: base[key] | raw[key] for key in sections}


# ---- YAML 1.2 -------------------------------------------------------------------------------------------------------


class _Composer(Composer):  # ruamel.yaml's own follows any number of aliases and any depth of brackets
    level = aliases = 0

    def compose_node(self, parent, index):
        event, self.level = self.parser.peek_event(), self.level + 1
        self.aliases += isinstance(event, AliasEvent)
        if self.level > MAX_DEPTH or self.aliases > MAX_ALIASES:
            problem = f"more than {MAX_DEPTH} values within each other, or more than {MAX_ALIASES} aliases (*name)"
            raise ComposerError(None, None, problem, event.start_mark)
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


class _Constructor(SafeConstructor):
    """ruamel.yaml's own, which lets ValueError, KeyError, ... of a value through without its line, and names be numbers."""

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:  # 2024-13-45, `!!int ""`
            kind, value = node.tag.rpartition(":")[2], node.value if isinstance(node.value, str) else "this"
            problem = f"{value[:80]!r} is no {kind} ({type(error).__name__}: {error})"
            raise ConstructorError(None, None, problem, node.start_mark) from None

    def check_mapping_key(self, node, key_node, mapping, key, value):
        if not isinstance(key, str):
            raise ConstructorError(None, None, f"a name must be text, and {key!r} is not", key_node.start_mark)
        return super().check_mapping_key(node, key_node, mapping, key, value)


def _yaml():
    # Plain values only. On the files here twice as slow as PyYAML (7 ms for demo.yaml), and as fast to import (18 ms).
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Constructor = _Composer, _Constructor
    return yaml


def read_yaml(path):
    """Return the mapping in a YAML file; only plain values, no key twice (ParameterError)."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ParameterError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error.strerror}") from None
    return mapping(parse_yaml(text, path), path)


def parse_yaml(text, where):
    """Return the value of YAML text; ParameterError names `where` it stands, and the line, where it is none."""
    if len(text) > MAX_CHARACTERS:
        raise ParameterError(f"{str(where)[:300]} has more than {MAX_CHARACTERS:,} characters: is it another file?")
    try:
        return _yaml().load(text)
    except MarkedYAMLError as error:  # the error's own text is five lines and a link
        mark, context = error.problem_mark or error.context_mark, f"{error.context}: " if error.context else ""
        problem = f"line {mark.line + 1}, column {mark.column + 1}: {context}{error.problem}"
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"line {line}: U+{error.character:04X} is a control character; remove it, or write it as an escape"
    raise ParameterError(f"{where} is not valid YAML: {problem}")


def mapping(value, where):
    """Return `value`, a dict; ParameterError names `where` another value stands."""
    if not isinstance(value, dict):
        kind = "nothing" if value is None else type(value).__name__
        raise ParameterError(f"{where} must hold `name: value` lines; it holds {kind}")
    return value


def flow_text(value):
    """Return a plain value as YAML text in flow style, which parse_yaml reads back as the same value."""
    yaml, stream = _yaml(), io.StringIO()
    yaml.default_flow_style, yaml.width, yaml.sort_base_mapping_type_on_output = True, 110, False
    yaml.allow_unicode = False  # ruamel.yaml writes U+0085 as it is and reads a line break
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n")


def parse_overrides(pairs):
    """Return {dotted key: value} of `key=value` words, values read as YAML (ParameterError for anything else)."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ParameterError(f"{pair!r}: write overrides as key=value, e.g. student.epochs=5")
        overrides[key] = _typed(value, pair)
    return overrides


def _typed(text, where):
    """Return a value typed on a command line: an existing path, and what YAML would cut at a comment, stays as it is typed."""
    if os.sep in text and os.path.exists(os.path.expanduser(text)):
        return text
    # In a file " #" begins a comment and ": " ends a name; of a value that is no list or mapping both are part.
    cut = " #" in text or ": " in text or text.startswith("#") or text.endswith(":")
    return text if cut and text.lstrip()[:1] not in tuple("[{\"'") else parse_yaml(text, where)


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
