import os
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from cpsd_lib import support
from cpsd_lib.support import atomic, digest, read_json, sha256, write_json, write_text


def test_a_file_is_written_with_its_folders_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    write_text(path, "Zürich\n")
    assert path.read_bytes() == "Zürich\n".encode()
    assert [found.name for found in path.parent.iterdir()] == ["x.txt"]


def test_old_content_stays_when_the_writing_fails_half_way(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"), atomic(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_old_content_stays_when_nothing_was_written_or_the_text_cannot_be_encoded(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), atomic(path):
        pass
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("value", [float("nan"), {"a": [1, float("inf")]}, {"a": {1, 2}}])
def test_json_refuses_what_json_cannot_say_and_keeps_the_old_file(tmp_path, value):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert read_json(path) == {"old": 1} and list(tmp_path.iterdir()) == [path]


def test_json_comes_back_as_it_was_written(tmp_path):
    value = {"a": [1, 2.5, None, True, "ü"], "b": {}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00"])
def test_broken_json_is_named(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        read_json(path)


def test_sha256_is_the_one_everybody_knows(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_digest_depends_on_values_and_list_order_and_not_on_dictionary_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    different = [
        digest(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, [1, 2], [2, 1], None)
    ]
    assert len(set(different)) == len(different)
    assert len(different[0]) == 16
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


def test_a_bar_is_drawn_on_the_terminal_that_the_runner_names(monkeypatch, capfd):
    runner, terminal = os.openpty()
    monkeypatch.setenv(support.TERMINAL_VARIABLE, f"03_teachers:{os.ttyname(terminal)}")
    with support.bar(10, "seed 0", "img", initial=2) as bar:
        bar.update(3)
    drawn = ""
    while "5/10" not in drawn:  # a terminal hands over what is there, not all of it
        assert select.select([runner], [], [], 60)[0], drawn
        drawn += os.read(runner, 10_000).decode()
    assert "03_teachers seed 0:  20%" in drawn
    assert capfd.readouterr() == ("", "")
    os.close(runner), os.close(terminal)


@pytest.mark.parametrize("terminal", [os.devnull, "/nowhere/pts/0"])
def test_a_bar_whose_runner_has_no_terminal_or_is_gone_does_not_end_the_training(monkeypatch, capfd, terminal):
    monkeypatch.setenv(support.TERMINAL_VARIABLE, f"03_teachers:{terminal}")
    with support.bar(10, "teachers") as bar:
        bar.update(10)
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_the_screen_takes_the_same_calls(monkeypatch, capsys):
    monkeypatch.delenv(support.TERMINAL_VARIABLE, raising=False)
    with support.bar(4, "teachers", initial=1) as bar:
        bar.update(3)
        bar.note("loss 1.0")
    assert "teachers" in capsys.readouterr().err


def test_make_lab_opens_copies_and_leaves_one_that_was_saved_as_it_is(tmp_path):
    project = Path(__file__).resolve().parents[1]
    shutil.copytree(project / "notebooks", tmp_path / "notebooks")
    shutil.copy(project / "Makefile", tmp_path)
    jupyter = tmp_path / ".venv" / "bin" / "jupyter"
    jupyter.parent.mkdir(parents=True)
    jupyter.write_text('#!/bin/sh\necho "$@"\n')
    jupyter.chmod(0o755)
    for path in (tmp_path / "pyproject.toml", tmp_path / ".venv" / "installed"):
        path.touch()
    # As from a terminal: under a make of its own the last line would be that make's.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make", "lab"], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    opened = tmp_path / done.stdout.split()[-1]
    assert opened.read_bytes() == (tmp_path / "notebooks" / opened.name).read_bytes()
    opened.write_text("saved with outputs")
    subprocess.run(["make", "lab"], cwd=tmp_path, capture_output=True, check=True)
    assert opened.read_text() == "saved with outputs" != (tmp_path / "notebooks" / opened.name).read_text()
    assert (tmp_path / "outputs" / "lab" / "data" / "from_scratch.csv").exists()


def test_cores_are_those_that_this_process_may_use_and_nobody_counts_others(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert support.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS and Windows have none
    assert support.cores() == 64
    library = Path(support.__file__).parent
    assert [path.name for path in library.rglob("*.py") if "cpu_count" in path.read_text()] == ["support.py"]
