from cpsd_lib.support import counted, memory


def test_one_thing_is_one_and_no_or_many_things_are_many():
    assert [counted(count, "image") for count in (0, 1, 2_000)] == ["0 images", "1 image", "2,000 images"]
    assert [counted(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]


def test_less_than_a_gib_is_told_in_mib():
    assert [memory(gib) for gib in (0, 0.25, 1, 13.04)] == ["0 MiB", "256 MiB", "1.0 GiB", "13.0 GiB"]
