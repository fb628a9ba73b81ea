"""Sentences about results, data frames in and text out: for the notebooks, the terminal and report.html."""

from scipy.stats import t

from cpsd_lib.evaluation import ACTIVATION
from cpsd_lib.workbench.rows import CONTROLS, TITLES, baseline_of


def gain_summary(table, split, images=None):
    """Return what a component table shows as sentences: gain against its spread over seeds, and over the test images.

    images: {title of a row: DataFrame of gain_intervals}; the 95 % interval over seeds is that of Student's t.
    """
    if list(table.index) == [TITLES["released"]]:
        return ""  # nobody's gain: one model, trained elsewhere
    against = baseline_of([row for row, title in TITLES.items() if title in table.index])
    methods = [TITLES[row] for row in ("cpsd", "mld_led", "cpsd_mld", "cpsd_mld_led") if TITLES[row] in table.index]
    if not methods or against is None:
        return "The rows + CPSD and baseline were not both run: there is no gain to state."
    gains = [_gain_of(row, table, split, TITLES[against]) for row in methods]
    drawn = [_over_images(row, intervals) for row, intervals in (images or {}).items() if row in methods]
    never = ", ".join(table.index[table["OF1"] == 0])
    zeros = [f"CF1 and OF1 are 0 where no score reached evaluation.threshold: {never}."] if never else []
    return " ".join(gains + drawn + _against_controls(table, split) + zeros)


def _against_controls(table, split):
    """Return the sentence that sets + CPSD beside the rows that leave its cut out, in a list; [] where none was run."""
    controls = [TITLES[row] for row in CONTROLS if TITLES[row] in table.index]
    if not controls or TITLES["cpsd"] not in table.index:
        return []
    gains = [f"{table.loc[TITLES['cpsd'], 'mAP'] - table.loc[row, 'mAP']:+z.1f} against {row}" for row in controls]
    return [f"Beside what does without its cut, + CPSD is on {split}: {'; '.join(gains)}."]


def _gain_of(row, table, split, against):
    line, seeds = table.loc[row], int(table["seeds"].iloc[0])
    sd = f" and {line['mAP'] - table.loc['+ SD', 'mAP']:+z.1f} against + SD" if "+ SD" in table.index else ""
    text = f"On {split}, {row} is {line['gain']:+z.1f} mAP against the {against}{sd}"
    if seeds == 1:
        return f"{text}, from one seed: no spread is known, so no gain is claimed."
    half = t.ppf(0.975, seeds - 1) * line["gain spread"] / seeds**0.5
    verdict = "leaves out zero" if abs(line["gain"]) > half else "includes zero: these seeds alone do not prove it"
    return f"{text}. Paired over {seeds} seeds, the 95 % interval of the gain over the {against} is +-{half:.1f} and {verdict}."


def _over_images(row, intervals):
    """Return in how many seeds the interval of a row's gain over draws of the test images lies above zero, as text."""
    sure, seeds = int((intervals["low"] > 0).sum()), len(intervals)
    return f"Beyond the luck of the test images, {row} gains in {sure} of {seeds} seeds (95 % interval above zero)."


def maps_summary(table, against=None):
    """Return what a split's table shows in sentences, one a strategy and kind of map; against: a title.

    table: DataFrame of evaluation.summarise_shares, a line a (seed, strategy, map).
    """
    sentences = []
    for (strategy, kind), lines in table.groupby(level=["strategy", "map"], sort=False):
        empty, maps = lines[["empty", "positives"]].sum()
        text = f"{strategy}{'' if kind == ACTIVATION else f', {kind}'}: "
        if empty == maps:
            sentences.append(f"{text}all {maps:.0f} maps are 0.")
            continue
        text += f"{lines['share'].mean():.1f} %, {_difference(lines, 'above', 'chance')}"
        if lines["over"].notna().all():
            text += f"; {_difference(lines, 'over', f'the {against}')}"
        sentences.append(f"{text}; {empty:.0f} of {maps:.0f} maps are all 0, left out." if empty else f"{text}.")
    return "\n".join(sentences)


def _difference(lines, name, against):
    """Return a difference in points with its interval, or of several seeds how many intervals leave out zero, as text."""
    if len(lines) == 1:
        interval = " to ".join(f"{lines[f'{name}_{end}'].iloc[0]:+z.2f}" for end in ("low", "high"))
    else:
        sure = ((lines[f"{name}_low"] > 0) | (lines[f"{name}_high"] < 0)).sum()
        interval = f"the interval leaves out zero in {sure} of {len(lines)} seeds"
    return f"{lines[name].mean():+z.2f} points against {against} ({interval})"
