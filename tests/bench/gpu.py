"""How much of a GPU's arithmetic the training of one model uses."""

import statistics

import torch

from bench.timing import seconds
from cpsd_lib.workbench.cost import estimate
from cpsd_lib.workbench.loading import resolve

SIDE, TIMES = 8192, 10  # bfloat16 matrices whose product shows the peak: 1.1 TFLOP each


def utilisation(workspace, row):
    """Return {"images_per_second", "model_tflops", "peak_tflops", "utilisation"} of the student's epoch in `row`, ours.

    A training step counts as 3 forwards; the peak is a matrix product's of this GPU, measured now.
    """
    settings = workspace.settings
    params = resolve(
        {"name": "bench", "data": {"kind": "scenes", "size": settings.size}}
        | {"model": {"name": settings.model, "options": settings.options}, "partition": {"k": settings.k}}
    )
    forward = estimate(params, workspace.classes, settings.images, 1).forward_gflop * 1e9
    steps = workspace.photos.training // min(settings.batch, workspace.photos.training)
    images = steps * settings.batch / row["our_seconds"]
    peak = _peak(workspace.device)
    model = 3 * forward * images
    return {
        "images_per_second": images,
        "model_tflops": model / 1e12,
        "peak_tflops": peak / 1e12,
        "utilisation": model / peak,
    }


def _peak(device):
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))

    def work():
        for _ in range(TIMES):
            a @ b

    seconds(work)
    return 2 * SIDE**3 * TIMES / statistics.median(seconds(work)[0] for _ in range(5))
