"""The engine's parameters, and how the work of a run is cut into groups; Ray itself is in tests/faults/test_ray.py."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cpsd_lib import cli
from cpsd_lib.workbench import engine, making
from cpsd_lib.workbench.cost import teachers_that_fit
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.making import (
    load_artifact,
    student_group,
    target_groups,
    teacher_groups,
    train_student,
    train_teachers,
)
from cpsd_lib.workbench.pipeline import STAGES, stage_fingerprint
from cpsd_lib.workbench.recipes import teacher_tasks
from cpsd_lib.workbench.run import cut_labels, open_run
from cpsd_lib.workbench.store import Store, key_of
from cpsd_lib.workbench.yaml_files import ParameterError, Stopped

SMALL = {"data.images": 100, "data.size": 16, "train.epochs": 1, "train.batch_size": 32, "partition.k": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two seeds whose labels are cut and of which nothing is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPSD_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        run = open_run("tiny", SMALL | {"name": "groups", "seeds": 2, "student.views": 1})
        cut_labels(run)
        yield run


# ---- the parameter ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [{"engine": "ray", "engine.address": "a:1"}, {"engine.address": "a:1", "engine": "ray"},
     {"engine": {"kind": "ray", "address": "a:1"}}],
)  # fmt: skip
def test_the_engine_is_one_word_or_a_section(given):
    assert (
        load_params("tiny", given).engine == load_params("tiny", {"engine.kind": "ray", "engine.address": "a:1"}).engine
    )


def test_a_parameter_file_may_hold_the_one_word(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\nextends: tiny\nengine: ray\n")
    (tmp_path / "tiny.yaml").write_text("data: {kind: scenes}\nmodel: {name: test_resnet}\n")
    assert load_params(tmp_path / "mine.yaml").engine.kind == "ray"
    assert load_params(tmp_path / "mine.yaml", {"engine.threads": 2}).engine.threads == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "rya"}, "engine.kind: must be one of 'local' or 'ray'; got 'rya'"),
        ({"engine.address": "a:1"}, "engine: address and threads are for engine=ray"),
        ({"engine.threads": 0, "engine": "ray"}, "engine.threads: must be at least 1"),
        ({"engine": "ray", "device": "cuda:1"}, "device: under engine: ray Ray chooses each task's GPU"),
    ],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(ParameterError, match=words):
        load_params("tiny", given)


def test_the_engine_is_in_no_key_and_makes_no_stage_stale(run):
    other = open_run(
        "tiny", SMALL | {"name": "groups", "seeds": 2, "student.views": 1, "engine": "ray", "engine.threads": 3}
    )
    assert [t.key for t in teacher_tasks(run, 0, "co")] == [t.key for t in teacher_tasks(other, 0, "co")]
    for stage in STAGES:
        assert stage_fingerprint(stage, run.params, None) == stage_fingerprint(stage, other.params, None)
    assert other.made_with("teachers") == run.made_with("teachers")


def test_without_ray_a_run_says_how_to_get_it_and_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["run", "tiny", "engine=ray"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "nothing was started:\nengine: ray needs the package ray; pip install '.[ray]' in the project's folder, or take "
        "engine=local\n"
    )
    assert not (tmp_path / "outputs" / "tiny").exists()


# ---- groups ----------------------------------------------------------------------------------------------------------


def keys(groups):
    return [key_of(recipe) for group in groups for recipe in group.recipes]


@pytest.mark.parametrize(
    ("workers", "gib", "sizes"),
    [(1, None, [5]), (2, 100, [5]), (4, 100, [3, 2]), (5, 100, [1] * 5), (10, 100, [1] * 5)],
)
def test_the_teachers_are_shared_out_evenly_and_each_is_in_one_group(run, workers, gib, sizes):
    groups = teacher_groups(run, 0, workers, gib)
    assert [len(group.recipes) for group in groups] == sizes
    assert keys(groups) == keys(teacher_groups(run, 0))
    assert len({group.what for group in groups}) == len(groups)
    assert sum(group.passes for group in groups) == teacher_groups(run, 0)[0].passes


def test_a_group_has_no_more_teachers_than_memory_has_room_for(run, monkeypatch):
    table, cpu = run.dataset.table, torch.device("cpu")
    many = open_run("tiny", {"name": "many", "data.images": 100, "partition.k": 8})
    need = [making.teachers_that_fit(many.params, table, cpu, mib / 1024) for mib in (1, 40, 80, 160)]
    assert need[0] == 1 and need == sorted(need) and need[-1] > need[1]
    assert teachers_that_fit(many.params, table, cpu, 1e-6) == 1
    monkeypatch.setattr(making, "teachers_that_fit", lambda *_: 2)
    assert [len(group.recipes) for group in teacher_groups(run, 0, 1, 1.0)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("count", "most", "seeds", "workers", "size"),
    [
        (11, 99, 1, 1, 11),
        (11, 99, 1, 2, 6),
        (11, 99, 1, 8, 2),
        (11, 1, 1, 8, 1),
        (11, 4, 1, 1, 4),
        (11, 99, 3, 8, 2),
        (5, 99, 3, 2, 3),
    ],
)
def test_groups_are_as_large_as_they_can_be_without_making_the_last_worker_end_later(count, most, seeds, workers, size):
    assert making._largest(count, most, seeds, workers) == size

    def last(size):  # a naive schedule: the largest group first, onto the worker that is free first
        ends = [0] * workers
        for one in sorted([min(size, count - first) for first in range(0, count, size)] * seeds, reverse=True):
            ends[ends.index(min(ends))] += one
        return max(ends)

    assert last(size) == min(map(last, range(1, min(count, most) + 1)))


def test_teachers_that_start_from_the_baseline_wait_for_it(run):
    later = open_run("tiny", SMALL | {"name": "groups", "teachers.start": "baseline"})
    first, *others = teacher_groups(later, 0, 2, 100)
    assert len(others) == 2 and all(group.needs == [first] for group in others) and not first.needs


def test_students_wait_for_the_soft_targets_that_they_read(run):
    targets = target_groups(run, 0)
    assert [len(group.recipes) for group in targets] == [3]  # one view of whole, co and dis
    assert student_group(run, 0, "cpsd", targets).needs == targets
    assert student_group(run, 0, "student_only", targets).needs == []
    assert target_groups(open_run("tiny", SMALL | {"name": "groups", "student.teacher_mode": "train"}), 0) == []


def test_soft_targets_of_an_ensemble_are_the_work_of_all_its_models(run):
    merged = open_run("tiny", SMALL | {"name": "groups", "student.rows": ["student_only", "ensemble_mld"]})
    (group,) = target_groups(merged, 0)
    assert group.passes == 4 * len(run.dataset.table.indices("train"))  # as many as co and dis have teachers


def test_groups_of_any_size_in_any_order_leave_the_same_bytes(run, tmp_path, monkeypatch):
    (whole,) = teacher_groups(run, 1)
    whole.obtain(run)
    expected = [load_artifact(run.store, key).state_dict() for key in keys([whole])]
    monkeypatch.setattr(type(run), "store", Store(tmp_path / "store"))
    for group in reversed(teacher_groups(run, 1, 2, 100)):
        group.obtain(run)
    for key, state in zip(keys([whole]), expected, strict=True):
        mine = load_artifact(run.store, key).state_dict()
        assert all(torch.equal(mine[name], tensor) for name, tensor in state.items())


def test_a_worker_that_computes_other_keys_makes_nothing(run):
    (group,) = target_groups(run, 0)
    for one in (group, student_group(run, 0, "sd")):
        with pytest.raises(ValueError, match="computes other keys on cpu: code, data, versions and"):
            one.make(run, ["of other code"])
    other = open_run("tiny", SMALL | {"name": "groups", "seeds": 2, "train.lr": 1e-5})
    with pytest.raises(ValueError, match="computes other keys"):
        teacher_groups(run, 0)[0].make(other, keys(teacher_groups(run, 0)))


# ---- the cluster -----------------------------------------------------------------------------------------------------


def nodes(*resources):
    return [{"Alive": True, "Resources": one} for one in resources] + [{"Alive": False, "Resources": {"CPU": 64.0}}]


@pytest.mark.parametrize(
    ("there", "threads", "on_gpu", "workers", "cpus"),
    [
        ([{"CPU": 2.0}], None, False, 2, 1),
        ([{"CPU": 5.0}, {"CPU": 3.0}], 2, False, 3, 2),
        ([{"CPU": 64.0, "GPU": 8.0}], None, True, 8, 8),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}], 16, True, 4, 16),
    ],
)
def test_the_workers_are_those_that_fit_onto_each_machine(there, threads, on_gpu, workers, cpus):
    assert engine._workers(nodes(*there), threads, on_gpu) == (workers, cpus)


def test_a_task_that_fits_nowhere_is_refused():
    with pytest.raises(ParameterError, match="a task takes 1 CPU and a GPU, which no machine of this Ray has"):
        engine._workers(nodes({"CPU": 2.0}), None, True)
    with pytest.raises(ParameterError, match="a task takes 9 CPUs, which"):
        engine._workers(nodes({"CPU": 8.0}, {"CPU": 8.0}), 9, False)


def test_a_worker_writes_how_far_it_is_where_the_driver_reads_it(tmp_path, monkeypatch):
    shares = []

    def make(run):
        with engine.bar(4, "training", "step") as shown:
            shares.append((tmp_path / "share").read_text())
            shown.update(3)
            shown.refresh()
            shares.append((tmp_path / "share").read_text())

    monkeypatch.setattr(engine.support, "bar_class", None)
    engine._work(None, {}, torch.get_num_threads(), make, tmp_path / "share")
    assert shares == ["0.0", "0.75"]


# ---- handing out, with two threads of this process in place of Ray's workers -------------------------------------------


class Died(Exception):
    """A worker's, as Ray names it: RayError, of which the errors of tasks are kinds."""


class Raised(Died):
    """A task's."""


@pytest.fixture
def hands_out(run, tmp_path, monkeypatch):
    """Groups -> what `spread` does with them, by a stand-in for the package ray."""

    def get(task):
        try:
            return task.result()
        except ValueError as error:
            wrapped = Raised("pages of Ray's own")
            wrapped.cause = error
            raise wrapped from None

    with ThreadPoolExecutor(2) as pool:
        stand_in = SimpleNamespace(
            is_initialized=lambda: True,
            nodes=lambda: nodes({"CPU": 2.0}),
            remote=lambda **_: lambda work: SimpleNamespace(remote=lambda *given: pool.submit(work, *given)),
            wait=lambda tasks, timeout: [list(one) for one in wait(tasks, timeout)],
            get=get,
            cancel=lambda task: task.cancel(),
            exceptions=SimpleNamespace(RayError=Died, RayTaskError=Raised, TaskCancelledError=Raised),
        )
        monkeypatch.setitem(sys.modules, "ray", stand_in)
        monkeypatch.setattr(engine, "_work", lambda params, environment, threads, make, progress: make(run))
        monkeypatch.setattr(type(run), "store", Store(tmp_path / "store"))
        on_ray = open_run("tiny", SMALL | {"name": "groups", "engine": "ray"})
        yield lambda groups: engine.spread(on_ray, lambda workers, gib: groups)


def group(name, does=lambda: None, needs=()):
    """Return a Group of one artifact, made after `does()`."""
    recipe = {"name": name}

    def make(run, keys):
        assert all(is_there(run, need.what) for need in needs)
        does()
        path = run.store.work(keys) / "text"
        path.write_text(name)
        run.store.commit("model", recipe, {"text": path}, {})

    return engine.Group(name, "model", [recipe], make, 1, list(needs))


def is_there(run, name):
    return run.store.record("model", key_of({"name": name})) is not None


def test_a_task_that_raises_stops_what_needs_it_and_nothing_else(run, hands_out):
    def fails():
        raise ValueError("no room")

    bad, fine = group("bad", fails), group("fine", lambda: time.sleep(0.3))
    groups = [bad, fine, group("after bad", needs=[bad]), group("after fine", needs=[fine])]
    with pytest.raises(Stopped) as stopped:
        hands_out(groups)
    assert str(stopped.value) == "bad: ValueError: no room"
    assert [is_there(run, one.what) for one in groups] == [False, True, False, True]


def test_a_task_whose_worker_dies_is_made_again_five_times_and_no_more(run, hands_out):
    def dies(times):
        tries.append(times)
        if len(tries) <= times:
            raise Died("its worker died")

    tries = []
    hands_out([group("five times", lambda: dies(5))])
    assert tries == [5] * 6 and is_there(run, "five times")
    tries.clear()
    with pytest.raises(Stopped, match="always: Died: its worker died"):
        hands_out([group("always", lambda: dies(100))])
    assert tries == [100] * 6


def test_what_a_worker_had_put_into_place_before_it_died_is_not_made_again(run, hands_out):
    def dies_after(run, keys):
        one.make(run, keys)
        raise Died("its worker died")

    one = group("in place")
    hands_out([replace(one, make=dies_after)])
    assert is_there(run, "in place")


def test_what_is_there_is_not_made_again(run, hands_out):
    made = []
    first, second = group("first", lambda: made.append(1)), group("second", lambda: made.append(2))
    hands_out([first])
    hands_out([first, second, group("third", lambda: made.append(3), [first, second])])
    assert made == [1, 2, 3]


def test_what_another_process_makes_is_waited_for(run, hands_out, capsys, monkeypatch):
    one, waits, wait = group("waited for"), threading.Event(), Store._wait
    monkeypatch.setattr(Store, "_wait", lambda store, key: (waits.set(), wait(store, key)))
    with ExitStack() as held:
        assert run.store._lock(held, key_of({"name": "waited for"}), "something")
        waiting = threading.Thread(target=hands_out, args=([one],))
        waiting.start()
        assert waits.wait(300) and waiting.is_alive() and not is_there(run, "waited for")
    waiting.join(300)
    assert is_there(run, "waited for") and "makes something: waiting for it" in capsys.readouterr().out


def test_all_of_a_run_is_handed_out_and_what_follows_makes_nothing(run, hands_out, monkeypatch):
    on_ray = open_run("tiny", SMALL | {"name": "groups", "engine": "ray", "student.views": 1})
    in_task, one_at_a_time = threading.local(), threading.Lock()  # torch's generators are one process's

    def work(params, environment, threads, make, progress):
        in_task.now = True
        with one_at_a_time:
            make(on_ray)

    def fit_there(*given, **named):
        assert in_task.now
        return fit(*given, **named)

    fit = making.fit
    monkeypatch.setattr(engine, "_work", work)
    monkeypatch.setattr(making, "fit", fit_there)
    train_teachers(on_ray, 0)
    train_student(on_ray, 0, "sd")
    assert len(list(on_ray.store.root.glob("model/*"))) == 5 + 4
    assert len(list(on_ray.store.root.glob("soft_targets/*"))) == 3
