import numpy as np
import pytest
import torch

from cpsd_lib.evaluation import metrics
from cpsd_lib.evaluation.metrics import best_thresholds


def f1(scores, targets, threshold):
    known = [(s >= threshold, t) for s, t in zip(scores, targets, strict=True) if t != -1]
    right = sum(p and t for p, t in known)
    return 2 * right / max(sum(p for p, _ in known) + sum(t for _, t in known), 1)


def table(seed, kind="random", n=40, c=6):
    random = np.random.default_rng(seed)
    scores = random.random((n, c))
    if kind == "tied":
        scores = np.round(scores * 4) / 4
    if kind == "constant":
        scores[:] = 0.25
    return scores, random.choice([-1, 0, 0, 1], size=(n, c))


@pytest.mark.parametrize("kind", ["random", "tied", "constant"])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_has_a_higher_f1_and_no_higher_one_an_equal(kind, seed):
    scores, targets = table(seed, kind)
    for threshold, s, t in zip(best_thresholds(scores, targets), scores.T, targets.T, strict=True):
        best = f1(s, t, threshold)
        for other in [*s, *(s + 1e-9), 0.0, 1.0]:
            assert f1(s, t, other) < best if other > threshold else f1(s, t, other) <= best


def test_a_hand_made_case():
    scores = np.array([[0.9, 0.9], [0.6, 0.6], [0.2, 0.6], [0.1, 0.1]])
    targets = np.array([[1, 1], [1, 1], [0, 0], [0, -1]])
    # The second class cannot take its tied positive without the negative: F1 is 2/3 at 0.9 and 4/5 at 0.6.
    assert best_thresholds(scores, targets).tolist() == [0.6, 0.6]


def test_a_class_without_a_positive_gets_one_half():
    scores, targets = np.array([[0.9, 0.9, 0.1]]), np.array([[0, -1, 1]])
    assert best_thresholds(scores, targets).tolist() == [0.5, 0.5, 0.1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_thresholds_fit_precision_recall_f1_in_any_precision(dtype):
    random = np.random.default_rng(0)
    targets = torch.tensor(random.random((200, 4)) < 0.3).int()
    # A perfect ranking at another level in each class: only a threshold per class can be right everywhere.
    scores = (torch.tensor(random.uniform(0.5, 1, (200, 4))) + targets) / torch.tensor([2.1, 4, 8, 16])
    scores = scores.to(dtype)
    assert metrics.precision_recall_f1(scores, targets)["CF1"] < 0.9
    assert metrics.precision_recall_f1(scores, targets, best_thresholds(scores, targets))["CF1"] > 0.99


def test_tables_without_probabilities_are_refused():
    with pytest.raises(ValueError, match="sigmoid"):
        best_thresholds(np.array([[3.0]]), np.array([[1]]))
    with pytest.raises(ValueError, match=r"\[images, classes\]"):
        best_thresholds(np.zeros((2, 3)), np.zeros((2, 2)))
