"""Results in words, for notebooks and terminal, and report.html: one self-contained page a run, readable without network."""

import base64
from pathlib import Path

import pandas as pd
from jinja2 import Environment
from scipy.stats import t

from cpsd_lib.evaluation import ACTIVATION
from cpsd_lib.support import counted, read_json, write_text
from cpsd_lib.viz import plots
from cpsd_lib.workbench.published import no_figure
from cpsd_lib.workbench.rows import CONTROLS, TITLES, baseline_of, views_of
from cpsd_lib.workbench.run import params_text
from cpsd_lib.workbench.scoring import (
    SPLITS,
    against_paper,
    caveat,
    component_table,
    load_per_class,
    load_records,
    table_text,
)


def scores_text(run):
    """Return the component tables of a run, what they show, and ours beside the paper's, as text for a terminal."""
    records, lines = load_records(run), []
    for split, table in _tables(records).items():
        lines.append(f"\n{run.params.name}: mAP on {split}, {counted(int(table['seeds'].max()), 'seed')}{caveat(run)}")
        lines.append(f"{table_text(table)}\n{gain_summary(table, split)}".rstrip())
    if deviation(run.params):
        lines.append(f"\n{deviation(run.params)}")
    compared = against_paper(records, run.params)
    if compared is not None:
        shown = compared.to_string(float_format=lambda value: f"{value:z.1f}")
        lines.append(f"\nours beside the paper's, on test{caveat(run)}\n{shown}")
    elif no_figure(run.params):
        lines.append(f"\nnot compared: {no_figure(run.params)}")
    return "\n".join(lines)


def write_report(run):
    """Write the run's report.html from its manifest, its scores and the figures that the manifest lists; return its path."""
    records, stages = load_records(run), read_json(run.folder / "manifest.json")["stages"]
    last, compared = stages[max(stages)], against_paper(records, run.params)
    long = plots.shortened(run.described["class_names"])
    # What else lies in figures/ is of other parameters, or somebody else's.
    figures = sorted(name for entry in stages.values() for name in entry["outputs"] if name.endswith(".png"))
    template = Environment(autoescape=True, trim_blocks=True).from_string(
        Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    )
    page = template.render(
        run=run,
        seeds=f"{counted(run.params.seeds, 'seed')} from {run.params.seed}",
        caveat=caveat(run),
        last=last,
        deviation=deviation(run.params),
        components=[(split, _html(table), gain_summary(table, split)) for split, table in _tables(records).items()],
        per_class=_html(_per_class(run)),
        compared=None if compared is None else _html(compared),
        not_compared=no_figure(run.params),
        times=_html(pd.DataFrame(stages).T[["seconds"]].astype(float), ",.0f"),
        figures=[(Path(name).stem, base64.b64encode((run.folder / name).read_bytes()).decode()) for name in figures],
        shortened=_html(long) if len(long) else "",
        params=params_text(run.params),
    )
    write_text(run.folder / "report.html", page)
    return run.folder / "report.html"


def _per_class(run):
    """Return the AP of each class on test, percent, mean over seeds, a column a row of the table."""
    lines = load_per_class(run)
    on_test = lines[(lines["split"] == "test") & lines["row"].isin(TITLES)]
    table = on_test.pivot_table(index="class", columns="row", values="ap", dropna=False)
    table = table.reindex(run.described["class_names"])[[row for row in TITLES if row in table]]
    return table.rename(columns=TITLES).rename_axis(index=None, columns=None)


def _tables(records):
    scored = set(records.dropna(subset=["mAP"])["split"])  # one without a positive label has no mAP
    return {split: component_table(records, split) for split in SPLITS if split in scored}


def _html(table, form="z.1f"):
    # A column of row titles needs no heading.
    table = table.rename_axis(None) if table.index.names == ["row"] else table
    with pd.option_context("display.max_colwidth", None):  # a name of 60 letters is written in full
        return table.to_html(border=0, na_rep="-", float_format=lambda value: format(value, form))


def deviation(params):
    """Return in a sentence how Params `params` leave the papers' method, in which nothing starts from the baseline."""
    teachers, student, deviations = params.teachers, params.student, []
    if teachers.start == "baseline":
        shared = f", share its first {counted(teachers.frozen_stages, 'stage')}" if teachers.frozen_stages > 0 else ""
        if teachers.frozen_stages < 0:
            shared = f", share its stages but the last{'' if teachers.frozen_stages == -1 else f' {-teachers.frozen_stages}'}"
        epochs = counted(teachers.more_epochs or teachers.trained_epochs, "epoch")
        deviations.append(f"the teachers of parts start from the trained baseline{shared} and train {epochs}")
    if student.start == "baseline" or params.method == "patient":
        start = "start from the baseline and " if student.start == "baseline" else ""
        views = f" on {counted(views_of(student), 'view')} of an image" if params.method == "patient" else ""
        deviations.append(f"the students {start}train {counted(student.trained_epochs, 'epoch')}{views}")
    if not deviations:
        return ""
    baseline = f"The baseline trains {counted(teachers.trained_epochs, 'epoch')}."
    return f"Not the paper's method: {'; '.join(deviations)}. {baseline}"


# ---- a component table and class activation maps in words -------------------------------------------------------------


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
    drawn = [
        f"Beyond the luck of the test images, {row} gains in {int((intervals['low'] > 0).sum())} of {len(intervals)} seeds "
        "(95 % interval above zero)."
        for row, intervals in (images or {}).items()
        if row in methods
    ]
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
