"""papermill over the notebooks, stage by stage: what is done and fresh is skipped, what is missing or stale is redone."""

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import papermill
import psutil
from filelock import FileLock, Timeout
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from cpsd_lib.data import signature
from cpsd_lib.support import TERMINAL_VARIABLE, digest, memory, pick_device, read_json, sha256, write_json
from cpsd_lib.workbench.engine import connected
from cpsd_lib.workbench.loading import MODELS, load_params
from cpsd_lib.workbench.making import training_code
from cpsd_lib.workbench.preflight import check_run, models_to_train, remarks
from cpsd_lib.workbench.run import CUT_BY, Run, save_params
from cpsd_lib.workbench.scoring import SCORES_VERSION, sums_of
from cpsd_lib.workbench.store import code_of, environment
from cpsd_lib.workbench.yaml_files import ParameterError, Stopped, outputs_root, repo_root

# A stage is a notebook: which parameters it reads itself (what an earlier stage reads, it follows through that stage's
# outputs), and which files of the run folder it leaves.
_TRAINED = ["data", "partition", "model", "teacher_model", "wide_model", "teachers", "seed", "seeds", "protocol"]
_SCORED = [*_TRAINED, "student", "evaluation"]
STAGES = {
    "01_data": (["data", "teachers.view", "seed"], ["data.json", "figures/01_*.png"]),
    "02_partition": (["data", "partition"], ["partition/*.json", "figures/02_*.png"]),
    # student.start: it decides how long a teacher of CPSD's compute trains.
    "03_teachers": ([*_TRAINED, "student.rows", "student.start"], ["figures/03_*.png"]),
    "04_student": ([*_TRAINED, "student"], ["figures/04_*.png"]),
    "05_evaluation": (
        _SCORED,
        ["evaluation/metrics.json", "evaluation/per_class.csv", "evaluation/scores/*.npy", "figures/05_*.png"],
    ),
    "06_explanation": (_SCORED, ["evaluation/explanation.csv", "figures/06_*.png"]),
    "07_ablation": (_SCORED, ["evaluation/components.csv", "figures/07_*.png"]),
}
# The artifacts that a stage makes, by the kind in their name in artifacts.json.
MADE = {"03_teachers": ("teachers",), "04_student": ("students", "soft_targets")}

# Parameters that name a file: a stage that reads their section follows the bytes in it, not its name alone.
FILES = ("partition.released_co", "partition.released_dis", "evaluation.checkpoint")
FILES += tuple(f"{model}.{file}" for model in MODELS for file in ("weights", "label_vectors"))

INTERRUPT_SECONDS = 15  # nbclient gives a kernel 5 to end by itself


def stages_of(params):
    """Return the names of the stages that these parameters ask for, in order."""
    if params.evaluation.released:
        return ["05_evaluation"]  # a checkpoint somebody else trained
    # The label graph needs no image, all else does.
    return [name for name in STAGES if params.data.kind != "labels" or name in ("01_data", "02_partition")]


def run_stages(source, overrides=None):
    """Run every stage of a parameter file that is not done and fresh; return the Run.

    Raises ParameterError before anything starts, Stopped when another process works in the folder, or with a notebook's own
    error and path. Killed at any moment, the same call goes on where it was.
    """
    params = load_params(source, overrides)
    if repo_root() != Path(__file__).resolve().parents[2]:  # another than the one this library lies in
        print(f"project: {repo_root()}", flush=True)
    left, names, models = stages_left(params), stages_of(params), None
    if left:  # one that is refused leaves no folder, and an old one as it was
        check_run(params)
        print("".join(f"{line}\n" for line in remarks(params, next(iter(left)))), end="", flush=True)
    opened = Run(params)
    with connected([params] if left.keys() & MADE else []), one_runner(opened.folder), _ctrl_c_gets_through():
        manifest, path = read_manifest(opened.folder), opened.folder / "manifest.json"
        for name, fingerprint, why in _walk(opened, manifest["stages"]):
            if why is None:
                entry = manifest["stages"][name]
                print(f"{name}: done ({entry['seconds']:.0f} s on {entry['finished']})")
                continue
            if name in MADE and models is None:  # not on a GPU, of whose memory a part would stay with this process
                with patch.dict(os.environ, _bars_of(name)):
                    models = models_to_train(params) if pick_device(params.device).type == "cpu" else {}
            about = "; ".join(filter(None, [why and f"again: {why}", name in MADE and models.get(name)]))
            print(f"[{names.index(name) + 1}/{len(names)}] {name} ... {about}".rstrip(), flush=True)
            save_params(opened)  # what is executed reads them
            if manifest["stages"].pop(name, None):
                write_json(path, manifest)
            for earlier in _outputs(name, opened):  # nothing of other parameters stays; artifacts remain
                earlier.unlink()
            opened.forget(MADE.get(name, ()))
            manifest["stages"][name] = _execute(name, opened, fingerprint)
            write_json(path, manifest)
        save_params(opened)
    return opened


def stages_left(params):
    """Return {name: why it is done again, '' where it was never done} of a run's stages that `cpsd run` would do, in order."""
    entries = read_manifest(outputs_root() / params.name)["stages"]
    return {name: why for name, _, why in _walk(Run(params), entries) if why is not None}


def _walk(run, entries):
    """Yield (stage, fingerprint, None where it is done and fresh, else why not) in order; entries: the manifest's, by now."""
    previous = None
    for name in stages_of(run.params):
        fingerprint, entry = stage_fingerprint(name, run.params, previous), entries.get(name)
        yield name, fingerprint, _why(run, entry, fingerprint) if entry else ""
        entry = entries.get(name)  # it may have been made
        previous = digest([fingerprint, entry["outputs"], entry["keys"]]) if entry else None


CHANGED = {"params": "its parameters", "data": "the data", "files": "a file that its parameters name"}
CHANGED |= {"code": "its code", "notebook": "its notebook", "before": "what it builds on"}


def _why(run, entry, fingerprint):
    changed = [what for part, what in CHANGED.items() if entry["fingerprint"].get(part) != fingerprint[part]]
    if changed:
        return f"{', '.join(changed)} changed"
    return None if outputs_are_there(run, entry) else "what it left is not there unchanged"


def stage_fingerprint(name, params, previous):
    """Return all that determines a stage, JSON-able: when it changes, the stage is stale; previous: hash of the stage before."""
    sections, _ = STAGES[name]
    values, cells = params.model_dump(mode="json"), read_json(repo_root() / "notebooks" / f"{name}.ipynb")["cells"]
    return {
        "params": digest([_value(values, section) for section in sections]),
        "data": signature(params.data),
        "files": {name: sums_of(_value(values, name)) for name in FILES if name.partition(".")[0] in sections},
        "code": training_code() if name in MADE else code_of(*CUT_BY) if name < "03" else SCORES_VERSION,
        # Text cells may be edited without a stage becoming stale.
        "notebook": digest(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]),
        "before": previous,
    }


def _value(values, key):
    for name in key.split("."):
        values = values[name] if values is not None else None  # no teacher_model, no weights of it
    return values


def read_manifest(folder):
    """Return a run's manifest, {"stages": {name: entry}}; ParameterError for a run of a version before the artifact store."""
    path = folder / "manifest.json"
    manifest = read_json(path) if path.exists() else {"stages": {}}
    stages = manifest.get("stages") if isinstance(manifest, dict) else None
    if not isinstance(stages, dict) or not all(isinstance(x, dict) and "keys" in x for x in stages.values()):
        what = f"name: {path} is damaged, or {folder} was made by an older version"
        raise ParameterError(f"{what}: remove that folder, or give this run another name=...")
    return manifest


def outputs_are_there(run, entry):
    """Return whether what a finished stage left is there unchanged, files and models; entry: its lines in manifest.json."""
    noted = run.noted(("teachers", "students", "soft_targets"))  # which later stages and the store's list follow
    models = (key for name, keys in entry["keys"].items() if "/soft_targets/" not in name for key in keys)
    files = ((run.folder / name, checksum) for name, checksum in entry["outputs"].items())
    return (
        all(noted.get(name, [])[: len(keys)] == keys for name, keys in entry["keys"].items())
        and all(path.is_file() and sha256(path) == checksum for path, checksum in files)
        and all(run.store.record("model", key) is not None for key in models)
    )


def _outputs(name, run):
    return sorted(path for pattern in STAGES[name][1] for path in run.folder.glob(pattern))


def _execute(name, opened, fingerprint):
    notebook, out = repo_root() / "notebooks" / f"{name}.ipynb", opened.folder / f"{name}.ipynb"
    # A notebook's working folder is another: the root is handed on in full.
    began, given = time.time(), {"CPSD_ROOT": str(repo_root())} | _bars_of(name)
    try:
        with patch.dict(os.environ, given):  # papermill hands no other environment on
            papermill.execute_notebook(
                notebook,
                out,
                # The resolved parameters, not the file they came from: that may be edited while this runs.
                parameters={"params": str(opened.folder / "params.yaml"), "overrides": {}},
                cwd=str(notebook.parent),
                kernel_name="python3",
                progress_bar=False,
                log_output=False,
                start_timeout=300,  # seconds for a kernel to answer; papermill's 60 are too few on a busy machine
                # The kernel's own words (unencrypted local ports, sockets closed by Ctrl-C) are not about the run, and
                # would tear the progress bar; the notebook's errors come another way.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
    except PapermillExecutionError as error:
        raise Stopped(f"{name} stopped: {error.ename}: {error.evalue}\nits notebook: {out}") from None
    except (DeadKernelError, RuntimeError):  # died at work, or before it answered
        raise Stopped(f"{name} stopped: its process died; {_about_the_kernel()}\nits notebook: {out}") from None
    seconds = time.time() - began
    print(f"{name}: {seconds:.0f} s", flush=True)
    return {
        "fingerprint": fingerprint,
        "outputs": {path.relative_to(opened.folder).as_posix(): sha256(path) for path in _outputs(name, opened)},
        "keys": opened.noted(MADE.get(name, ())),
        "seconds": seconds,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seed": opened.params.seed,
        **environment(),
    }


def _bars_of(name):
    """Return the variable by which the bars of a stage are drawn on this process's terminal, or nowhere where it has none."""
    terminal = os.devnull
    if sys.stderr.isatty():
        terminal = os.ttyname(sys.stderr.fileno()) if os.name == "posix" else "CONOUT$"
    return {TERMINAL_VARIABLE: f"{name}:{terminal}"}


def _about_the_kernel():
    """Return what is known of why a notebook's process died: whether its python has this library, and the memory free now."""
    python = KernelSpecManager().get_kernel_spec("python3").argv[0]
    if subprocess.run([python, "-c", "import cpsd_lib"], capture_output=True).returncode:
        return f"the notebooks' python, {python}, cannot import cpsd_lib: install it there, or make the kernel python3 this one's"
    free = memory(psutil.virtual_memory().available / 2**30)
    return (
        f"{free} of memory are free without it, and dmesg says whether the system killed it for want of more; the same command "
        "goes on from the last checkpoint"
    )


@contextmanager
def one_runner(folder):
    """Hold `folder` for this process alone; Stopped when another does."""
    lock, holder = FileLock(folder / ".runner.lock"), folder / ".runner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = read_json(holder) if holder.exists() else {}
        raise Stopped(
            f"{folder} is held by process {who.get('pid', '?')} on {who.get('host', '?')} since {who.get('since', '?')}; "
            "wait for it, stop it, or give this run another name=..."
        ) from None
    try:
        for leftover in folder.rglob(".*.tmp"):  # half-written by a killed process
            leftover.unlink(missing_ok=True)
        write_json(holder, {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _ctrl_c_gets_through():
    """Repeat a Ctrl-C after some seconds, for as long as the run goes on: a callback of the event loop may swallow one."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    timers, before = [], signal.getsignal(signal.SIGINT)

    def interrupt(number, frame):
        timers.append(threading.Timer(INTERRUPT_SECONDS, os.kill, (os.getpid(), signal.SIGINT)))
        timers[-1].daemon = True
        timers[-1].start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGINT, before)
