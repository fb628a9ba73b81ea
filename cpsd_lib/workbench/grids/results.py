"""What a grid found: one CSV, a table with mean and standard deviation over seeds, and mAP over each varied parameter."""

import itertools
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cpsd_lib.support import atomic, read_json, write_json, write_text
from cpsd_lib.viz import plots
from cpsd_lib.workbench.grids.params import load_grid
from cpsd_lib.workbench.published import published
from cpsd_lib.workbench.rows import TITLES
from cpsd_lib.workbench.run import Run
from cpsd_lib.workbench.scoring import load_records
from cpsd_lib.workbench.yaml_files import outputs_root, read_yaml, repo_root

SCORES = ("mAP", "CF1", "OF1", "seconds")
PAPER = ("paper mAP", "paper CF1", "paper OF1")
MOST_PANELS = 16


def collect(jobs):
    """Return a DataFrame, one line a job x row x split x seed, of Jobs that are done; None where nothing was scored.

    Columns: job, the varied values, row, split, seed, mAP, CF1, OF1 (percent), seconds of training, commit; and "paper mAP",
    "paper CF1", "paper OF1" (percent, NaN where there is none), where a job has a published figure.
    """
    found = []
    for job in jobs:
        run = Run(job.params)
        if not (run.folder / "evaluation" / "metrics.json").exists():
            continue  # labels without images are not scored
        records = load_records(run)
        commit = read_json(run.folder / "manifest.json")["stages"]["05_evaluation"]["commit"]
        values = {"job": job.name} | {key: _cell(value) for key, value in job.varied.items()}
        lines = records[["row", "split", "seed", *SCORES]].reset_index(drop=True).assign(commit=commit)
        found.append(pd.DataFrame([values] * len(lines)).join(lines).join(_paper(lines, published(job.params))))
    frame = pd.concat(found, ignore_index=True) if found else None
    return None if frame is None else frame.drop(columns=[name for name in PAPER if frame[name].isna().all()])


def _paper(lines, figures):
    """Return the published figures {row: {name: percent}} of the test split beside the lines of a job."""
    rows = [
        figures.get(row, {}) if split == "test" else {} for row, split in zip(lines["row"], lines["split"], strict=True)
    ]
    return pd.DataFrame({f"paper {name}": [row.get(name, np.nan) for row in rows] for name in SCORES[:3]}, dtype=float)


def _cell(value):
    if value is None:
        return "none"
    value = list(value.values()) if isinstance(value, dict) else value
    return ", ".join(str(one) for one in value) if isinstance(value, list) else value


def stamps(jobs):
    """Return what must stand beside the figures of these Jobs: epochs chosen on test, images that are missing."""
    found = []
    for job in jobs:
        data = Run(job.params).folder / "data.json"
        found += ["protocol: paper, epochs chosen on TEST"] if job.params.protocol == "paper" else []
        found += [read_json(data)["incomplete"]] if data.exists() and read_json(data)["incomplete"] else []
    return list(dict.fromkeys(found))


def write(frame, folder, keys, notes=()):
    """Write grid.csv, grid.json, grid.md and a figure a varied key into `folder`; return the table on test as text.

    frame: as `collect` returns it; keys: the varied parameters; notes: sentences that must stand beside the numbers.
    """
    with atomic(folder / "grid.csv") as temporary:
        frame.to_csv(temporary, index=False)
    write_json(folder / "grid.json", {"keys": list(keys), "notes": list(notes)})  # what the CSV does not say
    splits = list(dict.fromkeys(frame["split"]))
    tables = {split: table(frame[frame["split"] == split], keys) for split in splits}
    title = f"{folder.name}{''.join(f' ({note})' for note in notes)}"
    legend = " ".join([LEGEND, PAPER_LEGEND] if set(PAPER) & set(frame) else [LEGEND])
    sections = [f"## {split}\n\n{_markdown(found)}" for split, found in tables.items()]
    write_text(folder / "grid.md", "\n\n".join([f"# {title}", legend, *sections]) + "\n")
    plots.use_style()
    drawn = []
    for key, figure in figures(frame, keys, folder.name, notes):
        drawn.append(folder / "figures" / f"mAP_over_{key.replace('.', '_')}.png")
        plots.save(figure, drawn[-1])
    text = tables[splits[0]].to_string(index=False)
    files = "\n".join(str(path) for path in (folder / "grid.csv", folder / "grid.md", *drawn))
    return f"{title}: {splits[0]}. {legend}\n{text}\n\n{files}"


LEGEND = "Percent, mean over seeds; s.d.: standard deviation over seeds, unknown (-) for one."
PAPER_LEGEND = "paper: published for this data set, model, pixels and row, whatever else the grid varies."


def table(frame, keys):
    """Return one line of text a combination of varied values and row: mean mAP, s.d. over seeds, CF1, OF1, seconds, seeds.

    The published figures that `frame` has come last.
    """
    grouped = frame.groupby([*keys, "row"], sort=False, dropna=False)
    mean = grouped[list(SCORES)].mean()
    spread = _text(grouped["mAP"].std(), ".2f")
    found = pd.DataFrame({"mAP": _text(mean["mAP"], ".2f"), "s.d.": spread}, index=mean.index)
    found = found.assign(CF1=_text(mean["CF1"], ".2f"), OF1=_text(mean["OF1"], ".2f"))
    found = found.assign(seconds=_text(mean["seconds"], ",.0f"), seeds=grouped["seed"].nunique())
    for name in [name for name in PAPER if name in frame and frame[name].notna().any()]:
        found[name] = _text(grouped[name].mean(), ".1f")
    found = found.reset_index()
    return found.assign(row=[TITLES.get(row, row) for row in found["row"]])


def _text(values, form):
    return ["-" if np.isnan(value) else format(value, form) for value in values.astype(float)]


def _markdown(found):
    lines = [list(found.columns), ["---"] * len(found.columns), *found.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


# ---- beside a run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Found:
    """A grid's results as `write` left them."""

    frame: pd.DataFrame  # as `collect` returns it
    keys: list  # the varied parameters
    notes: list  # sentences that must stand beside the numbers


def beside(params):
    """Return {name: Found} of the grids in outputs/ that have results, and whose every job had the `data` of these Params.

    A grid over the data itself belongs to no run, and a grid's own jobs do not show it: it is not finished while they run.
    """
    wanted, found = params.model_dump(mode="json")["data"], {}
    for path in sorted(outputs_root().glob("*/grid.json")):
        name, frame = path.parent.name, pd.read_csv(path.with_suffix(".csv"), dtype={"job": str})
        slugs = [job.removeprefix(f"{name}.") for job in frame["job"].unique()]
        data = [read_yaml(path.parent / "params" / f"{slug}.yaml")["data"] for slug in slugs]
        # What was not yet a parameter when the grid ran is not a difference.
        if all(wanted | one == wanted for one in data) and not params.name.startswith(f"{name}."):
            found[name] = Found(frame, **read_json(path))
    return found


def offered():
    """Return one line of text a grid file in params/grids: its command, what it varies, and its base."""
    lines = []
    for file in sorted((repo_root() / "params" / "grids").glob("*.yaml")):
        grid = load_grid(file.stem)
        varied = "; ".join(f"{key} = {', '.join(map(str, values))}" for key, values in grid.vary.items())
        lines.append(f"cpsd grid {file.stem}: {varied}, from {grid.source}")
    return "\n".join(lines)


def summary(frame, key, others=()):
    """Return the sentences that say which value of `key` is best on test for each row of the table, a line a row and panel.

    frame: as `collect` returns it; others: the other varied parameters.
    """
    shown, lines = frame[(frame["split"] == "test") & frame["row"].isin(TITLES)], []
    for panel in _panels(shown, others):
        its = _panel(shown, others, panel)
        where = f"{_panel_title(others, panel)}, " if panel else ""
        lines += [f"{where}{_best(its[its['row'] == row], key, row)}" for row in TITLES if row in set(its["row"])]
    if shown.groupby(["job", "row"])["seed"].nunique().max() == 1:
        lines.append("One seed: no spread is known, so no value is called better.")
    return "\n".join(lines)


def _best(frame, key, row):
    scores = frame.groupby(key, sort=False)["mAP"]
    mean, spread = scores.mean(), scores.std()
    best, worst, seeds = mean.idxmax(), mean.idxmin(), frame["seed"].nunique()
    if mean.max() - mean.min() < 0.05:
        finding = f"{mean.max():.1f} mAP at every {key}"
    else:
        finding = f"best at {key} {best} ({mean.max():.1f} mAP), worst at {worst} ({mean.min():.1f})"
    return f"{TITLES[row]}: {finding}{f'; s.d. over {seeds} seeds up to {spread.max():.1f}' if seeds > 1 else ''}."


# ---- figures -------------------------------------------------------------------------------------------------------


def figures(frame, keys, name, notes=()):
    """Yield (key, figure of mAP on test over it, a panel a combination of the others), where a key has values to compare.

    frame, keys, notes: as `write` takes them.
    """
    shown = frame[(frame["split"] == "test") & frame["row"].isin(TITLES)]
    for key in keys:
        others = [other for other in keys if other != key]
        panels = _panels(shown, others)
        if shown[key].nunique() > 1 and len(panels) <= MOST_PANELS:
            yield key, over(shown, key, others, panels, name, notes)


def _panels(frame, others):
    return list(itertools.product(*(dict.fromkeys(frame[other]) for other in others)))


def _panel(frame, others, panel):
    for other, value in zip(others, panel, strict=True):
        frame = frame[frame[other] == value]
    return frame


def _panel_title(others, panel):
    return ", ".join(f"{other} {value}" for other, value in zip(others, panel, strict=True))


def over(frame, key, others, panels, name, notes=()):
    """Return the figure of mAP over `key`, one line a row of the table where the key is a number, dots where it is not.

    frame: `collect`'s lines of one split and known rows. panels: the values of `others`, one combination a panel. Error
    bars are one standard deviation over seeds, each way; one seed has none.
    """
    columns = min(4, len(panels))
    shape = -(-len(panels) // columns), columns
    size = 7.5 if len(panels) == 1 else 4.2 * columns
    figure, axes = plt.subplots(*shape, figsize=(size, 4.2 * shape[0]), sharex=True, sharey=True, squeeze=False)
    rows = [row for row in TITLES if row in set(frame["row"])]
    values = list(dict.fromkeys(frame[key]))
    for axis, panel in itertools.zip_longest(axes.flat, panels):
        if panel is None:
            axis.axis("off")
            continue
        _lines(axis, _panel(frame, others, panel), key, rows, values)
        axis.set_title(_panel_title(others, panel), fontsize=10)
    for axis in axes.flat[max(0, len(panels) - columns) : len(panels)]:
        axis.tick_params(labelbottom=True)  # nothing stands below it
    figure.supxlabel(LABELS.get(key, key), fontsize=11)
    figure.supylabel("mAP on test (%)", fontsize=11)
    handles, titles = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside right upper", fontsize=9)
    seeds = frame.groupby(["job", "row"])["seed"].nunique().max()
    bars = f"mean of {seeds} seeds, bars: one s.d. each way" if seeds > 1 else "one seed: no spread is known"
    noted = "".join(f"\n{note}" for note in notes)
    figure.suptitle(f"{name}: mAP over {key}\n{bars}{noted}", fontsize=11, x=0.01, ha="left")
    return figure


LABELS = {
    "partition.k": "k, parts the classes are cut into (partition.k)",
    "partition.exponent": "exponent of the affinity (partition.exponent)",
    "student.alpha": "weight of the co branch in + CPSD (student.alpha)",
    "student.match": "distance to the teachers (student.match)",
}


def _lines(axis, frame, key, rows, values):
    numeric = all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values)
    for number, row in enumerate(rows):
        scores = frame[frame["row"] == row].groupby(key, sort=False)["mAP"]
        mean, spread = scores.mean(), scores.std()
        mean = mean.sort_index() if numeric else mean.reindex(values)
        dodge = 0 if numeric else 0.6 * ((number + 0.5) / len(rows) - 0.5)
        places = mean.index.to_numpy(float) if numeric else np.arange(len(values)) + dodge
        bars = spread.reindex(mean.index).to_numpy()
        axis.errorbar(
            places,
            mean.to_numpy(),
            yerr=None if np.isnan(bars).all() else bars,
            label=TITLES[row],
            color=plots.ROW_COLOURS.get(TITLES[row], plots.GREY),
            marker=plots.MARKERS[number % len(plots.MARKERS)],
            linestyle="-" if numeric else "none",
            markersize=6,
            capsize=3,
        )
    if not numeric:
        axis.set_xticks(range(len(values)), [str(value) for value in values])
        axis.set_xlim(-0.5, len(values) - 0.5)
        return
    if min(values) > 0 and max(values) / min(values) >= 50:
        axis.set_xscale("log")
    axis.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
    axis.minorticks_off()
