"""`engine: ray`: what the store lacks is made by Ray tasks, on this machine or on a cluster that sees the same folders.

A task makes some keys by the maker that `engine: local` calls. A model does not depend on who trains beside it, so for the same
number of threads both leave the same bytes. Locks are one machine's: the driver holds them, the tasks take none.
"""

import os
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

from cpsd_lib import support
from cpsd_lib.support import bar, cores, counted, keep_freed_memory, memory_gib
from cpsd_lib.workbench.run import Run
from cpsd_lib.workbench.store import key_of
from cpsd_lib.workbench.yaml_files import ParameterError, Stopped, outputs_root, repo_root


@dataclass(eq=False)
class Group:
    """Artifacts that are made together."""

    what: str  # "seed 0: 6 teachers", unlike all others
    kind: str
    recipes: list
    make: object  # (run, keys of them to make now); it travels to the task
    passes: int  # of an image through a model: how much work it is beside others
    needs: list = ()  # Groups that must be there first

    def obtain(self, run, make=None):
        """Make what the store lacks, in this process, or by another `make` (keys to make now)."""
        run.store.obtain(self.kind, dict(enumerate(self.recipes)), make or partial(self.make, run), self.what)

    def missing(self, store):
        """Return the keys that a Store lacks."""
        return [key for key in map(key_of, self.recipes) if store.record(self.kind, key) is None]


RETRIES = 5  # of a task whose process dies


def spread(run, plan):
    """Have Ray tasks make what the store lacks of the Groups that plan(workers, GiB of memory of each) returns, needs first.

    A task whose process dies is made again, five times, from its last checkpoint; one that fails stops those that need it and
    no other, and at the end Stopped says why. What another process makes is waited for.
    """
    with connected([run.params]) as ray:
        on_gpu, tasks, done, failed = run.device.type == "cuda", [], {}, {}
        workers, threads = _workers(ray.nodes(), run.params.engine.threads, on_gpu)
        groups = plan(workers, memory_gib(run.device) * (1 if on_gpu else min(1, threads / cores())))
        groups = [group for group in groups if group.missing(run.store)]
        environment = {"CPSD_ROOT": str(repo_root()), "CPSD_OUTPUTS": str(outputs_root())}
        # Ray 2.60 may begin a task twice whose worker dies as it ends, and the driver dies of the second reply.
        task = ray.remote(max_retries=0, num_cpus=threads, num_gpus=int(on_gpu))(_work)

        def hand_out(group):
            for need in done.keys() & set(group.needs):  # others are there
                done[need].result()
            group.obtain(run, partial(in_task, group))

        def in_task(group, keys):
            shown = None
            progress = run.store.work(map(key_of, group.recipes)) / "share"  # of its work, beside the checkpoint
            with ExitStack() as begun:
                for left in reversed(range(1 + RETRIES)):
                    missing = group.missing(run.store)  # one that died has put some into place, maybe all
                    if not (todo := [key for key in keys if key in missing]):
                        break
                    make = partial(group.make, keys=todo)
                    tasks.append(reference := task.remote(run.params, environment, threads, make, progress))
                    while not ray.wait([reference], timeout=0.5)[0]:
                        with suppress(OSError, ValueError):  # it waits for a worker, or writes just now
                            share = float(progress.read_text())
                            shown = shown or begun.enter_context(bar(group.passes, group.what, "image"))
                            more = int(share * group.passes) - shown.n
                            shown.update(more)
                            total.update(more)
                    try:
                        ray.get(reference)
                        break
                    except (ray.exceptions.RayTaskError, ray.exceptions.TaskCancelledError):
                        raise
                    except ray.exceptions.RayError:  # its process died, or its machine
                        if not left:
                            raise
                total.update(group.passes - (shown.n if shown else 0))

        passes = sum(group.passes for group in groups)
        with bar(passes, f"all, {counted(workers, 'worker')}", "image") as total, ThreadPoolExecutor(256) as pool:
            try:
                for group in groups:
                    done[group] = pool.submit(hand_out, group)
                wait(done.values())
            finally:  # after Ctrl-C each task leaves a checkpoint
                pool.shutdown(wait=False, cancel_futures=True)
                for reference in tasks:
                    ray.cancel(reference)
    for group, future in done.items():
        if error := future.exception():
            cause = getattr(error, "cause", None) or error
            failed.setdefault(f"{type(cause).__name__}: {cause}", group.what)  # not again for those that need it
    if failed:
        raise Stopped("\n".join(f"{what}: {error}" for error, what in failed.items()))


def _work(params, environment, threads, make, progress):
    """Make some keys of a Group, in a worker of Ray."""
    import torch
    from tqdm import tqdm

    class Sent(tqdm):
        def display(self, *_, **__):  # the driver draws it
            progress.write_text(str(self.n / max(1, self.total)))

    support.bar_class = Sent
    os.environ.update(environment)
    torch.set_num_threads(threads)
    keep_freed_memory()
    make(Run(params))


# ---- the cluster -----------------------------------------------------------------------------------------------------


@contextmanager
def connected(runs):
    """Yield ray, running for this process and those started within, where one of some Params has `engine: ray`; else None."""
    settings = [params.engine for params in runs if params.engine.kind == "ray"]
    if not settings:
        yield
        return
    try:
        import ray
    except ImportError:
        install = "pip install '.[ray]' in the project's folder"
        raise ParameterError(f"engine: ray needs the package ray; {install}, or take engine=local") from None
    with ExitStack() as own:
        if not ray.is_initialized():
            address = settings[0].address or os.environ.get("RAY_ADDRESS")
            # One of this process's own ends with it. What its tasks make is in the store, so that it needs no room for objects.
            small = {} if address else {"include_dashboard": False, "object_store_memory": 100 * 2**20}
            try:
                ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **small)
            except Exception as error:  # Ray raises those themselves
                token = "if it asks for a token, set RAY_AUTH_MODE=token"
                where = f"at {address}; {token}" if address else "on this machine"
                raise ParameterError(f"engine: no Ray {where}: {error}") from None
            own.callback(ray.shutdown)
            own.enter_context(patch.dict(os.environ, RAY_ADDRESS=ray.get_runtime_context().gcs_address))
        yield ray


def _workers(nodes, threads, on_gpu):
    """Return (how many tasks run at once, the CPUs of each); ParameterError where there is room for none."""
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    cpus, gpus = (int(sum(machine.get(what, 0) for machine in machines)) for what in ("CPU", "GPU"))
    threads = threads or (max(1, cpus // gpus) if on_gpu and gpus else 1)
    asked = {"CPU": threads, "GPU": 1} if on_gpu else {"CPU": threads}
    count = sum(min(int(machine.get(what, 0) // each) for what, each in asked.items()) for machine in machines)
    if not count:
        what = f"{counted(threads, 'CPU')}{' and a GPU' if on_gpu else ''}"
        there = f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"
        raise ParameterError(f"engine: a task takes {what}, which no machine of this Ray has; all have {there}")
    return count, threads
