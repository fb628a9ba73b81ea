"""report.html: one self-contained page a run, readable without network."""

import base64
from pathlib import Path

import pandas as pd
from jinja2 import Environment

from cpsd_lib.support import counted, read_json, write_text
from cpsd_lib.viz import plots
from cpsd_lib.workbench.published import no_figure
from cpsd_lib.workbench.rows import TITLES
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
from cpsd_lib.workbench.summary import gain_summary


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
        name=run.params.name,
        released=run.params.evaluation.released,
        caveat=caveat(run),
        seeds=f"{counted(run.params.seeds, 'seed')} from {run.params.seed}",
        last=last,
        deviation=deviation(run.params),
        components=[(split, _html(table), gain_summary(table, split)) for split, table in _tables(records).items()],
        per_class=_html(_per_class(run)),
        compared=None if compared is None else _html(compared),
        not_compared=no_figure(run.params),
        times=_html(pd.DataFrame(stages).T[["seconds"]].astype(float), ",.0f"),
        figures=[(Path(name).stem, base64.b64encode((run.folder / name).read_bytes()).decode()) for name in figures],
        shortened=_html(long) if len(long) else "",
        data=run.described,
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
    if student.start == "baseline":
        deviations.append(f"the students start from the baseline and train {counted(student.trained_epochs, 'epoch')}")
    if not deviations:
        return ""
    baseline = f"The baseline trains {counted(teachers.trained_epochs, 'epoch')}."
    return f"Not the paper's method: {'; '.join(deviations)}. {baseline}"
