"""What there is, and what a run would do, as lines for a terminal."""

import inspect
import re
from itertools import takewhile
from typing import Literal, get_args, get_origin

from cpsd_lib.support import counted
from cpsd_lib.workbench.loading import SECTIONS, resolve
from cpsd_lib.workbench.open import opened_run
from cpsd_lib.workbench.params import Params
from cpsd_lib.workbench.pipeline import MADE, read_manifest, stages_left, stages_of
from cpsd_lib.workbench.preflight import check_run, models_to_train
from cpsd_lib.workbench.rows import ROWS, TITLES
from cpsd_lib.workbench.scoring import caveats_of_data, load_records
from cpsd_lib.workbench.yaml_files import flow_text, outputs_root, repo_root


def listing():
    """Return the runs in outputs/, the parameter files, the grids and the rows of the tables, a line each."""
    lines = [f"runs in {outputs_root()}"]
    for path in sorted(outputs_root().glob("*/manifest.json")):
        scores, text = path.parent / "evaluation" / "metrics.json", ""
        try:
            text = counted(len(read_manifest(path.parent)["stages"]), "stage")
            for one in load_records(run := opened_run(path.parent)).to_dict("records") if scores.exists() else []:
                if (one["split"], one["row"]) in (("test", "baseline"), ("test", "cpsd")) and one["mAP"] == one["mAP"]:
                    text += f"; {TITLES[one['row']]} {one['mAP']:.1f} mAP (seed {one['seed']})"
            text += "".join(f" ({note})" for note in caveats_of_data(run)) if scores.exists() else ""
        except (ValueError, RuntimeError, OSError) as error:  # one damaged run hides no other
            text = f"{text}; {error}".lstrip("; ")
        lines.append(_line(path.parent.name, text))
    for command, folder in (("run", "params"), ("grid", "params/grids")):
        lines += ["", f"in {folder}: cpsd {command} NAME"]
        for path in sorted((repo_root() / folder).glob("*.yaml")):
            comment = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
            lines.append(_line(path.stem, re.split(r"(?<=\.)\s", " ".join(line.lstrip("# ") for line in comment))[0]))
    lines += ["", "rows of the tables: cpsd run NAME student.rows=[ROW, ROW]"]
    lines += [_line(name, f"{row.title} (teachers: {', '.join(row.teachers) or 'none'})") for name, row in ROWS.items()]
    return lines


def _line(name, text):
    return f"  {name:<31} {text}"


# ---- parameters ------------------------------------------------------------------------------------------------------


def parameters(begin=""):
    """Return every parameter whose name begins so, a line each: its default (of the recipe "default"), choices and meaning."""
    usual = resolve({"name": "NAME", "data": {"kind": "scenes"}, "model": {"name": "NAME"}}).model_dump(mode="json")
    lines = [_line(name, text) for name, text in _of(Params, usual, "") if name.startswith(begin)]
    return [*lines, "", "train.X sets teachers.X and student.X; teacher_model.X and wide_model.X are as model.X"]


def _of(kind, usual, section):
    about = meanings(kind)
    for name, field in kind.model_fields.items():
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if one in SECTIONS.values()]
        if inner and usual[name] is not None:
            yield from _of(inner[0], usual[name], f"{name}.")
        elif not inner:
            needed = usual[name] == "NAME" or (section == "data." and field.is_required())
            default = "(needed)" if needed else flow_text(usual[name])
            choices = ", ".join(map(str, get_args(field.annotation))) if get_origin(field.annotation) is Literal else ""
            yield f"{section}{name}", f"{default.strip():<12}  {choices}{choices and '; '}{about.get(name, '')}"


def meanings(kind):
    """Return {parameter: what the comment behind it, or above it, says} of a section and of the settings it takes over."""
    found = {}
    for one in reversed([base for base in kind.__mro__ if base.__module__.startswith("cpsd_lib")]):
        above = []
        for line in inspect.getsource(one).splitlines():
            field, comment = re.match(r"    (\w+): ", line), line.partition("# ")[2]
            if field and (comment or above):
                found[field[1]] = (comment or " ".join(above)).replace("None:", "null:")
            above = [*above, comment] if line.strip().startswith("# ") else []
    return found


# ---- the plan of a run -----------------------------------------------------------------------------------------------


def plan(params):
    """Return which stages `cpsd run` would do, why, and about how long; ParameterError for what would not start."""
    left, names = stages_left(params), stages_of(params)
    entries, lines = read_manifest(outputs_root() / params.name)["stages"], []
    if left:
        check_run(params)
    models = models_to_train(params) if left.keys() & MADE.keys() else {}
    for number, name in enumerate(names, 1):
        text = "to do" if name in left else f"done on {entries[name]['finished']}"
        text = f"again, {left[name]}" if left.get(name) else text
        text += f"; {models[name]}" if name in left and name in models else ""
        lines.append(f"[{number}/{len(names)}] {name:<15} {text}")
    return [*lines, "A model that the store has is not trained again."] if models else lines
