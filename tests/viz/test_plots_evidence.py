import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cpsd_lib.viz import plots_evidence


def test_a_rank_correlation_leaves_out_classes_without_a_score_and_needs_values_that_differ():
    gain = np.array([1.0, 2.0, np.nan, 3.0])
    found = plots_evidence.rank_correlations(gain, {"rising": [1, 5, 0, 6], "alike": [2, 2, 9, 2]})
    assert found["rising"].statistic == pytest.approx(1) and found["alike"] is None
    assert plots_evidence.rank_correlations(0 * gain, {"rising": [1, 5, 0, 6]}) == {"rising": None}


def test_classes_that_are_all_alike_are_drawn_and_said_to_be():
    properties = {"images": [1, 5, 0, 6], "degree": [2, 2, 2, 2]}
    figure = plots_evidence.gain_against(np.array([1.0, 2.0, np.nan, 0.5]), properties, "t")
    first, second = figure.axes
    assert first.get_title("left").startswith("rank correlation") or first.get_title().startswith("rank correlation")
    assert "all classes alike" in (second.get_title("left"), second.get_title())
    assert first.get_xlabel() == "images" and len(first.lines[1].get_xdata()) == 3
    plt.close(figure)


def test_price_and_gain_are_drawn_a_mark_a_row_with_or_without_a_spread():
    rows = {"baseline": (1.0, 50.0, 0.5), "+ CPSD": (14.3, 52.0, np.nan)}
    lines = pd.DataFrame.from_dict(rows, "index", columns=["work", "mAP", "spread"])
    axis = plots_evidence.map_against_work(lines, "t").axes[0]
    assert axis.get_legend_handles_labels()[1] == ["baseline", "+ CPSD"] and axis.get_xlim()[0] == 0
    assert [tuple(mark.lines[0].get_xydata()[0]) for mark in axis.containers] == [(1.0, 50.0), (14.3, 52.0)]
    plt.close(axis.figure)
