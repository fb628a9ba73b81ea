"""The workbench around the method: parameter files, runs in outputs/, the notebooks as stages, grids, cost and reports.

The only place that knows files and YAML; the notebooks and the command line use it through this door.
"""

from cpsd_lib.support import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "yaml_files": "ParameterError Stopped check_outputs outputs_root parse_overrides repo_root",
        "loading": "check_count check_cut load_params on_disk",
        "rows": "BRANCHES ROWS TITLES baseline_of branches_of",
        "run": "MissingStage cut_labels describe_data label_graph load_partitions open_run overrides_of "
        "released_partitions show_params",
        "recipes": "soft_recipe student_task teacher_tasks work_in_baselines",
        "making": "StoredTargets history load_student load_teachers student_batches train_student train_teachers",
        "store": "Store clean inventory",
        "scoring": "SPLITS against_paper caveat component_figure component_table decision_rules evaluate "
        "gain_intervals load_per_class load_records probabilities_of scores_of",
        "published": "no_figure",
        "report": "deviation gain_summary maps_summary scores_text write_report",
        "preflight": "images_of",
        "cost": "card estimate measured_speed own_part spoken_time work_of",
        "overview": "listing parameters plan",
        "pipeline": "one_runner run_stages stages_of",
        "grids.params": "jobs_of load_grid",
        "grids.runner": "run_grid",
        "handover": "export finished_model model_card",
        "open": "explore load_model opened opened_run",
        "predicting": "label_photos",
    },
)
