"""`engine: ray` on a Ray of this machine: the bytes of `engine: local`, whoever dies. Skipped where Ray is not installed."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch

from cpsd_lib.support import read_json
from cpsd_lib.workbench import engine
from cpsd_lib.workbench.making import train_student, train_teachers
from cpsd_lib.workbench.run import cut_labels, open_run
from cpsd_lib.workbench.store import key_of
from cpsd_lib.workbench.yaml_files import ParameterError, Stopped
from faults import count, only_with_all, tries

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

SMALL = {"data.images": 100, "data.size": 16, "train.epochs": 2, "train.batch_size": 16, "partition.k": 2}
SMALL |= {"train.checkpoint_seconds": 0, "engine": "ray", "engine.threads": 1}


def ray_of(workers):
    """Start a Ray; a busy machine may be too slow for the seconds that Ray gives its own processes to start."""
    for last in (False, False, True):
        try:
            ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
            return
        except Exception:
            if last:
                raise
            ray.shutdown()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Outputs with the run `local`, made here by one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPSD_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        run = made("local", engine="local", **{"engine.threads": None})
        yield run.folder.parent
    ray.shutdown()
    gc.collect()  # Ray's processes, whose Popen warn when they go: here, where that is ignored
    torch.set_num_threads(threads)


@pytest.fixture
def two_workers(outputs):
    if not ray.is_initialized():
        ray_of(2)
    return outputs


def run_of(name, **changed):
    return open_run("tiny", SMALL | {"name": name} | changed)


def made(name, **changed):
    run = run_of(name, **changed)
    cut_labels(run)
    train_teachers(run, 0)
    for row in ("sd", "cgpd", "dgpd", "cpsd"):
        train_student(run, 0, row)
    return run


def content(run):
    """Return {path in the store: bytes} of all models and soft targets."""
    paths = [*run.store.root.glob("model/*/*.safetensors"), *run.store.root.glob("soft_targets/*/*.npy")]
    return {path.relative_to(run.store.root).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def emptied(two_workers, monkeypatch, tmp_path):
    """(The bytes that `engine: local` leaves, outputs with the same data and no artifact.)"""
    expected = content(run_of("local"))
    assert len(expected) == 5 + 4 + 3 * 2
    os.symlink(two_workers / ".cache", tmp_path / ".cache")
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    return expected, tmp_path


# ---- groups of the tests' own: they sleep, die or fail -----------------------------------------------------------------


def group(name, does, needs=()):
    """Return a Group of one artifact, made after `does()` in the worker."""
    recipe = {"name": name}

    def make(run, keys):
        for need in needs:
            assert run.store.record("model", key_of({"name": need.what}))
        does()
        path = run.store.work(keys) / "text"
        path.write_text(name)
        run.store.commit("model", recipe, {"text": path}, {})

    return engine.Group(name, "model", [recipe], make, 1, list(needs))


def is_there(run, name):
    return run.store.record("model", key_of({"name": name})) is not None


def test_a_task_that_raises_stops_what_needs_it_and_nothing_else(emptied):
    def fails():
        raise ValueError("no room")

    run, fine = run_of("raises"), group("fine", lambda: time.sleep(1))
    bad = group("bad", fails)
    groups = [bad, fine, group("after bad", int, [bad]), group("after fine", int, [fine])]
    with pytest.raises(Stopped) as stopped:
        engine.spread(run, lambda workers, gib: groups)
    assert str(stopped.value) == "bad: ValueError: no room"
    assert [is_there(run, one.what) for one in groups] == [False, True, False, True]
    count("a Ray task raises", "named, the others made")


def test_a_task_whose_worker_dies_is_made_again_alone(emptied, tmp_path):
    def dies_once():
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def journal():
        with open(tmp_path / "journal", "a") as file:
            file.write("made\n")

    run = run_of("dies")
    engine.spread(run, lambda workers, gib: [group("dies", dies_once), group("beside", journal)])
    assert is_there(run, "dies") and (tmp_path / "journal").read_text() == "made\n"


def test_what_another_process_makes_is_waited_for(emptied, tmp_path, capsys):
    run, one = run_of("waits"), group("waited for", lambda: None)
    with engine.ExitStack() as held:
        assert run.store._lock(held, key_of({"name": "waited for"}), "something")
        waiting = threading.Thread(target=engine.spread, args=(run, lambda workers, gib: [one]))
        waiting.start()
        time.sleep(2)
        assert waiting.is_alive() and not is_there(run, "waited for")
    waiting.join(60)
    assert is_there(run, "waited for") and "makes something: waiting for it" in capsys.readouterr().out


def test_a_task_that_no_machine_has_room_for_is_refused(emptied):
    with pytest.raises(ParameterError, match="a task takes 3 CPUs, which no machine of this Ray has"):
        engine.spread(run_of("large", **{"engine.threads": 3}), lambda workers, gib: [])


# ---- whole runs --------------------------------------------------------------------------------------------------------


def test_two_workers_leave_the_bytes_of_one_process(emptied):
    expected, _ = emptied
    assert content(made("ray")) == expected
    count("two workers", "same bytes")


@only_with_all
def test_one_worker_leaves_the_bytes_of_one_process(emptied):
    expected, _ = emptied
    ray.shutdown()
    ray_of(1)
    try:
        assert content(made("ray")) == expected
    finally:
        ray.shutdown()
    count("one worker", "same bytes")


class Killer(threading.Thread):
    """Kills a worker that does a task, after some seconds in which there was one."""

    def __init__(self, seconds):
        super().__init__(daemon=True)
        self.seconds, self.killed, self.stop = seconds, 0, False

    def run(self):
        while not self.stop:
            time.sleep(0.05)
            with_task = []
            for process in psutil.Process().children(recursive=True):
                try:
                    with_task += [process] if "ray::_work" in " ".join(process.cmdline()) else []
                except psutil.Error:
                    continue
            self.seconds -= 0.05 if with_task else 0
            if with_task and self.seconds < 0:
                random.choice(with_task).kill()
                self.killed = 1
                return


def test_workers_killed_at_random_moments_change_no_byte(emptied, monkeypatch):
    (expected, folder), killed = emptied, 0
    random.seed(0)
    while killed < tries(20):
        number = len(list(folder.glob("[0-9]*")))
        assert number < 3 * tries(20), "most moments come after the end: draw earlier ones"
        monkeypatch.setenv("CPSD_OUTPUTS", str(folder / str(number)))
        (folder / str(number)).mkdir()
        os.symlink(folder / ".cache", folder / str(number) / ".cache")
        killer = Killer(random.uniform(0, 4))
        killer.start()
        same = content(made("ray")) == expected
        killer.stop = True
        killer.join()
        if killer.killed:
            count("a Ray worker is killed", "same bytes" if same else "OTHER BYTES")
        assert same
        killed += killer.killed


def test_a_driver_that_is_killed_finds_what_the_tasks_finished(emptied):
    expected, folder = emptied
    program = (
        "from cpsd_lib.workbench.making import *; from cpsd_lib.workbench.run import cut_labels, open_run\n"
        f"run = open_run('tiny', {SMALL | {'name': 'ray'}!r}); cut_labels(run); train_teachers(run, 0)\n"
        "train_student(run, 0, 'cpsd')"
    )
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    for number in range(tries(10)):
        store = folder / str(number) / ".store"
        store.parent.mkdir()
        os.symlink(folder / ".cache", store.parent / ".cache")
        environment["CPSD_OUTPUTS"] = os.environ["CPSD_OUTPUTS"] = str(store.parent)
        driver = subprocess.Popen([sys.executable, "-c", program], env=environment)
        few = random.Random(number).randint(1, 12)
        while len(list(store.glob("*/*/artifact.json"))) < few:
            assert driver.poll() is None
            time.sleep(0.05)
        driver.kill()
        driver.wait()
        time.sleep(1)  # Ray ends its tasks
        before = {path: read_json(path) | {"at": path.stat().st_mtime_ns} for path in store.glob("*/*/artifact.json")}
        assert content(made("ray")) == expected
        again = sum(path.stat().st_mtime_ns != record["at"] for path, record in before.items())
        count("a driver of Ray is killed", "made twice" if again else "same bytes, nothing made twice")
        assert not again
