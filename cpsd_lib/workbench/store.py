"""Artifacts: whatever costs time to make, kept under the hash of its recipe, all that determines it.

exca and joblib.Memory know no group of models that trains side by side and resumes, and no waiter that names whom it waits for.
"""

import ast
import hashlib
import inspect
import io
import json
import os
import platform
import shutil
import subprocess
import time
import tokenize
from contextlib import ExitStack
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

from filelock import FileLock, Timeout

from cpsd_lib.support import cores, read_json, sha256, write_json
from cpsd_lib.workbench.loading import Noted, read_form
from cpsd_lib.workbench.yaml_files import outputs_root, repo_root

KINDS = ("model", "soft_targets")
_RING_1 = {f"cpsd_lib.{name}" for name in ("graph", "losses", "objectives", "partition", "teachers")}
_verified = set()  # (folder, checksum of artifact.json) whose files this process has read through


def key_of(recipe):
    """Return the key of a recipe, any JSON-able value: 24 hex digits, the same in every Python and on every machine."""
    text = json.dumps(recipe, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Store:
    """Artifacts below a folder: <kind>/<key>/artifact.json beside the files it vouches for; .work/ for what is being made."""

    def __init__(self, root=None):
        self.root = Path(root or outputs_root() / ".store")  # by default that of this project's runs

    def folder(self, kind, key):
        """Return the folder of an artifact, whether it is there or not."""
        return self.root / kind / key

    def record(self, kind, key):
        """Return what artifact.json holds; None where the artifact is not there. A broken one is moved aside."""
        folder = self.folder(kind, key)
        path = folder / "artifact.json"
        if not path.exists():
            return None
        try:
            record = read_json(path)
            known = str(folder), sha256(path)
            files = {folder / name: checksum for name, checksum in record["files"].items()}
            sound = key_of(record["recipe"]) == key and all(
                file.is_file() and (known in _verified or sha256(file) == checksum) for file, checksum in files.items()
            )
        except (ValueError, KeyError, TypeError, AttributeError):  # another shape
            sound = False
        if not sound:
            aside = self.root / ".work" / f"broken-{key}-{time.time_ns()}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, aside)
            print(f"the artifact {kind}/{key} is broken: moved to {aside}, it will be made again", flush=True)
            return None
        _verified.add(known)
        return record

    def obtain(self, kind, recipes, make, what):
        """Make sure that the artifacts of {name: recipe} are there; return {name: key}.

        make(keys): called with the keys to make now, whose locks this process holds; it must `commit` each. What another
        process is making is waited for afterwards, with no lock held, so that two groups cannot block each other.
        what: says in a message what is being made.
        """
        keys = {name: key_of(recipe) for name, recipe in recipes.items()}
        while True:
            missing = [key for key in sorted(set(keys.values())) if self.record(kind, key) is None]
            if not missing:
                return keys
            with ExitStack() as held:
                mine = [key for key in missing if self._lock(held, key, what)]
                todo = [key for key in mine if self.record(kind, key) is None]  # made since we looked
                if todo:
                    make(todo)
            others = [key for key in missing if key not in mine]
            if others:
                self._wait(others[0])

    def _lock(self, held, key, what):
        lock, holder = self._lock_files(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        held.callback(lock.release)
        write_json(holder, {"pid": os.getpid(), "host": platform.node(), "what": what})
        return True

    def _wait(self, key):
        lock, holder = self._lock_files(key)
        who = read_json(holder) if holder.exists() else {}
        maker = f"process {who.get('pid', '?')} on {who.get('host', '?')}"
        print(f"{maker} makes {who.get('what', 'this')}: waiting for it", flush=True)
        with lock.acquire(poll_interval=0.2):
            pass

    def _lock_files(self, key):
        # The kernel drops a lock with its process, so a killed maker leaves nothing to clean up.
        folder = self.root / ".work" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{key}.lock", is_singleton=False), folder / f"{key}.json"

    def work(self, keys):
        """Return the folder in which a group of artifacts is being made: another group of the same ones starts anew."""
        folder = self.root / ".work" / key_of(sorted(keys))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, kind, recipe, files, about):
        """Put the files {name: path}, which are moved, and their record into place, all at once; return the key.

        about: JSON-able, what is not in the recipe: seconds, the epoch that was kept, ...
        """
        key = key_of(recipe)
        half = self.root / ".work" / f"{key}.half"  # one name, for its lock is held: what a killed maker left goes here
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        for name, path in files.items():
            os.replace(path, half / name)
        record = {"kind": kind, "key": key, "recipe": recipe, "about": about, **environment()}
        write_json(half / "artifact.json", record | {"files": {name: sha256(half / name) for name in files}})
        folder = self.folder(kind, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(half, folder)  # the rename is what makes it an artifact
        return key


# ---- what lies there -------------------------------------------------------------------------------------------------


def inventory(store, outputs):
    """Return [(kind, key, bytes, [runs that use it])] of all artifacts."""
    used = {}
    for path in sorted(Path(outputs).glob("*/artifacts.json")):
        for entry in read_form(path, dict[str, Noted]).values():
            for key in entry["keys"]:
                used.setdefault(key, []).append(path.parent.name)
    found = []
    for kind in KINDS:
        for folder in sorted((store.root / kind).glob("*")):
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append((kind, folder.name, size, sorted(set(used.get(folder.name, [])))))
    return found


def clean(store, outputs):
    """Remove the artifacts that no run uses, what is broken and what was left half made; return how many bytes."""
    unused = [store.folder(kind, key) for kind, key, _, runs in inventory(store, outputs) if not runs]
    unused += [path for path in (store.root / ".work").glob("*") if path.name != "locks"]
    size = sum(file.stat().st_size for path in unused for file in path.rglob("*") if file.is_file())
    for path in unused:
        shutil.rmtree(path, ignore_errors=True)
    return size


# ---- code and environment --------------------------------------------------------------------------------------------


def code_of(*objects):
    """Return a hash of the tokens, without comments and docstrings, of functions or classes and of the ring 1 that they call."""
    seen, todo = {}, list(objects)
    while todo:
        one = todo.pop()
        name = f"{one.__module__}.{one.__qualname__}"
        if name in seen:
            continue
        seen[name] = tokens_of(inspect.getsource(one))
        functions = [f for f in vars(one).values() if inspect.isfunction(f)] if inspect.isclass(one) else [one]
        for function in functions:
            reached = (function.__globals__.get(used) for used in _names_in(function.__code__))
            of_ring_1 = (x for x in reached if getattr(x, "__module__", "") in _RING_1)
            todo += [x for x in of_ring_1 if inspect.isfunction(x) or inspect.isclass(x)]
    return key_of(sorted(seen.items()))


def tokens_of(source):
    """Return Python source as one string of its tokens, without comments, docstrings and layout; alike from 3.11 to 3.14."""
    source = inspect.cleandoc(f"\n{source}") if source[:1].isspace() else source
    docstrings = {
        (node.body[0].lineno, node.body[0].col_offset)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and ast.get_docstring(node, clean=False) is not None
    }
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    starts, found, depth, begin = [0, *accumulate(map(len, source.splitlines(keepends=True)))], [], 0, 0
    fstart, fend = getattr(tokenize, "FSTRING_START", None), getattr(tokenize, "FSTRING_END", None)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == fstart:  # from 3.12 on an f-string is many tokens: take its text as one
            begin = starts[token.start[0] - 1] + token.start[1] if depth == 0 else begin
            depth += 1
        elif token.type == fend:
            depth -= 1
            if depth == 0:
                found.append(source[begin : starts[token.end[0] - 1] + token.end[1]])
        elif depth == 0 and token.type not in layout and token.start not in docstrings:
            found.append(token.string)
    return " ".join(found)


def _names_in(code):
    inner = (constant for constant in code.co_consts if inspect.iscode(constant))
    return {*code.co_names, *(name for one in inner for name in _names_in(one))}


def environment():
    """Return the versions, hardware and commit a number was made with."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn")}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {"gpu": gpu, "cpu": _cpu_name(), "cores": cores(), "torch_threads": torch.get_num_threads()},
        "commit": _commit(),
    }


def _cpu_name():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit():
    command = ["git", "-C", str(repo_root()), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # a downloaded archive has no history
