"""What a grid found: one CSV, a table with mean and standard deviation over seeds, and mAP over each varied parameter."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from cpsd_lib.support import atomic, read_json, write_json, write_text
from cpsd_lib.viz import plots
from cpsd_lib.workbench.published import published
from cpsd_lib.workbench.rows import TITLES
from cpsd_lib.workbench.run import Run
from cpsd_lib.workbench.scoring import as_text, load_records
from cpsd_lib.workbench.yaml_files import outputs_root, read_yaml

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
        values = {"job": job.name} | {key: _cell(value) for key, value in job.varied.items()}
        records = load_records(run)
        lines = pd.DataFrame(values, records.index).join(records[["row", "split", "seed", *SCORES]])
        lines["commit"] = read_json(run.folder / "manifest.json")["stages"]["05_evaluation"]["commit"]
        paper = published(job.params).reindex(lines["row"], columns=SCORES[:3]).to_numpy()
        lines[list(PAPER)] = np.where(lines[["split"]] == "test", paper, np.nan)
        found.append(lines)
    frame = pd.concat(found, ignore_index=True) if found else None
    return None if frame is None else frame.drop(columns=[name for name in PAPER if frame[name].isna().all()])


def _cell(value):
    value = list(value.values()) if isinstance(value, dict) else value
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else value


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
PAPER_LEGEND = "paper: published for this data set, model, pixels, k, alpha and row, whatever else the grid varies."


def table(frame, keys):
    """Return one line of text a combination of varied values and row: mean mAP, s.d. over seeds, CF1, OF1, seconds, seeds.

    The published figures that `frame` has come last.
    """
    grouped = frame.groupby([*keys, "row"], sort=False, dropna=False)
    found = grouped[[*SCORES, *(name for name in PAPER if name in frame and frame[name].notna().any())]].mean()
    found.insert(1, "s.d.", grouped["mAP"].std())
    forms = dict.fromkeys(found, ".2f") | {"seconds": ",.0f"} | {name: ".1f" for name in PAPER if name in found}
    found = as_text(found.astype(float), forms)
    found.insert(list(found).index("seconds") + 1, "seeds", grouped["seed"].nunique())
    return found.reset_index().replace({"row": TITLES})


def _markdown(found):
    lines = [list(found.columns), ["---"] * len(found.columns), *found.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


# ---- beside a run -------------------------------------------------------------------------------------------------


def beside(params):
    """Return {name: (frame, keys, notes)} of the finished grids in outputs/ whose every job had the `data` of these Params.

    All three as `write` took them. A grid over the data itself belongs to no run, and a grid's own jobs do not show it: it
    is not finished while they run.
    """
    wanted, found = params.model_dump(mode="json")["data"], {}
    for path in sorted(outputs_root().glob("*/grid.json")):
        name, frame = path.parent.name, pd.read_csv(path.with_suffix(".csv"), dtype={"job": str})
        slugs = [job.removeprefix(f"{name}.") for job in frame["job"].unique()]
        of_this_data = all(read_yaml(path.parent / "params" / f"{slug}.yaml")["data"] == wanted for slug in slugs)
        if of_this_data and not params.name.startswith(f"{name}."):
            left = read_json(path)
            found[name] = frame, left["keys"], left["notes"]
    return found


def summary(frame, key, others=()):
    """Return the sentences that say which value of `key` is best on test for each row of the table, a line a row and panel.

    frame: as `collect` returns it; others: the other varied parameters.
    """
    shown, lines = _shown(frame, others), []
    for title, panel in shown.groupby("panel", sort=False):
        where = f"{title}, " if title else ""
        lines += [f"{where}{_best(panel[panel['row'] == row], key, row)}" for row in TITLES if row in set(panel["row"])]
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
    for key in keys:
        shown = _shown(frame, [other for other in keys if other != key])
        if shown[key].nunique() > 1 and shown["panel"].nunique() <= MOST_PANELS:
            yield key, _over(key, shown, name, notes)


def _shown(frame, others):
    """Return the lines on test of the table's rows, with a `panel`: the values of `others` in words."""
    shown = frame[(frame["split"] == "test") & frame["row"].isin(TITLES)]
    panel = pd.Series("", shown.index)
    for other in others:
        panel += f", {other} " + shown[other].map(str)
    return shown.assign(panel=panel.str.removeprefix(", "))


def _over(key, frame, name, notes):
    """Return the figure of mAP over `key`, one line a row of the table where the key is a number, dots where it is not.

    frame: as `_shown` returns it. Error bars are one standard deviation over seeds, each way; one seed has none.
    """
    frame = frame.assign(row=frame["row"].map(TITLES))
    rows, values = [title for title in TITLES.values() if title in set(frame["row"])], frame[key].unique()
    fewest, seeds = frame.groupby(["job", "row"])["seed"].nunique().agg(["min", "max"])
    number = pd.api.types.is_numeric_dtype(frame[key]) and not pd.api.types.is_bool_dtype(frame[key])
    if number:
        wide = min(values) > 0 and max(values) / min(values) >= 50
        look = {"native_scale": True, "log_scale": (10 if wide else False, False)}
    else:
        frame = frame.assign(**{key: frame[key].map(str)})
        look = {"linestyle": "none", "dodge": 0.5}
    look |= {"hue_order": rows, "palette": {row: plots.ROW_COLOURS.get(row, plots.GREY) for row in rows}}
    look |= {"markers": list(plots.MARKERS * 3)[: len(rows)], "errorbar": "sd" if seeds > 1 else None, "capsize": 0.05}
    look |= {"col_wrap": min(4, frame["panel"].nunique()), "height": 4.2, "kind": "point"}
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn lays out its grids by itself
        grid = sns.catplot(frame, x=key, y="mAP", hue="row", col="panel", **look)
    if number:
        grid.set(xticks=sorted(values), xticklabels=[f"{value:g}" for value in sorted(values)])
        grid.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    grid.set_titles("{col_name}", size=10).set_axis_labels(LABELS.get(key, key), "mAP on test (%)", size=10)
    grid.legend.set_title("")
    counted = seeds if fewest == seeds else f"{fewest} to {seeds}"
    bars = f"mean of {counted} seeds, bars: one s.d. each way" if seeds > 1 else "one seed: no spread is known"
    title = "\n".join([f"{name}: mAP over {key}", bars, *notes])
    grid.figure.suptitle(title, fontsize=11, x=0.01, y=1.0, ha="left", va="bottom")
    return grid.figure


LABELS = {
    "data.labelled": "training images that keep their labels (data.labelled)",
    "partition.k": "k, parts the classes are cut into (partition.k)",
    "partition.exponent": "exponent of the affinity (partition.exponent)",
    "student.alpha": "weight of the co branch in + CPSD (student.alpha)",
    "student.match": "distance to the teachers (student.match)",
}
