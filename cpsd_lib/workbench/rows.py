"""The rows of the result tables: which teachers a student has, and how it is matched to them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row; its student learns from the labels and from the soft targets of each branch in `teachers`.

    Branches: whole (one teacher over all classes), co and dis (CGP, DGP), random and random_2 (as many parts, of random
    classes, in two draws), ensemble (as many whole models as co and dis have teachers), wide (one teacher of `wide_model`),
    equal_compute (whole, trained as long as all teachers of co and dis together), continued (whole, trained on as a teacher
    of a part is). method: "self" is CPSD's match on logits; "mld", "led" and "mld+led" are L2D's losses; "pseudo" gives the
    unlabelled images pseudo-labels (training.PseudoLabels).
    """

    title: str
    teachers: tuple[str, ...] = ()
    method: str = "self"

    @property
    def uses_embeddings(self):
        """Whether its student is matched by label-wise embeddings, which the head gap does not have."""
        return "led" in self.method

    @property
    def reads_stored(self):
        """Whether its student reads its teachers' stored logits; those of a match by embeddings come with the embeddings."""
        return bool(self.teachers) and not self.uses_embeddings

    @property
    def uses_unlabelled(self):
        """Whether its student trains on unlabelled images too."""
        return bool(self.teachers) or self.starts_trained

    @property
    def starts_trained(self):
        """Whether its student always starts from the trained baseline: pseudo-labels need a model that knows something."""
        return self.method == "pseudo"


# In the order of the tables. The baseline is the teacher over all classes itself, so it is trained in stage 03.
ROWS = {
    "baseline": Row("baseline", ("whole",)),
    "student_only": Row("student only"),  # the baseline where the teacher is another, larger model
    "sd": Row("+ SD", ("whole",)),
    "cgpd": Row("+ CGPD", ("co",)),
    "dgpd": Row("+ DGPD", ("dis",)),
    "rand": Row("+ random parts", ("random",)),
    "cpsd": Row("+ CPSD", ("co", "dis")),
    # What CPSD's compute buys without it; cost.equal_epochs computes how long.
    "baseline_equal_compute": Row("baseline, CPSD's compute"),
    "sd_equal_compute": Row("+ SD, CPSD's compute", ("equal_compute",)),
    # Where the teachers start from the baseline: what their additional epochs buy without any parts.
    "sd_continued": Row("+ SD, teacher continued", ("continued",)),
    # L2D and its parts.
    "mld": Row("+ MLD", ("whole",), "mld"),
    "led": Row("+ LED", ("whole",), "led"),
    "mld_led": Row("+ MLD + LED", ("whole",), "mld+led"),
    # Both papers at once: CPSD's merged teachers, L2D's losses.
    "cpsd_mld": Row("+ CPSD by MLD", ("co", "dis"), "mld"),
    "cpsd_mld_led": Row("+ CPSD by MLD + LED", ("co", "dis"), "mld+led"),
    # What carries it: other teachers, matched in the same way, and no teacher at all.
    "cgpd_mld": Row("+ CGPD by MLD", ("co",), "mld"),
    "dgpd_mld": Row("+ DGPD by MLD", ("dis",), "mld"),
    "rand_mld": Row("+ random parts by MLD", ("random",), "mld"),
    "rand2_mld": Row("+ two draws of random parts by MLD", ("random", "random_2"), "mld"),
    "ensemble_mld": Row("+ ensemble by MLD", ("ensemble",), "mld"),
    "wide_mld": Row("+ wide teacher by MLD", ("wide",), "mld"),
    "cap": Row("+ class-aware pseudo-labels", (), "pseudo"),
}
TITLES = {name: row.title for name, row in ROWS.items()} | {"released": "released checkpoint"}
BRANCHES = {  # and what its merged teachers are called
    "whole": "teacher",
    "co": "co teachers",
    "dis": "dis teachers",
    "random": "random teachers",
    "random_2": "random teachers, second draw",
    "ensemble": "ensemble",
    "wide": "wide teacher",
    "equal_compute": "teacher, CPSD's compute",
    "continued": "teacher, continued",
}
# The branches that start from their own model, whatever teachers.start is.
FROM_MODEL = ("whole", "ensemble", "wide", "equal_compute")
EQUAL = "baseline_equal_compute"  # trained as the baseline is, which is a teacher, for as long as all of CPSD
# What the cut, or its compute, is worth by itself.
CONTROLS = ("rand", "sd_continued", "sd_equal_compute", EQUAL)
COMPONENTS = ("baseline", "sd", "cgpd", "dgpd", "cpsd")  # CPSD's own table


def baseline_of(rows):
    """Return which of some rows the others' gain is measured against; None where neither baseline nor student_only is there."""
    return next((row for row in ("baseline", "student_only") if row in rows), None)


def branches_of(rows):
    """Return the branches whose teachers some rows need, in the order of BRANCHES."""
    needed = {branch for row in rows for branch in ROWS[row].teachers}
    needed |= {"whole"} if any(ROWS[row].starts_trained for row in rows) else set()
    return [branch for branch in BRANCHES if branch in needed]


def branches_trained(rows, teachers, students):
    """Return the branches whose teachers are trained for some rows, in order: the baseline too where a model starts from it.

    teachers, students: what they start from, "model" or "baseline".
    """
    needed = branches_of(rows)
    start_there = students == "baseline" and any(row != EQUAL for row in rows)
    start_there = start_there or (teachers == "baseline" and not set(needed).issubset(FROM_MODEL))
    return needed if "whole" in needed or not start_there else ["whole", *needed]


def trained_together(branches, start):
    """Return some branches in lists whose teachers train side by side, in order: those of one schedule, and of one start."""
    groups = {}
    for branch in branches:
        alone = branch if branch in ("equal_compute", "wide") else ""
        later = start == "baseline" and branch not in FROM_MODEL  # the baseline comes first
        groups.setdefault((alone, later), []).append(branch)
    return list(groups.values())


def branches_matched(rows):
    """Return the branches whose stored logits the students of some rows read, in the order of BRANCHES."""
    return branches_of([row for row in rows if row != "baseline" and ROWS[row].reads_stored])


def branch_weights(row, alpha):
    """Return {branch: weight} of a row's teachers in its match, adding up to 1; alpha is the first of two branches'."""
    teachers = ROWS[row].teachers
    return dict(zip(teachers, (alpha, 1.0 - alpha) if len(teachers) > 1 else (1.0,), strict=False))


def unread_by(row):
    """Return the student parameters that a row does not depend on: another alpha is another CPSD student, and nothing else."""
    teachers, method = ROWS[row].teachers, ROWS[row].method
    read = {"alpha": len(teachers) > 1, "match": method == "self" and bool(teachers)}
    read |= dict.fromkeys(("mld", "temperature"), "mld" in method) | dict.fromkeys(("cd", "id"), "led" in method)
    return {name for name, does in read.items() if not does}


def views_of(student):
    """Return how many views of an image have soft targets, for StudentParams `student`."""
    return min(student.views or student.trained_epochs, student.trained_epochs)
