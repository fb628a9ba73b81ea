import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_score, recall_score

from cpsd_lib import metrics


def naive_ap(scores, targets):
    known = [(s, t) for s, t in zip(scores, targets, strict=True) if t != -1]
    total, previous = sum(t for _, t in known), 0.0
    if not total:
        return math.nan
    result = 0.0
    for threshold in sorted({s for s, _ in known}, reverse=True):
        chosen = [t for s, t in known if s >= threshold]
        recall = sum(chosen) / total
        result += (recall - previous) * sum(chosen) / len(chosen)
        previous = recall
    return result


def naive_scores(scores, targets, threshold, top_k):
    n, c = targets.shape
    right, chosen, present = [0] * c, [0] * c, [0] * c
    for i in range(n):
        ranking = sorted((j for j in range(c) if targets[i, j] != -1), key=lambda j: (-scores[i, j], j))
        for rank, j in enumerate(ranking):
            predicted = scores[i, j] >= threshold and (top_k is None or rank < top_k)
            right[j] += predicted and targets[i, j] == 1
            chosen[j] += predicted
            present[j] += targets[i, j] == 1
    chosen = [max(n, 1) for n in chosen]
    cp = sum(r / n for r, n in zip(right, chosen, strict=True)) / c
    cr = sum(r / max(n, 1) for r, n in zip(right, present, strict=True)) / c
    op, or_ = sum(right) / sum(chosen), sum(right) / max(sum(present), 1)
    f1 = [2 * p * r / (p + r) if p + r else 0 for p, r in ((cp, cr), (op, or_))]
    return {"CP": cp, "CR": cr, "CF1": f1[0], "OP": op, "OR": or_, "OF1": f1[1]}


def table(seed, kind="random", n=60, c=5, unknown=False):
    random = np.random.default_rng(seed)
    scores = random.random((n, c))
    if kind == "tied":
        scores = np.round(scores * 4) / 4
    if kind == "constant":
        scores[:] = 0.5
    targets = random.choice([-1, 0, 1] if unknown else [0, 0, 1], size=(n, c))
    return scores, targets


@pytest.mark.parametrize("kind", ["random", "tied", "constant"])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_scikit_learn(kind, seed):
    scores, targets = table(seed, kind)
    expected = average_precision_score(targets, scores, average=None)
    np.testing.assert_allclose(metrics.average_precision(scores, targets), expected, rtol=0, atol=1e-12)
    assert metrics.mean_average_precision(scores, targets) == pytest.approx(expected.mean(), abs=1e-12)


@pytest.mark.parametrize("kind", ["random", "tied", "constant"])
def test_average_precision_equals_the_naive_loop_and_leaves_unknown_entries_out(kind):
    scores, targets = table(7, kind, n=30, unknown=True)
    expected = [naive_ap(s, t) for s, t in zip(scores.T, targets.T, strict=True)]
    np.testing.assert_allclose(metrics.average_precision(scores, targets), expected, rtol=0, atol=1e-12)


def test_average_precision_matches_the_release(golden):
    file = np.load(golden / "metrics.npz")
    np.testing.assert_allclose(metrics.average_precision(file["scores"], file["targets"]), file["ap"], atol=1e-6)


def test_average_precision_of_a_hand_made_ranking():
    scores, targets = np.array([[0.9], [0.8], [0.7], [0.6]]), np.array([[1], [0], [1], [0]])
    assert metrics.average_precision(scores, targets)[0] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_a_class_without_a_positive_gets_nan_and_is_left_out_of_the_mean():
    scores, targets = np.array([[0.9, 0.1], [0.2, 0.3]]), np.array([[1, 0], [0, -1]])
    ap = metrics.average_precision(scores, targets)
    assert ap[0] == 1 and np.isnan(ap[1])
    assert metrics.mean_average_precision(scores, targets) == 1
    assert math.isnan(metrics.mean_average_precision(scores, np.zeros((2, 2))))


def test_only_the_order_of_the_scores_counts_and_logits_will_do():
    scores, targets = table(0)
    logits = np.log(scores / (1 - scores)) * 100
    assert np.array_equal(metrics.average_precision(scores, targets), metrics.average_precision(logits, targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_of_any_precision_are_taken(dtype):
    scores, targets = (torch.tensor(x) for x in table(0, "tied"))
    scores = scores.to(dtype).requires_grad_()
    ap = metrics.average_precision(scores, targets)
    assert np.array_equal(ap, metrics.average_precision(scores.detach().double().numpy(), targets.numpy()))
    assert metrics.precision_recall_f1(scores, targets)["CP"] > 0


def test_whole_number_scores_are_taken():
    assert metrics.average_precision(np.array([[True], [False]]), np.array([[1], [0]]))[0] == 1
    assert metrics.precision_recall_f1(np.array([[1], [0]], dtype=np.uint8), np.array([[1], [0]]), top_k=1)["OF1"] == 1


@pytest.mark.parametrize(
    ("name", "options"), [("overall_0.5", {}), ("overall_0.8", {"threshold": 0.8}), ("top3_0.5", {"top_k": 3})]
)
def test_precision_recall_and_f1_match_the_release(golden, name, options):
    file = np.load(golden / "metrics.npz")
    ours = metrics.precision_recall_f1(file["scores"], file["targets"], **options)
    np.testing.assert_allclose([ours[key] for key in ("OP", "OR", "OF1", "CP", "CR", "CF1")], file[name], atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "tied", "constant"])
@pytest.mark.parametrize("top_k", [None, 1, 3, 99])
@pytest.mark.parametrize("unknown", [False, True])
def test_precision_recall_and_f1_equal_the_naive_loop(kind, top_k, unknown):
    scores, targets = table(1, kind, n=20, unknown=unknown)
    for threshold in (0.25, 0.5, 0.95):
        ours = metrics.precision_recall_f1(scores, targets, threshold, top_k)
        assert ours == pytest.approx(naive_scores(scores, targets, threshold, top_k), abs=1e-12)


def test_precision_and_recall_equal_scikit_learn_where_every_class_is_predicted():
    scores, targets = table(2)
    ours, predicted = metrics.precision_recall_f1(scores, targets), scores >= 0.5
    for name, average in (("C", "macro"), ("O", "micro")):
        assert ours[name + "P"] == pytest.approx(precision_score(targets, predicted, average=average), abs=1e-12)
        assert ours[name + "R"] == pytest.approx(recall_score(targets, predicted, average=average), abs=1e-12)


def test_a_score_equal_to_the_threshold_is_a_prediction_in_any_precision():
    for dtype in (np.float16, np.float32, np.float64):
        assert metrics.precision_recall_f1(np.full((1, 1), 0.7, dtype), np.ones((1, 1)), threshold=0.7)["OF1"] == 1


def test_a_class_without_a_prediction_counts_as_one_wrong_prediction_as_in_the_release():
    scores, targets = np.array([[0.9, 0.1]]), np.array([[1, 1]])
    ours = metrics.precision_recall_f1(scores, targets)
    assert (ours["CP"], ours["CR"], ours["OP"], ours["OR"]) == (0.5, 0.5, 0.5, 0.5)


def test_nothing_predicted_and_nothing_there_gives_zeros_not_nan():
    assert set(metrics.precision_recall_f1(np.zeros((2, 3)), np.zeros((2, 3))).values()) == {0.0}
    assert set(metrics.precision_recall_f1(np.ones((2, 3)), np.full((2, 3), -1), top_k=2).values()) == {0.0}


def test_an_unknown_class_takes_no_place_among_the_top_k():
    scores, targets = np.array([[0.9, 0.8, 0.7]]), np.array([[-1, 1, 0]])
    ours = metrics.precision_recall_f1(scores, targets, top_k=1)
    assert ours["OR"] == 1 and ours["CR"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1])
def test_scores_that_are_no_probabilities_are_refused(bad):
    with pytest.raises(ValueError, match="scores"):
        metrics.precision_recall_f1(np.array([[0.5, bad]]), np.array([[1, 0]]))


@pytest.mark.parametrize("function", [metrics.average_precision, metrics.precision_recall_f1])
def test_tables_that_cannot_be_scored_are_refused(function):
    with pytest.raises(ValueError, match=r"\[images, classes\]"):
        function(np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\[images, classes\]"):
        function(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="NaN in 1 images"):
        function(np.array([[0.5, np.nan]]), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="targets may hold"):
        function(np.zeros((1, 2)), np.full((1, 2), 2))


def test_a_top_k_below_one_is_refused():
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        metrics.precision_recall_f1(np.zeros((1, 2)), np.zeros((1, 2)), top_k=0)
