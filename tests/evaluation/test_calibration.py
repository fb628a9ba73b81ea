import numpy as np
import pytest
import torch

from cpsd_lib.evaluation.calibration import expected_calibration_error, fit_calibration, reliability


def naive_table(scores, targets, bins):
    lines = []
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [
            (s, t)
            for s, t in zip(scores.ravel(), targets.ravel(), strict=True)
            if t != -1 and low <= s and (s < high or b == bins - 1)
        ]
        mean = [sum(column) / len(inside) for column in zip(*inside, strict=True)] if inside else [np.nan, np.nan]
        lines.append([low, high, *mean, len(inside)])
    return np.array(lines)


def table(seed, n=50, c=4):
    random = np.random.default_rng(seed)
    return random.random((n, c)), random.choice([-1, 0, 1], size=(n, c))


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 200])
@pytest.mark.parametrize("digits", [1, 2, 9])
def test_the_diagram_and_the_error_equal_the_naive_loop(bins, digits):
    scores, targets = table(bins)
    scores = np.round(scores, digits)
    expected = naive_table(scores, targets, bins)
    ours = reliability(scores, targets, bins)
    assert list(ours) == ["low", "high", "confidence", "share_positive", "count"]
    np.testing.assert_allclose(ours.to_numpy(), expected, rtol=0, atol=1e-12)
    full = expected[expected[:, 4] > 0]
    error = (abs(full[:, 2] - full[:, 3]) * full[:, 4]).sum() / full[:, 4].sum()
    assert expected_calibration_error(scores, targets, bins) == pytest.approx(error, abs=1e-12)


def test_a_hand_made_diagram():
    scores, targets = np.array([[0.1, 0.3], [0.9, 0.7]]), np.array([[0, 1], [1, -1]])
    ours = reliability(scores, targets, bins=2)
    assert ours["count"].tolist() == [2, 1]
    assert ours["confidence"].tolist() == pytest.approx([0.2, 0.9])
    assert ours["share_positive"].tolist() == [0.5, 1]
    assert expected_calibration_error(scores, targets, bins=2) == pytest.approx((2 * 0.3 + 0.1) / 3)


def test_a_model_that_is_always_right_has_no_error_and_one_that_is_always_wrong_has_all():
    _, targets = table(0)
    known = np.abs(targets)
    assert expected_calibration_error(known, known) == 0
    assert expected_calibration_error(1 - known, known) == 1


def test_probabilities_that_mean_what_they_say_have_a_small_error_and_overconfident_ones_a_large_one():
    random = np.random.default_rng(0)
    scores = random.random((2000, 5))
    targets = random.random((2000, 5)) < scores
    assert expected_calibration_error(scores, targets) < 0.03
    assert expected_calibration_error(np.round(scores), targets) > 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_score_on_an_edge_belongs_to_the_bin_above_in_any_precision(dtype):
    scores = torch.tensor([[0.0, 0.3, 0.7, 1.0]], dtype=dtype)
    ours = reliability(scores, torch.ones(1, 4), bins=10)
    assert np.flatnonzero(ours["count"]).tolist() == [0, 3, 7, 9]


def test_what_cannot_be_judged_is_refused():
    scores, targets = table(0)
    for function in (reliability, expected_calibration_error):
        with pytest.raises(ValueError, match="bins must be at least 1"):
            function(scores, targets, bins=0)
        with pytest.raises(ValueError, match="no decision can be judged"):
            function(scores, np.full_like(targets, -1))
        with pytest.raises(ValueError, match="sigmoid"):
            function(scores * 3, targets)
        with pytest.raises(ValueError, match=r"\[images, classes\]"):
            function(scores[0], targets[0])


@pytest.mark.parametrize(("temperature", "offset"), [(1.0, 0.0), (0.3, 0.0), (4.0, -1.0), (1.0, 3.0)])
def test_the_scale_and_shift_of_logits_are_fitted_and_their_calibration_error_goes_away(temperature, offset):
    random = np.random.default_rng(0)
    true = random.normal(0, 2, (4000, 5))
    targets = (random.random((4000, 5)) < 1 / (1 + np.exp(-true))).astype(int)
    targets[::7] = -1
    logits = temperature * (true - offset)
    found = fit_calibration(logits, targets)
    assert found == pytest.approx((temperature, offset), rel=0.05, abs=0.05)
    assert expected_calibration_error(1 / (1 + np.exp(-logits / found[0] - found[1])), targets) < 0.02


def test_a_model_worse_than_chance_keeps_its_ranking():
    temperature, _ = fit_calibration(np.array([[3.0], [-3.0], [2.0]]), np.array([[0], [1], [0]]))
    assert temperature > 100


def test_a_calibration_of_nothing_known_is_refused():
    with pytest.raises(ValueError, match="nothing can be fitted"):
        fit_calibration(np.zeros((2, 3)), np.full((2, 3), -1))
