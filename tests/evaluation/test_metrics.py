import math
import os
import select
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_score, recall_score

from cpsd_lib.evaluation import bootstrap, metrics


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
            predicted = scores[i, j] >= np.broadcast_to(threshold, c)[j] and (top_k is None or rank < top_k)
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


@pytest.mark.parametrize(
    "function", [metrics.average_precision, metrics.precision_recall_f1, bootstrap.bootstrap_interval]
)
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


@pytest.mark.parametrize("top_k", ["oracle", "3", [1, 2], np.array([1, 2]), torch.tensor([1, 2]), np.array([3])])
def test_a_top_k_that_reads_the_answer_is_refused(top_k):
    with pytest.raises(ValueError, match=r"such as 3: .* oracle, it reads the answer"):
        metrics.precision_recall_f1(np.zeros((2, 3)), np.zeros((2, 3)), top_k=top_k)


def test_a_top_k_may_be_any_whole_number():
    scores, targets = table(0)
    expected = metrics.precision_recall_f1(scores, targets, top_k=2)
    assert metrics.precision_recall_f1(scores, targets, top_k=np.int64(2)) == expected
    assert metrics.precision_recall_f1(scores, targets, top_k=torch.tensor(2)) == expected


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("kind", ["random", "tied"])
def test_a_threshold_per_class_equals_the_naive_loop(kind, top_k):
    scores, targets = table(3, kind, unknown=True)
    thresholds = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    ours = metrics.precision_recall_f1(scores, targets, thresholds, top_k)
    assert ours == pytest.approx(naive_scores(scores, targets, thresholds, top_k), abs=1e-12)


@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_one_threshold_and_the_same_for_every_class_are_equal(form):
    scores, targets = table(4)
    expected = metrics.precision_recall_f1(scores, targets, 0.3)
    assert metrics.precision_recall_f1(scores, targets, form([0.3] * 5)) == expected
    for one in (np.float64(0.3), np.array(0.3), torch.tensor(0.3, dtype=torch.float64)):
        assert metrics.precision_recall_f1(scores, targets, one) == expected


def test_a_score_equal_to_its_classs_threshold_is_a_prediction_in_any_precision():
    for dtype in (np.float16, np.float32, np.float64):
        scores = np.array([[0.7, 0.3]], dtype)
        assert metrics.precision_recall_f1(scores, np.ones((1, 2)), threshold=np.array([0.7, 0.3]))["OF1"] == 1


@pytest.mark.parametrize("bad", [[0.5], [0.5] * 3, [[0.5, 0.5]], [0.5, np.nan]])
def test_thresholds_that_do_not_fit_the_classes_are_refused(bad):
    with pytest.raises(ValueError, match=r"threshold must be one number or one per class \[2\]"):
        metrics.precision_recall_f1(np.zeros((1, 2)), np.zeros((1, 2)), threshold=np.array(bad))


def naive_resamples(scores, targets, resamples, seed):
    random, result = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = random.integers(len(scores), size=len(scores))
        result.append(metrics.mean_average_precision(scores[rows], targets[rows]))
    return np.array(result)


@pytest.mark.parametrize("kind", ["random", "tied", "constant"])
@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_resample_has_the_map_of_the_images_drawn(kind, unknown, seed):
    scores, targets = table(
        seed, kind, n=12, unknown=unknown
    )  # few images: some resample has a class without a positive
    targets[1:, 0] = 0
    targets[:, 1] = 0
    interval = bootstrap.bootstrap_interval(scores, targets, resamples=1, seed=seed)
    assert interval.value == metrics.mean_average_precision(scores, targets)
    assert interval.low == interval.high == pytest.approx(naive_resamples(scores, targets, 1, seed)[0], abs=1e-12)


@pytest.mark.parametrize("kind", ["random", "tied"])
def test_the_interval_equals_the_naive_loop(kind):
    scores, targets = table(5, kind, n=30, unknown=True)
    values = naive_resamples(scores, targets, 150, seed=8)  # more than are taken at a time
    interval = bootstrap.bootstrap_interval(scores, targets, resamples=150, seed=8, level=0.9)
    assert interval[1:] == pytest.approx(np.quantile(values, [0.05, 0.95]), abs=1e-12)
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("kind", ["random", "tied"])
def test_the_paired_bootstrap_equals_the_naive_loop(kind):
    (a, targets), (b, _) = table(6, kind, n=40, unknown=True), table(16, kind, n=40)
    differences = naive_resamples(a, targets, 150, seed=2) - naive_resamples(b, targets, 150, seed=2)
    paired = bootstrap.paired_bootstrap(a, b, targets, resamples=150, seed=2, level=0.5)
    map_ = metrics.mean_average_precision
    assert paired.difference == map_(a, targets) - map_(b, targets)
    assert paired[1:3] == pytest.approx(np.quantile(differences, [0.25, 0.75]), abs=1e-12)
    assert (differences > 0).any() and (differences < 0).any()
    sides = min((1 + (differences <= 0).sum()) / 151, (1 + (differences >= 0).sum()) / 151)
    assert paired.p_value == pytest.approx(2 * sides)


@pytest.mark.parametrize("threshold", [0.5, np.array([0.2, 0.5, 0.9, 0.4])])
def test_the_intervals_of_f1_equal_the_naive_loop_over_the_same_resamples(threshold):
    scores, targets = table(7, n=30, c=4, unknown=True)
    scores = 1 / (1 + np.exp(-scores))
    random = np.random.default_rng(8)
    rows = [random.integers(30, size=30) for _ in range(150)]
    drawn = [metrics.precision_recall_f1(scores[one], targets[one], threshold) for one in rows]
    ours = bootstrap.bootstrap_f1(scores, targets, threshold, resamples=150, seed=8, level=0.9)
    for name in ("CF1", "OF1"):
        ends = np.quantile([one[name] for one in drawn], [0.05, 0.95])
        assert ours[name][1:] == pytest.approx(ends, abs=1e-12)
        assert ours[name].value == metrics.precision_recall_f1(scores, targets, threshold)[name]


def test_many_classes_are_resampled_in_blocks_that_bound_the_memory(monkeypatch):
    random = np.random.default_rng(0)
    targets = (random.random((400, 300)) < 0.02).astype(np.int8)
    a, b = (random.random((400, 300), np.float32) for _ in range(2))

    def peak():
        tracemalloc.start()
        result = bootstrap.paired_bootstrap(a, b, targets, resamples=70)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result, top

    whole, of_whole = peak()
    monkeypatch.setattr(bootstrap, "BLOCK", 400 * 17)
    blocks, of_blocks = peak()
    assert blocks == whole and of_blocks < of_whole / 3


def test_a_resample_without_a_positive_is_left_out():
    scores, targets = np.array([[0.9], [0.8], [0.1]]), np.array([[0], [1], [0]])
    values = naive_resamples(scores, targets, 70, seed=0)
    assert np.isnan(values).any()
    interval = bootstrap.bootstrap_interval(scores, targets, resamples=70, level=0.5)
    assert interval[1:] == pytest.approx(np.nanquantile(values, [0.25, 0.75]), abs=1e-12)


def test_a_perfect_model_is_sure_of_100_percent():
    _, targets = table(0, unknown=True)
    assert bootstrap.bootstrap_interval(targets, targets, resamples=70) == (1, 1, 1)


def test_a_model_does_not_differ_from_itself():
    scores, targets = table(0)
    assert bootstrap.paired_bootstrap(scores, scores, targets, resamples=70) == (0, 0, 0, 1)
    assert bootstrap.paired_bootstrap(scores, np.exp(scores), targets, resamples=70) == (0, 0, 0, 1)


def test_a_clear_difference_has_the_smallest_p_value_and_the_sign_of_a_minus_b():
    scores, targets = table(0)
    better = bootstrap.paired_bootstrap(targets, scores, targets, resamples=99)
    worse = bootstrap.paired_bootstrap(scores, targets, targets, resamples=99)
    assert better.p_value == worse.p_value == 2 / 100
    assert 0 < better.low < better.difference < better.high
    assert worse[:3] == (-better.difference, -better.high, -better.low)


def test_the_order_of_the_classes_and_a_monotone_change_of_the_scores_do_not_count():
    scores, targets = table(1, "tied")
    expected = bootstrap.bootstrap_interval(scores, targets, resamples=70)
    assert bootstrap.bootstrap_interval(np.exp(9 * scores), targets, resamples=70) == expected
    assert bootstrap.bootstrap_interval(scores[:, ::-1], targets[:, ::-1], resamples=70) == pytest.approx(expected)


def test_the_same_seed_gives_the_same_interval_on_any_number_of_cores(monkeypatch):
    scores, targets = table(2)
    expected = bootstrap.bootstrap_interval(scores, targets, resamples=70, seed=1)
    for cores in (1, 5):
        for module in (metrics, bootstrap):
            monkeypatch.setattr(module, "cores", lambda cores=cores: cores)
        assert bootstrap.bootstrap_interval(scores, targets, resamples=70, seed=1) == expected
    assert bootstrap.bootstrap_interval(scores, targets, resamples=70, seed=2) != expected


def test_tensors_are_resampled_as_arrays_are():
    scores, targets = table(0)
    expected = bootstrap.bootstrap_interval(scores, targets, resamples=20)
    assert bootstrap.bootstrap_interval(torch.tensor(scores), torch.tensor(targets), resamples=20) == expected


def test_an_80_percent_interval_holds_the_true_map_about_that_often():
    def images(seed, n):
        random = np.random.default_rng(seed)
        targets = (random.random((n, 3)) < 0.3).astype(int)
        return random.normal(size=(n, 3)) + 2 * targets, targets

    truth = metrics.mean_average_precision(*images(999, 100_000))
    intervals = [bootstrap.bootstrap_interval(*images(seed, 300), 100, seed, 0.8) for seed in range(60)]
    assert 0.6 < np.mean([interval.low <= truth <= interval.high for interval in intervals]) < 0.95


def test_a_bar_shows_the_resamples(monkeypatch):
    runner, terminal = os.openpty()
    monkeypatch.setenv("CPSD_TERMINAL", f"07_ablation:{os.ttyname(terminal)}")
    bootstrap.bootstrap_interval(*table(0), resamples=70)
    shown = ""
    while "70/70" not in shown:  # a terminal hands over what is there, not all of it
        assert select.select([runner], [], [], 60)[0], shown
        shown += os.read(runner, 10_000).decode()
    assert "07_ablation bootstrap: 100%" in shown
    os.close(runner), os.close(terminal)


def test_what_cannot_be_resampled_is_refused():
    scores, targets = table(0)
    for options, word in (({"resamples": 0}, "resamples"), ({"level": 1.0}, "level"), ({"level": 95}, "level")):
        with pytest.raises(ValueError, match=f"{word} must"):
            bootstrap.bootstrap_interval(scores, targets, **options)
        with pytest.raises(ValueError, match=f"{word} must"):
            bootstrap.paired_bootstrap(scores, scores, targets, **options)
    for empty in (0 * targets, 0 * targets - 1):
        with pytest.raises(ValueError, match="none of the 9 resamples holds a positive"):
            bootstrap.bootstrap_interval(scores, empty, resamples=9)
    with pytest.raises(ValueError, match=r"\[images, classes\]"):
        bootstrap.paired_bootstrap(scores, scores[:, :2], targets)
