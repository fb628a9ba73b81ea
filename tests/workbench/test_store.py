"""Whatever was made once is never made again by the same recipe, and never taken for what another recipe makes."""

import ast
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cpsd_lib import losses, objectives
from cpsd_lib.data.images.decode import DECODE_VERSION
from cpsd_lib.support import sha256
from cpsd_lib.workbench import store as module
from cpsd_lib.workbench.recipes import VERSIONS
from cpsd_lib.workbench.scoring import SCORES_VERSION
from cpsd_lib.workbench.store import Store, clean, code_of, inventory, key_of, tokens_of

ROOT = Path(module.__file__).resolve().parents[1]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / ".store")


def maker(store, recipes, made, pause=0.0):
    """Return a maker that writes each recipe's name into a file, and notes what it made."""
    by_key = {key_of(recipe): recipe for recipe in recipes.values()}

    def make(keys):
        folder = store.work(keys)
        for key in keys:
            time.sleep(pause)
            (folder / key).write_text(by_key[key]["name"])
            store.commit("model", by_key[key], {"weights": folder / key}, {"seconds": 1.0})
            made.append(by_key[key]["name"])
        shutil.rmtree(folder)

    return make


def recipes(*names):
    return {name: {"name": name} for name in names}


def content(store, key):
    return (store.folder("model", key) / "weights").read_text()


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_is_the_hash_of_all_that_a_recipe_holds_and_of_no_order():
    recipe = {"classes": ["a", "b"], "training": {"lr": 1e-4, "epochs": 3}, "start": None}
    assert key_of(recipe) == key_of(dict(reversed(recipe.items()))) == key_of(json.loads(json.dumps(recipe)))
    assert key_of(recipe) == "c37b322e6fc0c8652a287bec"  # the same on every machine and Python
    for change in ({"classes": ["b", "a"]}, {"training": {"lr": 1e-4, "epochs": 4}}, {"start": []}, {"more": 1}):
        assert key_of(recipe | change) != key_of(recipe)


SOURCE = '''
def f(x, *, y=1):
    """Say what it does."""
    # why
    text = f"{x!r:>{y}} of {'a' + 'b'}"
    return text, 1e-4 if x else "#no comment"
'''


def test_comments_docstrings_and_layout_are_no_code_and_every_word_is():
    same = SOURCE.replace("Say what it does.", "Another text\n\n    of lines.").replace("    # why\n", "\n")
    assert tokens_of(SOURCE) == tokens_of(same.replace("(x, *, y=1)", "(\n    x,\n    *, y=1)"))
    for word, other in (("1e-4", "1e-5"), ("#no", "#yes"), ("'a'", "'c'"), ("y=1", "y=2")):
        assert tokens_of(SOURCE.replace(word, other)) != tokens_of(SOURCE)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="f-strings are one token up to 3.11")
def test_an_f_string_is_one_token_as_it_is_for_every_python():
    assert tokens_of("x = f'{a} b'") == "x = f'{a} b'"


def test_the_code_of_an_objective_is_what_it_calls_in_ring_1_and_nothing_beside(monkeypatch):
    before = code_of(objectives.Supervised), code_of(objectives.SelfDistillation)
    source = module.inspect.getsource

    def edited(name, old, new):
        def look(thing):
            text = source(thing)
            return text.replace(old, new) if getattr(thing, "__name__", "") == name else text

        monkeypatch.setattr(module.inspect, "getsource", look)
        return code_of(objectives.Supervised), code_of(objectives.SelfDistillation)

    changed = edited("asymmetric_loss", "1 - p + clip", "1 - p - clip")
    assert changed[0] != before[0] and changed[1] != before[1]
    assert edited("asymmetric_loss", "# 1 - q in this order", "# in this order") == before  # a comment
    assert edited("asymmetric_loss", "Asymmetric loss (ASL)", "The loss") == before  # a docstring
    assert edited("_power", "clamp", "clip") != before  # what it calls
    expert, student = edited("logit_mse", "square()", "abs()")
    assert expert == before[0] and student != before[1]  # another match retrains no expert
    assert edited("led", "float()", "double()") == before
    monkeypatch.undo()
    losses.another_loss = lambda x: x
    try:
        assert (code_of(objectives.Supervised), code_of(objectives.SelfDistillation)) == before
    finally:
        del losses.another_loss


def test_a_change_of_a_rooms_code_is_a_decision_about_its_version():
    """When this fails: did the change alter weights, pixels or logits? Raise the room's VERSION. Then write the new hash."""
    rooms = {"augment": "data/augment/*.py", "models": "models/*.py", "training": "training/*.py"}
    rooms |= {"decode": "data/images/decode.py", "scores": "evaluation/metrics.py"}
    versions = VERSIONS | {"decode": DECODE_VERSION, "scores": SCORES_VERSION}
    written = json.loads(Path(__file__).with_name("versions.json").read_text())
    for room, files in rooms.items():
        code = key_of([tokens_of(path.read_text()) for path in sorted(ROOT.glob(files))])
        assert written[room] == {"version": versions[room], "code": code}, (
            f'"{room}": {{"version": ..., "code": "{code}"}}'
        )


# ---- made once -------------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_made_again_and_what_lacks_is_made_together(store):
    made, first, more = [], recipes("a", "b"), recipes("b", "a", "c")
    keys = store.obtain("model", first, maker(store, first, made), "two")
    assert made in (["a", "b"], ["b", "a"]) and content(store, keys["a"]) == "a"
    assert store.obtain("model", first, None, "two") == keys
    store.obtain("model", more, maker(store, more, made), "three")
    assert made[2:] == ["c"] and not [p for p in (store.root / ".work").glob("*") if p.name != "locks"]


def test_the_record_vouches_for_every_file_and_holds_the_recipe_and_what_made_it(store):
    keys = store.obtain("model", recipes("a"), maker(store, recipes("a"), []), "one")
    record = store.record("model", keys["a"])
    assert record["recipe"] == {"name": "a"} and record["about"] == {"seconds": 1.0} and record["key"] == keys["a"]
    assert record["files"] == {"weights": sha256(store.folder("model", keys["a"]) / "weights")}
    assert {"versions", "hardware", "commit"} <= record.keys()


@pytest.mark.parametrize("damage", ["changed", "gone", "record"])
def test_a_broken_artifact_is_moved_aside_and_made_again(store, capsys, damage):
    made = []
    keys = store.obtain("model", recipes("a"), maker(store, recipes("a"), made), "one")
    folder = store.folder("model", keys["a"])
    if damage == "record":
        (folder / "artifact.json").write_text('{"half')
    elif damage == "gone":
        (folder / "weights").unlink()
    else:
        (folder / "weights").write_text("z")
        (folder / "artifact.json").write_text(
            (folder / "artifact.json").read_text() + "\n"
        )  # not seen by this process yet
    assert store.obtain("model", recipes("a"), maker(store, recipes("a"), made), "one") == keys
    assert made == ["a", "a"] and content(store, keys["a"]) == "a"
    assert "is broken: moved to" in capsys.readouterr().out and list((store.root / ".work").glob("broken-*"))


def test_a_maker_that_fails_leaves_nothing_that_looks_finished(store):
    def fails(keys):
        (store.work(keys) / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.obtain("model", recipes("a"), fails, "one")
    assert store.record("model", key_of({"name": "a"})) is None
    store.obtain("model", recipes("a"), maker(store, recipes("a"), made := []), "one")  # its lock is free
    assert made == ["a"]


def obtaining(root, names, log, pause, together=None):
    store, made = Store(root), []
    if together:
        together.wait(600)
    wanted = recipes(*names)
    store.obtain("model", wanted, maker(store, wanted, made, pause), f"the group {'-'.join(names)}")
    Path(log).write_text(json.dumps(made))


def test_two_groups_of_the_same_models_in_other_orders_share_the_work_and_do_not_block(store, tmp_path, capfd):
    spawn, logs = multiprocessing.get_context("spawn"), [tmp_path / "one", tmp_path / "two"]
    groups, together = (
        (("a", "b", "c"), ("c", "b", "a", "d")),
        spawn.Barrier(2),
    )  # a busy machine may start one much later
    processes = [
        spawn.Process(target=obtaining, args=(store.root, names, log, 0.4, together))
        for names, log in zip(groups, logs, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    made = [json.loads(log.read_text()) for log in logs]
    assert sorted(made[0] + made[1]) == ["a", "b", "c", "d"]  # each once
    if all(made):  # whoever had less to do waited for the other, and said for whom
        assert "waiting for it" in capfd.readouterr().out


def test_a_killed_maker_leaves_no_lock(store, tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=obtaining, args=(store.root, ("a",), tmp_path / "log", 600)
    )
    process.start()
    lock = store.root / ".work" / "locks" / f"{key_of({'name': 'a'})}.json"
    end = time.monotonic() + 300
    while not lock.exists():
        assert time.monotonic() < end, "it took no lock"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store.obtain("model", recipes("a"), maker(store, recipes("a"), made := []), "one")
    assert made == ["a"]


# ---- what lies there -------------------------------------------------------------------------------------------------


def test_what_no_run_uses_can_be_listed_and_removed(store, tmp_path):
    wanted = recipes("a", "b")
    keys = store.obtain("model", wanted, maker(store, wanted, []), "two")
    (tmp_path / "mine").mkdir()
    noted = {"seed0/students/sd": {"keys": [keys["a"]], "params": {}}}
    (tmp_path / "mine" / "artifacts.json").write_text(json.dumps(noted))
    listed = {key: (size > 0, runs) for _, key, size, runs in inventory(store, tmp_path)}
    assert listed == {keys["a"]: (True, ["mine"]), keys["b"]: (True, [])}
    assert clean(store, tmp_path) > 0
    assert store.record("model", keys["a"]) and store.record("model", keys["b"]) is None


def test_only_makers_compute_keys():
    """Readers follow artifacts.json: no module that scores, explains or reports imports the recipes."""
    readers = ("scoring", "explanation", "report", "open", "published", "pipeline")
    for name in readers:
        tree = ast.parse((ROOT / "workbench" / f"{name}.py").read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"cpsd_lib.workbench.recipes"}, name


def test_a_key_is_the_same_in_another_process_with_other_hash_seeds():
    code = textwrap.dedent("""
        from cpsd_lib import objectives
        from cpsd_lib.workbench.store import code_of
        print(code_of(objectives.SelfDistillation), code_of(objectives.MultiLabelDistillation))
    """)
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
