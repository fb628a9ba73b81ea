"""Models: a timm backbone and one of four heads, the paper's checkpoints, shared trunks, folded norms, FLOP and memory.

`build_model(name, num_classes, ...)` returns a Classifier, whose input is [0, 1] and whose output is an Output.
"""

from cpsd_lib.support import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "classifier": "MODELS_VERSION Classifier build_model feature_map preprocessing read_state"
        " state_faults trial_images",
        "heads": "LabelTransformer LinearHead MLDecoder Query2Label",
        "label_vectors": "read_label_vectors",
        "released": "check_class_names check_preprocessing load_released",
        "trunk": "check_split make_tail make_trunk start_from",
        "folding": "fold_models",
        "export": "timm_state write_onnx",
        "meta": "MetaModel activation_bytes",
    },
)
