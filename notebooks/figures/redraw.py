"""Draw the figures of RESULTS.md from the stored scores: python notebooks/figures/redraw.py [FOLDER]"""

import sys
from pathlib import Path

import matplotlib
import pandas as pd
from cpsd_lib.viz import plots
from cpsd_lib.workbench.grids import results
from cpsd_lib.workbench.scoring import component_figure

HERE = Path(__file__).parent


def main(folder):
    """Write the figures into `folder`; the same scores give the same bytes."""
    plots.use_style()
    matplotlib.rcParams["svg.hashsalt"] = "cpsd"
    few = pd.read_csv(HERE.parent / "data" / "scenes_few.csv")
    all_scores = pd.read_csv(HERE.parent / "data" / "experiments.csv")
    of = {
        name: scores.drop(columns="experiment") for name, scores in all_scores.groupby("experiment")
    }

    students = ["cpsd_mld", "rand2_mld"]
    labels = pd.concat(
        [of["scenes_300"].assign(labelled=300), few[few["seed"] < 3].assign(labelled=1000)]
    )
    labels = labels[labels["row"].isin(["baseline", "mld", *students])].rename(
        columns={"labelled": "data.labelled"}
    )
    few_photos = pd.concat(
        [
            of[name].assign(**{"data.labelled": share})
            for name, share in (("coco18_few", 0.1), ("coco18_few_20", 0.2))
        ]
    )
    few_photos = few_photos[~few_photos["row"].str.startswith("teachers")]
    whole = of["scenes_300"]
    k = [
        whole[whole["row"] == "mld"].assign(row=row, k=1) for row in students
    ]  # one part of all classes
    k += [
        scores[scores["row"].isin(students)].assign(k=n)
        for n, scores in ((2, of["scenes_300_k2"]), (4, whole), (8, of["scenes_300_k8"]))
    ]
    k += [whole[whole["row"] == "baseline"].assign(k=n) for n in (1, 2, 4, 8)]
    k = pd.concat(k).rename(columns={"k": "partition.k"})

    photos = (
        "462 of 4,620 photos labelled (coco18_few): MobileNetV2 with ImageNet weights, 64 px, k = 3"
    )
    figures = {
        "scenes_few": component_figure(
            few, "1,000 of 3,600 scenes labelled: a ResNet-10 from random weights, k = 4"
        ),
        "coco18_few": component_figure(of["coco18_few"], photos),
        "coco18_few_patient": component_figure(
            of["coco18_few_patient"],
            "462 of 4,620 photos labelled: MobileNetV2 with ImageNet weights, students of 60 epochs",
        ),
        "coco18_all": component_figure(
            of["coco18_all"],
            "4,620 labelled photos: MobileNetV2 with ImageNet weights, 64 px, k = 3",
        ),
        "scenes_all": component_figure(
            of["scenes_all_patient"].query("not row.str.startswith('baseline_')"),
            "3,600 labelled scenes, students of 160 epochs: a ResNet-10 from random weights, k = 4",
        ),
    }
    for name, scores, varied in (
        ("scenes_few_labels", labels, "data.labelled"),
        ("scenes_few_k", k, "partition.k"),
        ("coco18_few_labels", few_photos, "data.labelled"),
    ):
        ((_, figures[name]),) = results.figures(
            scores.assign(job=scores[varied].astype(str)), [varied], name
        )
    for name, figure in figures.items():
        figure.savefig(Path(folder) / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else HERE)
