"""Models as the parameters describe them: ModelParams -> Classifier."""

import torch

from cpsd_lib.models import build_model, read_label_vectors


def build(settings, class_names):
    """Build the model of ModelParams `settings` over some classes, its files of weights and label vectors read."""
    return build_model(
        settings.name,
        len(class_names),
        weights=settings.weights,
        head=settings.head,
        normalize=settings.normalize,
        prior=settings.prior,
        label_vectors=read_label_vectors(settings.label_vectors, class_names),
        head_width=settings.head_width,
        **settings.options,
    )


def build_shape(settings, num_classes):
    """Build a model of the shape of ModelParams `settings`, random weights, no file read: it may not be on this machine."""
    vectors = settings.label_vectors
    if vectors not in (None, "learned"):
        vectors = torch.zeros(num_classes, 300, device="cpu")  # a stand-in of GloVe's width
    return build_model(
        settings.name,
        num_classes,
        head=settings.head,
        label_vectors=vectors,
        head_width=settings.head_width,
        **settings.options,
    )
