"""The three rings: who may import whom, who may know a run, and how long the method and the library may be."""

import ast
from pathlib import Path

import pytest

import cpsd_lib

LIBRARY = Path(cpsd_lib.__file__).parent
RING_1 = ("graph", "partition", "losses", "teachers", "objectives")
ROOMS = ("data", "models", "evaluation", "training")  # each imports only rooms that stand before it
FILES = sorted(LIBRARY.rglob("*.py"))
NAMES = [path.relative_to(LIBRARY).as_posix() for path in FILES]
# What a module of the left may import of the library, beside its own room.
ALLOWED = {"support": set(), "__init__": {"support"}, "__main__": {"cli"}}
ALLOWED |= {name: {"support", *RING_1} for name in RING_1}
ALLOWED |= {room: {"support", *RING_1, *ROOMS[:place]} for place, room in enumerate(ROOMS)}
ALLOWED["viz"] = {"support", *RING_1, *ROOMS}
ALLOWED["workbench"] = ALLOWED["viz"] | {"viz"}
ALLOWED["cli"] = ALLOWED["workbench"] | {"workbench"}


def module_of(path):
    """Return a file's dotted name below cpsd_lib: data.images.cache, or data for its __init__."""
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(path): path for path in FILES}


def imports_of(path):
    """Return the modules of the library that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "cpsd_lib"}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cpsd_lib":
            assert node.level == 0, path
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found.add(inner if inner.removeprefix("cpsd_lib.") in MODULES else node.module)
    return {name.removeprefix("cpsd_lib").removeprefix(".") for name in found}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_module_imports_only_what_stands_below_it(path):
    ring = module_of(path).split(".")[0]
    foreign = {name.split(".")[0] for name in imports_of(path)} - {ring, ""}
    assert foreign <= ALLOWED[ring], f"{path.name} imports {sorted(foreign - ALLOWED[ring])}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_room_is_entered_by_its_door(path):
    """`from cpsd_lib.data import decode`, not from cpsd_lib.data.images.decode; a module as a whole may be named."""
    own = module_of(path).split(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cpsd_lib."):
            room = node.module.split(".")[1]
            assert room == own or node.module.count(".") == 1, f"{path.name}, line {node.lineno}: {node.module}"


def test_there_is_no_import_circle():
    graph = {name: imports_of(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    while graph:
        free = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert free, f"these import each other: {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in free}


def test_no_function_below_the_workbench_takes_a_run_or_parameters():
    for name, path in MODULES.items():
        if name.split(".")[0] in ("workbench", "cli", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                arguments = {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
                assert not arguments & {"run", "params"}, f"{name}, line {node.lineno}"


def test_the_method_takes_arrays_and_tensors_and_knows_no_files_but_its_partitions():
    outside = {"torch", "numpy", "scipy", "sklearn", "threadpoolctl"}
    standard = {"collections", "contextlib", "dataclasses", "json", "math", "operator", "typing", "warnings"}
    for name in RING_1:
        for node in ast.walk(ast.parse(MODULES[name].read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                assert {one.split(".")[0] for one in modules} <= outside | standard | {"cpsd_lib"}, name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "open"), f"{name}, line {node.lineno}"


def test_the_method_and_the_library_stay_thin():
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert sum(lines[name] for name in RING_1) <= 1_000
    assert sum(lines.values()) <= 12_880
    assert len(list(LIBRARY.glob("*.py"))) == 9
