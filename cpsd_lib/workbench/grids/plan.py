"""A grid before it starts: what is left of each job, how many fit into memory, how long they all take."""

from functools import cache

import psutil
import torch

from cpsd_lib.support import cores, counted, memory, pick_device
from cpsd_lib.workbench.cost import estimate, measured_speed, spoken_time
from cpsd_lib.workbench.grids.params import refuse
from cpsd_lib.workbench.pipeline import stages_left
from cpsd_lib.workbench.preflight import images_of
from cpsd_lib.workbench.run import Run

STAGE_SECONDS = 7  # the start of a notebook's kernel, its imports and figures, beside its work
RUNNER_GIB = 2.0  # memory of a runner and a kernel without a model (1.7 seen)
GPU_RUNNER_GIB = 5.0  # the same with CUDA's libraries
GPU_CONTEXT_GIB = 0.7


def look_at(jobs, here=True):
    """Find what is left of Jobs and their cost; ParameterError names those that cannot be trained at all.

    here: they run on this machine, which must have the device they name; else their memory is not this machine's.
    """
    faults, counts = {}, cache(images_of)  # a frozen model is its own key
    for job in jobs:
        try:
            device = pick_device(job.params.device) if here else None
            there = counts(job.params.data)
            job.cost = estimate(job.params, there.classes, there.train, there.test, device, there.unlabelled)
            job.left = list(stages_left(job.params))
        except (ValueError, OSError) as error:
            faults.setdefault(str(error), []).append(job.slug)
    refuse(faults, len(jobs))
    return jobs


def _gpus(jobs):
    """Return the GPUs of this machine that jobs use, each once."""
    if not torch.cuda.is_available():
        return set()
    return {device for device in (pick_device(job.params.device) for job in jobs) if device.type == "cuda"}


def side_by_side(grid, jobs):
    """Return (how many planned Jobs may run at once, why fewer than wanted or None), by the memory free now; 1 at least.

    A local job is taken to need what its larger training needs (cost.py) beside a runner and a kernel; on a GPU that is
    the GPU's memory, which all jobs share. Ray does its own counting.
    """
    if grid.engine == "ray" or not jobs:
        return grid.jobs, None
    need, gpus = max(job.cost.gpu_gib for job in jobs), _gpus(jobs)
    limits = [("memory", psutil.virtual_memory().available, GPU_RUNNER_GIB if gpus else RUNNER_GIB + need)]
    if gpus:
        limits.append(("GPU memory", sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus), GPU_CONTEXT_GIB + need))
    what, free, one = min(limits, key=lambda limit: limit[1] / 2**30 // limit[2])
    most = max(1, int(free / 2**30 // one))
    why = f"{memory(free / 2**30)} of {what} are free, and a job takes about {memory(one)}"
    return (most, why) if most < grid.jobs else (grid.jobs, None)


def seconds_of(jobs, speed):
    """Return the seconds that each of the planned Jobs takes at most, at `speed` FLOP a second, in their order.

    What an earlier job trains by the same parameters is taken from the store: all teachers, or all students with them.
    """
    made, seconds = set(), []
    for job in jobs:
        stages, run = job.cost.stages, Run(job.params)
        trained = stages["teachers"] + stages["students"]
        more = (
            1 + stages["validation"] / trained if trained else 1
        )  # the epoch is chosen in proportion to what is trained
        work = {"teachers": more * stages["teachers"], "students": more * stages["students"] + stages["soft targets"]}
        for kind in work:
            name = run.made_with(kind), tuple(job.params.student.rows), job.params.seed, job.params.seeds
            work[kind] *= name not in made
            made.add(name)
        flop = 1e18 * (sum(work.values()) + stages["evaluation"])
        seconds.append(flop / speed + STAGE_SECONDS * len(job.left))
    return seconds


def print_plan(grid, jobs, most, why):
    """Print what will be done and an estimate of the time; jobs: all planned Jobs; most, why: as side_by_side found."""
    todo = [job for job in jobs if job.left]
    over = " x ".join(f"{key} ({len(values)})" for key, values in grid.vary.items())
    print(f"{grid.name}: {len(jobs)} jobs over {over}, from {grid.source}; {len(jobs) - len(todo)} are done already")
    if not todo:
        return
    threads = f"{counted(grid.threads_a_job, 'thread')} each"
    print(f"engine {grid.engine}, {most} side by side{f' ({why})' if why else ''}, {threads}", flush=True)
    seconds = {}
    try:
        speed = measured_speed(todo[0].params, todo[0].cost, grid.threads_a_job)
    except (RuntimeError, ValueError) as error:  # no room, or no such device here
        trouble = str(error).partition("\n")[0]
        estimated = f"no estimate of the time: training steps on random images stopped: {trouble}"
    else:
        seconds = dict(zip((job.name for job in todo), seconds_of(todo, speed), strict=True))
        total = max(sum(seconds.values()) / most, *seconds.values()) * _slower(grid, todo, most)
        measured = f"{speed / 1e9:,.3g} GFLOP/s a job"
        estimated = f"estimate: at most {spoken_time(total)} on this machine, at a measured {measured}"
    width = max(len(job.slug) for job in jobs)
    for job in jobs:
        takes = f"  {spoken_time(seconds[job.name])}" if job.name in seconds else ""
        print(f"  {job.slug:<{width}}  {'to do' if job.left else 'done '}{takes}".rstrip())
    print(estimated, flush=True)


def _slower(grid, jobs, most):
    """Return by what factor jobs side by side slow each other down on this machine."""
    together, gpus = min(most, len(jobs)), _gpus(jobs)
    return max(1.0, together / len(gpus) if gpus else together * grid.threads_a_job / cores())
