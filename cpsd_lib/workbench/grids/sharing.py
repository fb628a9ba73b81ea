"""What the jobs of a grid need in common: made once, by the first of them, and linked into the folders of the others."""

import csv
import os
import shutil
from typing import NamedTuple

import numpy as np

from cpsd_lib.support import atomic, digest
from cpsd_lib.training import remove_store
from cpsd_lib.workbench.distill import unread_by
from cpsd_lib.workbench.rows import ROWS, branches_matched, branches_of, views_of
from cpsd_lib.workbench.run_training import NEUTRAL, START

# The stage that makes a piece; a piece is named seed0/teachers/co, seed0/soft_targets/co, seed0/students/cpsd.
MADE_IN = {"teachers": "03_teachers", "soft_targets": "04_student", "students": "04_student"}
# What of the parameters the parts depend on, and what of the student's the soft targets depend on.
_CUT = {"k", "exponent", "self_loops", "seed", "refine_co", "refine_dis", "use_released", "released_co", "released_dis"}
_SPOKEN = {"view", "precision", "select", "val_share", "teacher_mode"}


class Piece(NamedTuple):
    """Something a run trains: the hash of the parameters that determine it, and how many models it takes."""

    fingerprint: str
    models: int


def kind_of(piece):
    """Return teachers, soft_targets or students for a piece's name."""
    return piece.split("/")[1]


def pieces_of(params):
    """Return {name: Piece} of all that a run of Params `params` trains.

    Two runs whose pieces are made of the same get the same. It only says where to look: what is linked on the strength of
    it is checked again by the training itself, by the hashes of data, parts and files.
    """
    if params.evaluation.released or params.data.kind == "labels":
        return {}
    student = params.student
    cut = params.partition.model_dump(mode="json", include=_CUT)
    teacher = params.model_dump(mode="json", include={"data", "protocol", "device"})
    teacher["model"] = (params.teacher_model or params.model).model_dump(mode="json")
    teacher["training"] = params.teachers.model_dump(mode="json", exclude=NEUTRAL)
    # The baseline and the teacher of CPSD's time start from no other.
    first = teacher | {"training": {name: value for name, value in teacher["training"].items() if name not in START}}
    views = views_of(student)
    spoken = student.model_dump(mode="json", include=_SPOKEN) | {"views": views}
    taught = [row for row in student.rows if row != "baseline"]
    fingerprint = {}  # {name without the seed: (number of models, ...)}
    for branch in branches_of(student.rows):
        long = [cut, student.trained_epochs, student.start, views, teacher["training"]]
        one = {"whole": (1, None, first), "equal_compute": (1, long, first), "continued": (1, None, teacher)}
        parts = one.get(branch, (params.partition.k, cut, teacher))
        fingerprint[f"teachers/{branch}"] = parts
        if branch in branches_matched(taught):
            fingerprint[f"soft_targets/{branch}"] = (*parts, spoken)
    for row in taught:
        # The baseline of CPSD's time has no teachers and still counts their parts.
        parts = None if row == "student_only" or ROWS[row].teachers in (("whole",), ("continued",)) else cut
        learning = student.model_dump(mode="json", exclude={*NEUTRAL, *unread_by(row)})
        model = params.model.model_dump(mode="json")
        taught_by = first if row == "student_only" or ROWS[row].teachers == ("whole",) else teacher
        fingerprint[f"students/{row}"] = (1, parts, taught_by, spoken if ROWS[row].teachers else None, learning, model)
    return {
        f"seed{seed}/{name}": Piece(digest([name, seed, *parts]), parts[0])
        for seed in params.seed_list()
        for name, parts in fingerprint.items()
    }


def finished_pieces(pieces, stages_left):
    """Return those of a run's {name: Piece} that are there, where some of its stages are left to do."""
    return {name: piece for name, piece in pieces.items() if MADE_IN[kind_of(name)] not in stages_left}


def donors(name, pieces, available):
    """Return {piece: the run that has it} of the pieces that the run `name` lacks; available: {run: its finished pieces}."""
    found = {}
    for piece, wanted in pieces.items():
        if piece in available.get(name, {}):
            continue
        having = (other for other, there in available.items() if there.get(piece) == wanted)
        donor = next(having, None)
        if donor is not None:
            found[piece] = donor
    return found


def better_later(pieces, given, running):
    """Return whether a run should wait: others that run now train at least half of the teachers that nobody gives it.

    pieces: its own {name: Piece}; given: names of those that finished runs have; running: the pieces of each running run.
    """
    lacking = {n: piece for n, piece in pieces.items() if kind_of(n) == "teachers" and n not in given}
    coming = sum(piece.models for n, piece in lacking.items() if any(other.get(n) == piece for other in running))
    return coming > 0 and 2 * coming >= sum(piece.models for piece in lacking.values())


def schedule(jobs, available, start, wait, most, after_failure):
    """Run `jobs` (with .name and .pieces), at most `most` at once, so that they can share; yield (job, None or why it failed).

    available {name of a run: its finished pieces} grows as jobs end. start(job, {piece: run that has it}) starts one;
    wait() returns (name, None or why it failed) of one that ended. after_failure(job) returns the pieces that a failed
    job has finished all the same.
    """
    waiting, running = list(jobs), {}
    while waiting or running:
        while len(running) < most:
            given = {job.name: donors(job.name, job.pieces, available) for job in waiting}
            busy = [job.pieces for job in running.values()]
            having = {name: {*found, *available.get(name, {})} for name, found in given.items()}
            job = next((job for job in waiting if not better_later(job.pieces, having[job.name], busy)), None)
            if job is None:
                break
            waiting.remove(job)
            running[job.name] = job
            start(job, given[job.name])
        name, error = wait()
        job = running.pop(name)
        available[name] = job.pieces if error is None else after_failure(job)
        yield job, error


# ---- on disk -------------------------------------------------------------------------------------------------------


def adopt(folder, pieces, given):
    """Link the pieces of other runs into a run's `folder`; pieces: names it needs; given {name: folder of the run that has it}.

    A hard link takes no room and is safe: every file of a run is replaced, never changed, but a soft-target store that
    is not full, and that is copied. Where links are not possible the files are copied.
    """
    for piece, donor in given.items():
        seed, kind, name = piece.split("/")
        source, target = donor / seed / kind, folder / seed / kind
        if kind == "soft_targets":
            _adopt_store(source / f"{name}.f16", target / f"{name}.f16")
        elif kind == "teachers":
            _adopt_teachers(source, target, name)
        elif (source / name / "student.json").exists():
            _adopt_learner(source / name / "student.json", target / name)
            _link(source / name / "history.csv", target / name / "history.csv")
            (target / name / "last.ckpt").unlink(missing_ok=True)
    for teachers in {piece.rpartition("/")[0] for piece in given if kind_of(piece) == "teachers"}:
        if all(piece in given for piece in pieces if piece.startswith(f"{teachers}/")):
            for leftover in (folder / teachers).rglob("last.ckpt"):  # nobody is left to go on from it
                leftover.unlink()


def _adopt_teachers(source, target, branch):
    names = {}
    for record in sorted(source.rglob("*.json")):
        if record.stem.partition("-")[0] == branch:
            beside = record.parent.relative_to(source)
            _adopt_learner(record, target / beside)
            names.setdefault(beside, set()).add(record.stem)
    for beside, learners in names.items():
        _adopt_history(source / beside / "history.csv", target / beside / "history.csv", learners)


def _adopt_learner(record, target):
    _link(record.with_suffix(".safetensors"), target / f"{record.stem}.safetensors")
    _link(record, target / record.name)  # last: it makes the weights valid


def _adopt_history(source, target, learners):
    """Put the lines of some learners in place of the target's own lines of these learners."""
    kept = [row for row in _csv_rows(target) if row["learner"] not in learners]
    rows = kept + [row for row in _csv_rows(source) if row["learner"] in learners]
    with atomic(target) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def _csv_rows(path):
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _adopt_store(source, target):
    sums = source.with_suffix(".sums")
    if not source.with_suffix(".json").exists() or not sums.exists():
        return
    full, own = np.fromfile(sums, np.uint32), target.with_suffix(".sums")
    if target.exists() and target.samefile(source):
        return
    records = [path.with_suffix(".json") for path in (source, target)]
    same = own.exists() and records[1].exists() and records[0].read_bytes() == records[1].read_bytes()
    if same and np.count_nonzero(np.fromfile(own, np.uint32)) >= np.count_nonzero(full):
        return  # it has as much of the same already
    take = _link if full.all() else _copy  # one that is not full will be written to
    remove_store(target)  # before its marks could vouch for other values
    for suffix in (".f16", ".seconds", ".sums", ".json"):
        if source.with_suffix(suffix).exists():
            take(source.with_suffix(suffix), target.with_suffix(suffix))


def _copy(source, target):
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)


def _link(source, target):
    # Renaming one name of a file over another name of the same file does nothing, and leaves both.
    if target.exists() and target.samefile(source):
        return
    with atomic(target) as temporary:
        temporary.unlink(missing_ok=True)  # a killed process's, of this number, may be another name of the source
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)
