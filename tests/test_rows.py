import pytest

from cpsd_lib.rows import BRANCHES, COMPONENTS, ROWS, TITLES, baseline_of, branches_of, equal_epochs, shares


def test_rows_need_the_branches_of_their_teachers():
    assert branches_of(["baseline"]) == branches_of(["sd", "baseline"]) == ["whole"]
    assert branches_of(["cgpd"]) == ["co"] and branches_of(["dgpd", "baseline"]) == ["whole", "dis"]
    assert branches_of(["cpsd"]) == ["co", "dis"] and branches_of(["cpsd", "sd"]) == ["whole", "co", "dis"]
    assert branches_of(["alone", "baseline_long"]) == [] and branches_of(["sd_long", "rand"]) == ["random", "long"]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_title_of_its_own_and_known_teachers_whose_shares_add_up_to_one(row):
    assert list(TITLES.values()).count(TITLES[row]) == 1
    assert set(ROWS[row].teachers) <= set(BRANCHES)
    assert sum(shares(row, 0.3).values()) == (pytest.approx(1) if ROWS[row].teachers else 0)


def test_alpha_is_the_co_branchs_share():
    assert shares("cpsd", 0.3) == {"co": 0.3, "dis": 0.7} and shares("dgpd", 0.3) == {"dis": 1.0}


def test_the_gain_is_against_the_baseline_or_else_the_student_alone():
    assert baseline_of(["sd", "alone", "baseline"]) == "baseline"
    assert baseline_of(["sd", "alone"]) == "alone" and baseline_of(["sd"]) is None


def test_led_rows_are_the_ones_that_embed():
    assert [row for row in ROWS if ROWS[row].embeds] == ["led", "mld_led", "cpsd_mld_led"]
    assert not any(ROWS[row].embeds for row in COMPONENTS)


@pytest.mark.parametrize(
    ("teachers", "students", "views", "k", "expected"),
    [
        (80, 80, 80, 5, (1147, 800)),  # the release: 800 epochs of teachers, 267 epochs' time of targets, a student
        (6, 6, 6, 3, (54, 36)),
        (10, 10, 5, 4, (103, 80)),
        (1, 1, 1, 1, (4, 2)),
    ],
)
def test_equal_time_counts_a_step_as_three_forward_passes_and_a_target_as_one(teachers, students, views, k, expected):
    assert equal_epochs(teachers, students, views, k) == expected
