"""Ten thousand steps: memory, open files and threads stay what they were."""

import os
import threading

import numpy as np
import psutil
import torch

from cpsd_lib.objectives import Supervised
from cpsd_lib.training import Batches, Learner, Training, fit
from faults import count, tries

EPOCH = 50  # steps


class Watched:
    """An objective that notes memory, open files and threads every hundred steps."""

    def __init__(self):
        self.objective, self.steps, self.noted, self.process = Supervised(), 0, [], psutil.Process()

    def __call__(self, output, targets, soft):
        self.steps += 1
        if self.steps % 100 == 0:
            self.noted.append((self.process.memory_info().rss, self.process.num_fds(), threading.active_count()))
        return self.objective(output, targets, soft)


def test_a_long_training_holds_its_memory_files_and_threads(tmp_path):
    steps, rng = tries(10_000), np.random.default_rng(0)
    images = rng.integers(0, 256, (4 * EPOCH, 3, 16, 16), np.uint8)
    targets = rng.integers(0, 2, (4 * EPOCH, 3)).astype(np.int8)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 14 * 14, 3))
    watched = Watched()
    batches = Batches(images, targets, batch_size=4, view="default", device="cpu")
    fit([Learner("model", model, watched)], batches, Training(epochs=steps // EPOCH), tmp_path)
    assert watched.steps == steps
    (first, *_), last = watched.noted[len(watched.noted) // 5 :], watched.noted[-1]  # after caches have filled
    growth = last[0] / first[0] - 1
    # The thread that writes checkpoints comes when the first is due, after a minute.
    assert growth < 0.01 and abs(last[1] - first[1]) <= 1 and 0 <= last[2] - first[2] <= 1, (first, last)
    count(f"{steps:,} steps of fit", f"memory {100 * growth:+.2f} %, {last[1]} files and {last[2]} threads")
    assert not [path for path in os.listdir(tmp_path) if path.endswith(".tmp")]
