"""Models as the parameters describe them: ModelParams -> Classifier."""

import torch

from cpsd_lib.models import build_model, read_label_vectors


def build(settings, class_names):
    """Build the model of ModelParams `settings` over some classes, its files of weights and label vectors read."""
    vectors = read_label_vectors(settings.label_vectors, class_names)
    return build_shape(settings, len(class_names), vectors, settings.weights)


def build_shape(settings, num_classes, vectors=None, weights=None):
    """Build a model of the shape of ModelParams `settings`, random weights, no file read: it may not be on this machine.

    vectors [C, V]: stand in for label vectors of a file; None: zeros of GloVe's width.
    """
    if settings.label_vectors in (None, "learned"):
        vectors = settings.label_vectors
    elif vectors is None:
        vectors = torch.zeros(num_classes, 300, device="cpu")
    return build_model(
        settings.name,
        num_classes,
        weights=weights,
        head=settings.head,
        normalize=settings.normalize,
        prior=settings.prior,
        label_vectors=vectors,
        head_width=settings.head_width,
        **settings.options,
    )
