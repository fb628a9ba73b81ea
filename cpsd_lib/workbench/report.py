"""report.html: one self-contained page a run, readable without network."""

import base64
from html import escape

import pandas as pd
from scipy.stats import t

from cpsd_lib.support import counted, read_json, write_text
from cpsd_lib.workbench.published import no_figure
from cpsd_lib.workbench.rows import CONTROLS, TITLES, baseline_of
from cpsd_lib.workbench.run import show_params
from cpsd_lib.workbench.scoring import SPLITS, against_paper, caveat, component_table, load_records, table_text

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}: CPSD report</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ padding: .3rem .8rem; border-bottom: 1px solid #ccc; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }} img {{ max-width: 100%; height: auto; margin: .5rem 0; }}
pre {{ background: #f5f5f5; padding: 1rem; overflow-x: auto; }}
.caveat {{ background: #ffe9d6; padding: .6rem 1rem; border-left: 6px solid #D55E00; }}
</style></head><body>
<h1>{name}</h1>
{caveat}
<p>{made}</p>
<p>{deviation}</p>
{tables}
{paper}
<h2>Time per stage</h2>{times}
<h2>Figures</h2>{figures}
<h2>Notes on the data</h2>{notes}
<h2>Parameters</h2><pre>{params}</pre>
</body></html>
"""
_CAVEAT = """<p class="caveat">The figures below are not what they seem:<b>{}</b>. Where epochs were chosen on the test split, as
the release did, they are higher than the models would reach on data nobody has looked at.</p>"""
_SHOWN = 50  # files left out that are listed; all of them are in data.json


def scores_text(run):
    """Return the component tables of a run, what they show, and ours beside the paper's, as text for a terminal."""
    records, lines = load_records(run), []
    for split in [split for split in SPLITS if split in set(records["split"])]:
        table = component_table(records, split)
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
    """Write the run's report.html from its manifest, scores and figures, and return its path."""
    records, manifest = load_records(run), read_json(run.folder / "manifest.json")
    path = run.folder / "report.html"
    write_text(path, _page(run, records, manifest["stages"]))
    return path


def _page(run, records, stages):
    last = stages[max(stages)]
    hardware = last["hardware"]
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    seconds = pd.DataFrame({"seconds": {name: entry["seconds"] for name, entry in stages.items()}})
    return _PAGE.format(
        name=escape(run.params.name),
        caveat=_CAVEAT.format(escape(caveat(run))) if caveat(run) else "",
        made=escape(
            f"{counted(run.params.seeds, 'seed')} from {run.params.seed}; {hardware['gpu'] or hardware['cpu']}, "
            f"{hardware['cores']} cores, {hardware['torch_threads']} torch threads; commit {last['commit']}; "
            f"{versions}; finished {last['finished']}"
        ),
        deviation=escape(deviation(run.params)),
        tables="".join(_table(records, split) for split in ("test", "test_shifted") if split in set(records["split"])),
        paper=_paper(against_paper(records, run.params), no_figure(run.params)),
        times=seconds.to_html(border=0, float_format=lambda value: f"{value:,.0f}"),
        figures="".join(_figure(path) for path in sorted((run.folder / "figures").glob("*.png"))),
        notes=_notes(run),
        params=escape(show_params(run)),
    )


def _table(records, split):
    table = component_table(records, split)
    shown = table.rename_axis(None).to_html(border=0, na_rep="-", float_format=lambda value: f"{value:z.1f}")
    return f"<h2>Component table, {split}</h2>{shown}<p>{escape(gain_summary(table, split))}</p>"


def _paper(compared, why_not):
    if compared is None:
        return f"<p>Not compared: {escape(why_not)}.</p>" if why_not else ""
    shown = compared.to_html(border=0, float_format=lambda value: f"{value:z.1f}")
    return f"<h2>Ours beside the paper's, on test</h2>{shown}"


def gain_summary(table, split):
    """Return the sentence that says what a component table shows, gain against spread (95 % interval of Student's t)."""
    if list(table.index) == [TITLES["released"]]:
        return ""  # nobody's gain: one model, trained elsewhere
    against = baseline_of([row for row, title in TITLES.items() if title in table.index])
    told = [TITLES[row] for row in ("cpsd", "mld_led", "cpsd_mld", "cpsd_mld_led") if TITLES[row] in table.index]
    if not told or against is None:
        return "The rows + CPSD and baseline were not both run: there is no gain to state."
    return " ".join([*(_gain_of(row, table, split, TITLES[against]) for row in told), *_against_controls(table, split)])


def deviation(params):
    """Return the sentence that says how Params `params` leave the papers' method, in which nothing starts from the baseline."""
    teachers, student, found = params.teachers, params.student, []
    if teachers.start == "baseline":
        shared = f", share its first {counted(teachers.frozen_stages, 'stage')}" if teachers.frozen_stages > 0 else ""
        if teachers.frozen_stages < 0:
            shared = f", share its stages but the last{'' if teachers.frozen_stages == -1 else f' {-teachers.frozen_stages}'}"
        epochs = teachers.more_epochs or teachers.trained_epochs
        found.append(
            f"the teachers of parts start from the trained baseline{shared} and train {counted(epochs, 'epoch')}"
        )
    if student.start == "baseline":
        found.append(f"the students start from the baseline and train {counted(student.trained_epochs, 'epoch')}")
    if not found:
        return ""
    return (
        f"Not the paper's method: {'; '.join(found)}. The baseline trains {counted(teachers.trained_epochs, 'epoch')}."
    )


def _against_controls(table, split):
    """Return the sentence that sets + CPSD beside the rows that leave its cut out, in a list; [] where none was run."""
    found = [TITLES[row] for row in CONTROLS if TITLES[row] in table.index]
    if not found or TITLES["cpsd"] not in table.index:
        return []
    gains = [f"{table.loc[TITLES['cpsd'], 'mAP'] - table.loc[row, 'mAP']:+z.1f} against {row}" for row in found]
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


def _figure(path):
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>'


def _notes(run):
    path = run.folder / "data.json"
    found = read_json(path) if path.exists() else {"notes": [], "skipped": []}
    lines = found["notes"] + [f"left out: {name}: {reason}" for name, reason in found["skipped"][:_SHOWN]]
    if len(found["skipped"]) > _SHOWN:
        lines.append(f"... and {len(found['skipped']) - _SHOWN:,} more files left out, all listed in data.json")
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines or ["none"]) + "</ul>"
