"""The rows of the result tables: which teachers a student has, and how it is matched to them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row; its student learns from the labels and from the merged teachers of each branch in `teachers`.

    Branches: whole (one teacher over all classes), co and dis (CGP, DGP), random (as many parts, of random classes), long
    (whole, trained as long as all teachers of co and dis together), again (whole, trained on as a teacher of a part is).
    method: "self" is CPSD's match on logits (METHOD 1.5); "mld", "led" and "mld+led" are L2D's losses (METHOD 2).
    """

    title: str
    teachers: tuple[str, ...] = ()
    method: str = "self"

    @property
    def embeds(self):
        """Whether its student is matched by label-wise embeddings, which the head gap does not have."""
        return "led" in self.method

    @property
    def hears(self):
        """Whether its student is matched by its teachers' logits, which are stored."""
        return bool(self.teachers) and self.method != "led"


# In the order of the tables. The baseline is the teacher over all classes itself, so it is trained in stage 03.
ROWS = {
    "baseline": Row("baseline", ("whole",)),
    "alone": Row("student alone"),  # the baseline where the teacher is another, larger model
    "sd": Row("+ SD", ("whole",)),
    "cgpd": Row("+ CGPD", ("co",)),
    "dgpd": Row("+ DGPD", ("dis",)),
    "rand": Row("+ random parts", ("random",)),
    "cpsd": Row("+ CPSD", ("co", "dis")),
    # What CPSD's time buys without it (METHOD 5); `equal_epochs` says how long.
    "baseline_long": Row("baseline, CPSD's time"),
    "sd_long": Row("+ SD, CPSD's time", ("long",)),
    # Where the teachers start from the baseline: what their additional epochs buy without any parts.
    "sd_again": Row("+ SD, teacher trained on", ("again",)),
    # L2D and its parts.
    "mld": Row("+ MLD", ("whole",), "mld"),
    "led": Row("+ LED", ("whole",), "led"),
    "mld_led": Row("+ MLD + LED", ("whole",), "mld+led"),
    # Both papers at once: CPSD's merged teachers, L2D's losses.
    "cpsd_mld": Row("+ CPSD by MLD", ("co", "dis"), "mld"),
    "cpsd_mld_led": Row("+ CPSD by MLD + LED", ("co", "dis"), "mld+led"),
}
TITLES = {name: row.title for name, row in ROWS.items()} | {"released": "released checkpoint"}
BRANCHES = ("whole", "co", "dis", "random", "long", "again")
FROM_MODEL = ("whole", "long")  # the branches that start from their own model, whatever teachers.start is
CONTROLS = ("rand", "sd_again", "sd_long", "baseline_long")  # what the cut, or its time, is worth by itself
COMPONENTS = ("baseline", "sd", "cgpd", "dgpd", "cpsd")  # CPSD's own table


def baseline_of(rows):
    """Return which of some rows the others' gain is measured against; None where neither baseline nor alone is there."""
    return next((row for row in ("baseline", "alone") if row in rows), None)


def branches_of(rows):
    """Return the branches whose teachers some rows need, in the order of BRANCHES."""
    needed = {branch for row in rows for branch in ROWS[row].teachers}
    return [branch for branch in BRANCHES if branch in needed]


def branches_heard(rows):
    """Return the branches whose stored logits the students of some rows read, in the order of BRANCHES."""
    return branches_of([row for row in rows if row != "baseline" and ROWS[row].hears])


def shares(row, alpha):
    """Return {branch: share} of a row's teachers in its match, adding up to 1; alpha is the co branch's beside dis."""
    teachers = ROWS[row].teachers
    return {"co": alpha, "dis": 1.0 - alpha} if len(teachers) > 1 else dict.fromkeys(teachers, 1.0)


def views_of(student):
    """Return how many views of an image its teachers speak about, for StudentParams `student`."""
    return min(student.views or student.trained_epochs, student.trained_epochs)


def equal_epochs(teachers, student, k, own=1.0):
    """Return (epochs of a baseline, epochs of one teacher) that take the time of CPSD and of its 2k teachers (work_of)."""
    # A student that starts from the baseline pays for it; else the teachers do.
    again = teachers.trained_epochs if teachers.start == "baseline" and student.start == "model" else 0
    return round(work_of("cpsd", teachers, student, k, own)), round(again + _tails(teachers, 2 * k, own))


def work_of(row, teachers, student, k, own=1.0):
    """Return the work of a row from scratch, in epochs of a baseline: its teachers, what they say, its student.

    teachers, student: TeacherParams and StudentParams. own: share of a forward pass that a teacher has to itself; the rest
    is the frozen trunk's, once for all of them. In forward passes an image: a training step is 3, a soft target 1.
    """
    if row == "baseline":
        return teachers.trained_epochs
    if row == "baseline_long":
        return equal_epochs(teachers, student, k, own)[0]
    trained = {"whole": teachers.trained_epochs}
    if "long" in ROWS[row].teachers:
        trained["long"] = equal_epochs(teachers, student, k, own)[1]
    whole = [branch for branch in ROWS[row].teachers if branch in FROM_MODEL]
    parts = sum(1 if branch == "again" else k for branch in ROWS[row].teachers if branch not in FROM_MODEL)
    taught = sum(trained[branch] for branch in whole) + _tails(teachers, parts, own)
    # Logits are asked for once a view, an embedding anew in every step.
    asked = (views_of(student) if ROWS[row].hears else 0) + (student.trained_epochs if ROWS[row].embeds else 0)
    targets = asked * (len(whole) + (parts * own + 1 - own if parts else 0)) / 3
    starts = student.start == "baseline" or (parts and teachers.start == "baseline")
    before = teachers.trained_epochs if starts and "whole" not in whole else 0
    return before + taught + targets + student.trained_epochs


def _tails(teachers, count, own):
    """Return the work of training `count` teachers of parts, without the baseline they may start from."""
    more = teachers.more_epochs if teachers.start == "baseline" else None
    return (more or teachers.trained_epochs) * (count * own + (1 - own) / 3) if count else 0
