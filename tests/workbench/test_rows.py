from types import SimpleNamespace

import pytest

from cpsd_lib.workbench.cost import equal_epochs, work_of
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.rows import (
    BRANCHES,
    COMPONENTS,
    ROWS,
    TITLES,
    baseline_of,
    branch_weights,
    branches_matched,
    branches_of,
    views_of,
)
from cpsd_lib.workbench.yaml_files import ParameterError


def test_rows_need_the_branches_of_their_teachers():
    assert branches_of(["baseline"]) == branches_of(["sd", "baseline"]) == ["whole"]
    assert branches_of(["cgpd"]) == ["co"] and branches_of(["dgpd", "baseline"]) == ["whole", "dis"]
    assert branches_of(["cpsd"]) == ["co", "dis"] and branches_of(["cpsd", "sd"]) == ["whole", "co", "dis"]
    assert branches_of(["student_only", "baseline_equal_compute"]) == [] and branches_of(
        ["sd_equal_compute", "rand"]
    ) == ["random", "equal_compute"]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_title_of_its_own_and_known_teachers_whose_shares_add_up_to_one(row):
    assert list(TITLES.values()).count(TITLES[row]) == 1
    assert set(ROWS[row].teachers) <= set(BRANCHES)
    assert sum(branch_weights(row, 0.3).values()) == (pytest.approx(1) if ROWS[row].teachers else 0)


def test_alpha_is_the_co_branchs_share():
    assert branch_weights("cpsd", 0.3) == {"co": 0.3, "dis": 0.7} and branch_weights("dgpd", 0.3) == {"dis": 1.0}


def test_the_gain_is_against_the_baseline_or_else_the_student_alone():
    assert baseline_of(["sd", "student_only", "baseline"]) == "baseline"
    assert baseline_of(["sd", "student_only"]) == "student_only" and baseline_of(["sd"]) is None


def test_led_rows_are_the_ones_that_embed():
    assert [row for row in ROWS if ROWS[row].uses_embeddings] == ["led", "mld_led", "cpsd_mld_led"]
    assert not any(ROWS[row].uses_embeddings for row in COMPONENTS)


def settings(epochs, start="model", **more):
    usual = {"epochs": epochs, "trained_epochs": epochs, "start": start, "more_epochs": None, "views": None}
    return SimpleNamespace(**usual | more)


@pytest.mark.parametrize(
    ("teachers", "students", "views", "k", "expected"),
    [
        (80, 80, None, 5, (1147, 800)),  # the release: 800 epochs of teachers, 267 epochs' time of targets, a student
        (6, 6, 60, 3, (54, 36)),
        (10, 10, 5, 4, (103, 80)),
        (1, 1, 1, 1, (4, 2)),
    ],
)
def test_equal_time_counts_a_step_as_three_forward_passes_and_a_target_as_one(teachers, students, views, k, expected):
    assert equal_epochs(settings(teachers), settings(students, views=views), k) == expected


def test_teachers_that_start_from_the_baseline_cost_it_too_and_their_trunk_once():
    again = settings(6, "baseline")
    assert equal_epochs(again, settings(6), 3) == (60, 42)  # as above, and the baseline's 6 epochs before
    # A tenth of a forward is each one's own: 6 x 0.1 x 6 steps, 0.9 / 3 x 6 for the trunk; of 6 views 1.2 and 1.8.
    assert equal_epochs(again, settings(6), 3, own=0.1) == (round(6 + 3.6 + 1.8 + 1.2 + 1.8 + 6), round(6 + 5.4))
    assert equal_epochs(settings(6, "baseline", more_epochs=2), settings(6), 3) == (36, 18)
    assert equal_epochs(settings(6), settings(2, "baseline"), 3) == (6 + 36 + 4 + 2, 36)


def test_a_schedule_that_is_left_early_costs_the_epochs_before():
    assert equal_epochs(settings(80, trained_epochs=30), settings(80, views=1), 1) == (round(60 + 2 / 3 + 80), 60)


def test_the_work_of_a_row_is_its_teachers_their_words_and_its_student():
    def work(row, **student):
        return work_of(row, settings(6), settings(6, **student), 3)

    assert (work("baseline"), work("student_only"), work("sd")) == (6, 6, 6 + 2 + 6)
    assert work("cgpd") == work("dgpd") == work("rand") == 3 * 6 + 6 + 6
    assert (
        work("cpsd") == 36 + 12 + 6 and work("baseline_equal_compute") == 54 and work("sd_equal_compute") == 36 + 2 + 6
    )
    assert work("cpsd", views=2) == 36 + 4 + 6
    # Embeddings are no words that can be stored: the teacher is asked in every epoch.
    assert work("mld", views=2) == pytest.approx(6 + 2 / 3 + 6) and work("led", views=2) == 14
    assert work("mld_led", views=2) == pytest.approx(6 + 2 + 6)  # logits come with the embeddings


def test_the_work_of_a_row_that_starts_from_the_baseline_holds_the_baseline_once():
    tails, short = settings(6, "baseline", more_epochs=2), settings(2, "baseline")
    trunk = 0.9 / 3
    assert work_of("cpsd", tails, short, 3, 0.1) == pytest.approx(6 + 2 * (0.6 + trunk) + 2 * (0.2 + trunk) + 2)
    assert work_of("sd_continued", tails, short, 3, 0.1) == pytest.approx(
        6 + 2 * (0.1 + trunk) + 2 * (0.1 / 3 + trunk) + 2
    )
    assert work_of("sd", tails, short, 3, 0.1) == pytest.approx(6 + 2 / 3 + 2)  # its teacher is the baseline
    assert work_of("student_only", tails, short, 3, 0.1) == 6 + 2 and work_of("baseline", tails, short, 3, 0.1) == 6


@pytest.mark.parametrize("teachers", ["model", "baseline"])
@pytest.mark.parametrize("student", ["model", "baseline"])
def test_the_rows_of_equal_time_take_as_long_as_cpsd_wherever_things_start(teachers, student):
    both = settings(60, teachers, more_epochs=20), settings(30, student, views=1)
    for images in (1.0, 2.5):  # of a student's epoch: unlabelled ones as well
        rows = ("cpsd", "sd_equal_compute", "baseline_equal_compute")
        cpsd, of_teacher, of_baseline = (work_of(row, *both, 4, 0.4, images) for row in rows)
        # One target of the single teacher is less than those of eight, and epochs are whole.
        assert of_baseline == round(cpsd) and -4 * images < of_teacher - cpsd < 1


def test_views_that_a_student_never_comes_to_are_not_counted():
    early = settings(80, trained_epochs=30)
    assert views_of(early) == 30 and views_of(settings(80, trained_epochs=30, views=50)) == 30
    assert work_of("cpsd", settings(30), early, 5) == work_of("cpsd", settings(30), settings(30), 5)


def test_rows_without_logits_have_no_store_and_embeddings_bring_theirs_along():
    assert branches_matched(["baseline", "led", "mld_led", "student_only"]) == []
    assert branches_matched(["cpsd_mld", "sd_continued"]) == ["co", "dis", "continued"]


def test_a_baseline_of_cpsds_compute_needs_teachers_of_its_own_model():
    given = {"teacher_model": {"name": "test_resnet"}, "student.rows": ["student_only", "baseline_equal_compute"]}
    with pytest.raises(ParameterError, match="has CPSD's compute where its teachers are the student's own model"):
        load_params("tiny", given)
