"""The only place that scores models on the test splits: every student and the merged teachers; and what the scores show.

The component table; is a gain real, are the probabilities calibrated, how much do F1 scores depend on the decision rule?
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from cpsd_lib.data import NOT_COMPARABLE
from cpsd_lib.evaluation import (
    average_precision,
    best_thresholds,
    mean_average_precision,
    paired_bootstrap,
    precision_recall_f1,
)
from cpsd_lib.models import check_class_names, check_preprocessing, load_released, read_label_vectors
from cpsd_lib.support import atomic, bar, counted, digest, pick_precision, sha256, write_json
from cpsd_lib.training import predict_logits
from cpsd_lib.viz import plots
from cpsd_lib.workbench.loading import Scored, read_form
from cpsd_lib.workbench.making import load_student, load_teachers
from cpsd_lib.workbench.published import published
from cpsd_lib.workbench.rows import FROM_MODEL, TITLES, baseline_of, branches_trained
from cpsd_lib.workbench.run import MissingStage, describe_data, held_out_indices, left_by

SPLITS = ("test", "test_shifted")
SCORES_VERSION = 1  # raise it when the same logits get other scores


def evaluate(run):
    """Score every row and every branch's merged teachers of every seed on the test splits and write evaluation/.

    With evaluation.released, that checkpoint alone is scored; it must have these classes and take these inputs (ValueError).
    Writes scores/*.npy (logits [n, C] float32; the targets beside them, so that a reader needs no data set), metrics.json,
    per_class.csv; returns metrics.json's list of records. What was scored of these very models already is not scored again.
    """
    folder, table, made_of = run.folder / "evaluation", run.dataset.table, _made_of(run)
    released, records, per_class = run.params.evaluation.released is not None, [], []
    if released:
        describe_data(run)  # its one stage is 05_evaluation
    if (folder / "metrics.json").exists() and (folder / "per_class.csv").exists():
        there = read_form(folder / "metrics.json", list[Scored])
        files = [score_path(run, one["seed"], row, one["split"]) for one in there for row in (one["row"], "targets")]
        if all(path.exists() for path in files) and all(one.get("made_of") == made_of for one in there):
            return there
    for path in (folder / "metrics.json", *folder.glob("scores/*.npy")):
        path.unlink(missing_ok=True)  # of other models
    for seed in run.params.seed_list()[: 1 if released else None]:
        models, held_out = list(_models(run, seed)), None if released else held_out_indices(run, seed)
        indices_of = {split: table.indices(split) for split in SPLITS}
        # To tune thresholds on, never scored.
        indices_of |= {} if held_out is None else {"held_out": held_out}
        for split, indices in indices_of.items():
            if not len(indices):
                continue
            targets = table.targets[indices]
            _save(score_path(run, seed, "targets", split), targets)
            for (name, _, seconds), logits in zip(models, _logits(run, models, indices), strict=True):
                _save(score_path(run, seed, name, split), logits)
                if split in SPLITS:
                    record, ap = score(logits, targets, run.params.evaluation.threshold)
                    about = {"row": name, "seed": seed, "split": split}
                    of_model = {"seconds": seconds, "protocol": run.params.protocol, "made_of": made_of}
                    of_model["model"] = None if released else digest(run.keys(seed, name))
                    records.append(about | record | of_model)
                    per_class.append(pd.DataFrame(about | {"class": table.names, "ap": 100 * ap}))
    # A split without a positive has no mAP: null, which JSON has, and NaN it has not.
    records = [{name: None if value != value else value for name, value in record.items()} for record in records]
    write_json(folder / "metrics.json", records)
    with atomic(folder / "per_class.csv") as temporary:
        pd.concat(per_class).to_csv(temporary, index=False)
    return records


def _made_of(run):
    """Return a hash of all that determines what evaluate writes: data, models, splits and threshold."""
    settings = run.params.model_dump(mode="json", include={"evaluation", "model", "protocol", "seed", "seeds"})
    models, sums = run.noted(["teachers", "students"]), sums_of(run.params.evaluation.checkpoint)
    return digest([SCORES_VERSION, run.dataset.key, settings, sums, run.params.student.rows, models])


def sums_of(path):
    """Return the checksums of a file that parameters name, and of the JSON beside it; of a word that is no file the word."""
    if path in (None, "imagenet", "learned"):
        return path
    beside = Path(path).with_suffix(".json")  # may say a checkpoint's classes and inputs
    return [sha256(file) for file in dict.fromkeys((Path(path), beside)) if file.is_file()]


def score_path(run, seed, row, split):
    """Return where the logits [n, C] of a row on a split are kept; "held_out": the images that no weight was fitted to."""
    return run.folder / "evaluation" / "scores" / f"seed{seed}-{row}-{split}.npy"


def _save(path, logits):
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, logits)


def load_checkpoint(params, names):
    """Return the released checkpoint that `params` name; ValueError unless it has these classes and takes these inputs."""
    settings, model = params.evaluation, params.model
    vectors = read_label_vectors(model.label_vectors, names)
    loaded = load_released(settings.released, settings.checkpoint, len(names), vectors)
    check_class_names(loaded.class_names, names)
    check_preprocessing(loaded, model.normalize, params.data.size)
    return loaded


def _models(run, seed):
    """Yield (row name, model, seconds of training this row needs from scratch) of one seed."""
    if run.params.evaluation.released:
        yield "released", load_checkpoint(run.params, run.dataset.table.names), None
        return
    teachers, starts = load_teachers(run, seed), (run.params.teachers.start, run.params.student.start)

    def about(name):
        records = [run.store.record("model", key) for key in run.keys(seed, name)]
        if any(record["recipe"]["data"] != run.dataset.key for record in records):
            raise MissingStage(f"{name} is of other data than there is now; run 03_teachers and 04_student first")
        return [record["about"] for record in records]

    seconds_of = {branch: sum(one["seconds"] for one in about(f"teachers_{branch}")) for branch in teachers}
    for row in run.params.student.rows:
        student, seconds = load_student(run, seed, row), sum(seconds_of[b] for b in branches_trained([row], *starts))
        if row != "baseline":  # which is a teacher itself
            (record,) = about(row)
            seconds += record["soft_target_seconds"] + record["seconds"]
        yield row, student, seconds
    for branch, merged in teachers.items():
        if branch != "whole" or run.params.teacher_model:  # else it is the baseline, scored above
            later = starts[0] == "baseline" and branch not in FROM_MODEL
            yield f"teachers_{branch}", merged, seconds_of[branch] + (seconds_of["whole"] if later else 0.0)


def _logits(run, models, indices):
    """Return the logits [n, C] of each of `models`, as _models yields them, on the same images."""
    precision, size = pick_precision(run.params.student.precision, run.device), run.params.evaluation.batch_size
    models = [model.to(run.device).eval() for _, model, _ in models]
    with bar(len(indices), f"scoring {counted(len(models), 'model')}", "img") as shown:
        return predict_logits(models, run.dataset.need_images(), indices, run.device, size, precision, shown)


def score(logits, targets, threshold):
    """Return (record of mAP and CP CR CF1 OP OR OF1 in percent, AP [C]) for logits [n, C] and targets [n, C]."""
    ap, scores = average_precision(logits, targets), expit(logits.astype(np.float64))
    record = {"mAP": 100 * mean_average_precision(logits, targets), "images": len(targets), "threshold": threshold}
    record |= {"classes": len(ap), "classes_without_positives": int(np.isnan(ap).sum())}
    top3 = precision_recall_f1(scores, targets, threshold=0.0, top_k=min(3, len(ap))).items()
    record |= {name: 100 * value for name, value in precision_recall_f1(scores, targets, threshold).items()}
    return record | {f"{name}_top3": 100 * value for name, value in top3}, ap


def caveats_of_data(run):
    """Return those of `caveats` that the run's parameters and data.json tell, without a look at its models."""
    chosen = "protocol: paper, epochs chosen on TEST" if run.params.protocol == "paper" else ""
    other = [note for note in run.described["notes"] if NOT_COMPARABLE in note]
    return [note for note in (chosen, run.described["incomplete"], *other) if note]


def caveats(run):
    """Return what every figure of this run must carry beside it, in sentences: none when all is as it should be."""
    made = [run.store.record("model", key) for keys in run.noted(["teachers", "students"]).values() for key in keys]
    where = {(one["hardware"]["gpu"] or one["hardware"]["cpu"], one["versions"]["torch"]) for one in made if one}
    return caveats_of_data(run) + ([f"models made on {len(where)} kinds of machine or torch"] if len(where) > 1 else [])


def caveat(run):
    """Return `caveats` as they stand behind a title, in parentheses; "" where there are none."""
    return f" ({'; '.join(notes)})" if (notes := caveats(run)) else ""


def load_records(run, of=None):
    """Return metrics.json as a DataFrame; MissingStage when its models (of: those of (seed, row)) are not of these parameters."""
    records = read_form(path := left_by("05_evaluation", run.folder / "evaluation" / "metrics.json"), list[Scored])
    for one in (one for one in records if of in (None, (one["seed"], one["row"]))):
        model, threshold = one.get("model"), one.get("threshold", now := run.params.evaluation.threshold)
        if threshold != now or (model and model != digest(run.keys(one["seed"], one["row"]))):
            raise MissingStage(f"{path} is of other models or another threshold; run 05_evaluation first")
    return pd.DataFrame(records)


def load_per_class(run):
    """Return per_class.csv as a DataFrame by class, row, seed and split, names of classes as text ("01", "NA", "True").

    MissingStage when 05_evaluation has not run; ValueError when it scored other classes than the run's data set has.
    """
    path, names = left_by("05_evaluation", run.folder / "evaluation" / "per_class.csv"), run.described["class_names"]
    lines = pd.read_csv(path, dtype={"class": str}, keep_default_na=False, na_values={"ap": [""]})
    if list(dict.fromkeys(lines["class"])) != names:
        raise ValueError(f"{path} holds other classes than the {len(names)} of the data set; run 05_evaluation again")
    return lines


# ---- what the scores show -----------------------------------------------------------------------------------------------


def scores_of(run, seed, row, split):
    """Return the logits [n, C] that 05_evaluation saved of a row on a split; MissingStage as of `load_records`."""
    load_records(run, (seed, row))
    return np.load(left_by("05_evaluation", score_path(run, seed, row, split)))


def probabilities_of(run, seed, row, split):
    """Return the probabilities [n, C] float64 of what `scores_of` returns."""
    return expit(scores_of(run, seed, row, split).astype(float))


def scored_by(run, seed, row, split):
    """Return (logits, targets), both [n, C], of what `scores_of` returns; None where there are none. No data set is opened."""
    with suppress(MissingStage):
        return scores_of(run, seed, row, split), scores_of(run, seed, "targets", split)


def component_figure(records, title):
    """Return plots.components of a DataFrame of evaluate's records, with the row that gains are measured against."""
    rows = [row for row in TITLES if row in set(records["row"])]
    maps = records.groupby(["split", "row"])["mAP"].apply(list)
    scores = {split: {TITLES[row]: maps[split, row] for row in rows} for split in SPLITS if split in maps}
    return plots.components(scores, title, TITLES.get(baseline_of(rows)))


def component_table(records, split="test"):
    """Return one line a row: mean mAP, its standard deviation over seeds, the paired gain, seconds.

    records: DataFrame of evaluate's records. The gain is over the baseline, or the row alone where that is not there; it
    is taken seed by seed: both models of a pair had the same views in the same order. One seed has no spread (NaN).
    """
    values = records[records["split"] == split].pivot(index="seed", columns="row")
    rows = [row for row in TITLES if row in values["mAP"]]
    maps, against = values["mAP"][rows], baseline_of(rows)
    gains = maps.sub(maps[against], axis=0) if against else maps * np.nan
    table = pd.DataFrame({"mAP": maps.mean(), "spread": maps.std(), "gain": gains.mean(), "gain spread": gains.std()})
    means = {name: values[name][rows].astype(float).mean() for name in ("CF1", "OF1", "seconds")}
    return table.assign(**means, seeds=len(maps)).rename(TITLES).rename_axis("row")


def against_paper(records, params):
    """Return ours, the paper's and the difference, in percent, one line a row and figure; None where it has no figure.

    records: DataFrame of evaluate's records; ours is the mean over seeds on test.
    """
    paper = published(params).T.unstack().dropna().rename("paper").rename_axis(["row", "figure"])
    ours = records[records["split"] == "test"].groupby("row").mean(numeric_only=True).T.unstack().rename("ours")
    table = paper.to_frame().join(ours.rename_axis(["row", "figure"]), how="inner")[["ours", "paper"]]
    return None if table.empty else table.rename(TITLES, level="row").eval("difference = ours - paper")


def table_text(table):
    """Return the component table as aligned text for a terminal."""
    forms = dict.fromkeys(("mAP", "spread", "gain spread", "CF1", "OF1"), ".1f") | {"gain": "+z.1f", "seconds": ",.0f"}
    return as_text(table, forms).rename_axis(None).to_string()  # z: no -0.0


def as_text(table, forms):
    """Return a DataFrame with its columns in `forms` {name: format} as text, "-" for what is not known."""
    texts = {
        name: ["-" if pd.isna(value) else format(value, form) for value in table[name]] for name, form in forms.items()
    }
    return table.assign(**texts)


def gain_intervals(run, row, against, split="test", resamples=1000):
    """Return mAP of `row` minus mAP of `against` with its bootstrap interval over images, a line a seed, in percent.

    It measures the luck of the test images; the spread between the lines measures the luck of training. A gain needs both.
    The draw of images is that of the run's seed, the same for every line.
    """
    lines = {}
    for seed in run.params.seed_list():
        first, second, targets = (scores_of(run, seed, name, split) for name in (row, against, "targets"))
        paired = paired_bootstrap(first, second, targets, resamples, run.params.seed)
        percent = {"gain": 100 * paired.difference, "low": 100 * paired.low, "high": 100 * paired.high}
        lines[seed] = percent | {"p": paired.p_value}
    return pd.DataFrame(lines).T.rename_axis("seed")


def decision_rules(run, rows, split="test"):
    """Return CF1 and OF1 of rows under each decision rule, mean over seeds, in percent.

    Rules: one threshold for all classes, 0.5 and 0.8 (what the paper's table presumably used); the three highest scores of
    an image; a threshold a class, tuned on held-out training images (only where the run holds some out).
    """
    lines = []
    for row in rows:
        for seed in run.params.seed_list():
            scores, targets = probabilities_of(run, seed, row, split), scores_of(run, seed, "targets", split)
            rules = {"0.5": (0.5, None), "0.8": (0.8, None), "top 3": (0.0, min(3, targets.shape[1]))}
            if held_out_indices(run, seed) is not None:
                tuning, known = (
                    probabilities_of(run, seed, row, "held_out"),
                    scores_of(run, seed, "targets", "held_out"),
                )
                rules["tuned per class"] = (best_thresholds(tuning, known), None)
            for rule, (threshold, top_k) in rules.items():
                f1 = precision_recall_f1(scores, targets, threshold, top_k)
                lines.append({"row": TITLES[row], "rule": rule} | {name: 100 * f1[name] for name in ("CF1", "OF1")})
    return pd.DataFrame(lines).groupby(["row", "rule"], sort=False).mean()
