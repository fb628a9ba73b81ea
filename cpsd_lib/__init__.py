"""CPSD and L2D for anybody's training script: the public names, each imported when it is first used."""

from cpsd_lib.support import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "graph": "cooccurrence affinity",
        "partition": "Partition cut ncut random_partition",
        "losses": "asymmetric_loss binary_cross_entropy logit_mse class_kl mld led",
        "teachers": "Output PartTeachers",
        "objectives": "Supervised SelfDistillation MultiLabelDistillation",
        "evaluation": "average_precision mean_average_precision precision_recall_f1 bootstrap_interval paired_bootstrap",
        "models": "build_model load_released",
        "training": "Batches Training fit predict",
        "workbench": "explore load_model open_run",
    },
)
