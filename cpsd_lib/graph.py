"""The label graph of CPSD: which classes occur together.

With e_ij the images that hold classes i and j, n_i those that hold i, and S_ij = e_ij / n_i: P+ = (S^p + (S^p)^T) / 2
elementwise with p = 1/2, and P- = 1 - P+.
"""

import math

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

BLOCK = 2**24  # labels that are multiplied at a time: 64 MiB, however many images there are
SPARSE = 300  # classes from which Lanczos' method beats a whole decomposition


def cooccurrence(targets):
    """Count class pairs and classes over a label table (e_ij and n_i).

    targets: [N, C] of 1 = present, 0 = absent, -1 = unknown. An unknown entry counts as absent: it adds to no count.
    Returns (counts [C, C], symmetric with a zero diagonal; occurrence [C]), both int64.
    Raises ValueError for another shape or another value.
    """
    targets = np.asarray(targets)
    if targets.ndim != 2:
        raise ValueError(f"targets must be [images, classes], got shape {targets.shape}; pass the whole label table")
    if strange := other_values(targets)[:5]:
        raise ValueError(f"targets may hold 1, 0 and -1 (unknown) only, found {strange}; threshold or recode them")
    counts = np.zeros((targets.shape[1], targets.shape[1]), np.int64)
    for block in np.array_split(targets, 1 + targets.size // BLOCK):
        # Float, because numpy multiplies integer matrices without BLAS (80,000 x 80: 0.05 s against 2 s). A block has at most
        # 2^24 rows, up to which float32 counts exactly.
        present = (block == 1).astype(np.float32)
        np.add(counts, present.T @ present, out=counts, casting="unsafe")
    occurrence = counts.diagonal().copy()
    np.fill_diagonal(counts, 0)
    return counts, occurrence


def other_values(targets):
    """Return the values of targets [N, C] that are none of 1, 0 and -1, ascending."""
    blocks = np.array_split(targets, 1 + targets.size // BLOCK)
    return np.unique(np.concatenate([block[(block != 1) & (block != 0) & (block != -1)] for block in blocks])).tolist()


def alone(counts, occurrence):
    """Return the indices of the classes that occur, and with no other class: P+ has no weight for them; from `cooccurrence`."""
    return np.flatnonzero((np.asarray(counts).sum(1) == 0) & (np.asarray(occurrence) > 0))


def affinity(counts, occurrence, branch="co", exponent=0.5, self_loops=False):
    """Turn the counts into the graph that is cut: P+ for branch "co", P- = 1 - P+ for branch "dis".

    counts: [C, C], occurrence: [C], as from `cooccurrence`; exponent: p > 0, 1/2 in the paper. self_loops: whether P- has
    ones on its diagonal, as the formula has it (the released code's clustering ignores a diagonal); P+ never has any.
    Returns [C, C] float64, symmetric, in [0, 1]. A class that never occurs has a row of zeros in P+, of ones in P-.
    Raises ValueError for an unknown branch, an exponent that is not a positive number, or counts that cannot be.
    """
    if branch not in ("co", "dis"):
        raise ValueError(f'branch must be "co" (co-occurrence) or "dis" (dis-occurrence), got {branch!r}')
    if not isinstance(exponent, int | float) or not math.isfinite(exponent) or exponent <= 0:
        raise ValueError(f"exponent must be a finite number above 0 (the paper's is 0.5), got {exponent!r}")
    counts, occurrence = np.asarray(counts, dtype=np.float64), np.asarray(occurrence, dtype=np.float64)
    if counts.ndim != 2 or occurrence.ndim != 1 or counts.shape != 2 * occurrence.shape:
        raise ValueError(
            f"counts must be [C, C] and occurrence [C], got {counts.shape} and {occurrence.shape}; "
            "use the pair that cooccurrence returns"
        )
    rarer = np.minimum.outer(occurrence, occurrence)
    if not ((counts >= 0) & (counts <= rarer)).all() or (counts != counts.T).any() or counts.diagonal().any():
        raise ValueError(
            "counts must be symmetric, zero on the diagonal, and nowhere above the occurrence of the rarer class; "
            "use the pair that cooccurrence returns"
        )
    conditional = np.divide(counts, occurrence[:, None], out=np.zeros_like(counts), where=occurrence[:, None] > 0)
    together = (conditional**exponent + conditional.T**exponent) / 2
    if branch == "co":
        return together
    apart = 1 - together
    if not self_loops:  # a part of one class would keep 1 / degree of its weight, and be cheap
        np.fill_diagonal(apart, 0)
    return apart


def check_affinity(affinity):
    """Return an affinity [C, C] as float64, exactly symmetric; ValueError unless it is symmetric, finite and >= 0."""
    affinity = np.asarray(affinity, dtype=np.float64)
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1]:
        raise ValueError(f"affinity must be [C, C], got shape {affinity.shape}; use graph.affinity")
    if not np.isfinite(affinity).all() or (affinity < 0).any() or not np.allclose(affinity, affinity.T):
        raise ValueError("affinity must be symmetric, finite and nowhere negative; use graph.affinity")
    return (affinity + affinity.T) / 2  # float32 inputs are symmetric up to rounding only


def spectral_embedding(affinity, k):
    """Return where each class lies on the k smallest eigenvectors of D^-1/2 (D - P) D^-1/2, rescaled by D^-1/2; [C, k].

    affinity: [C, C], no class without weight.
    """
    return spectrum(affinity, k)[1] / np.sqrt(affinity.sum(1))[:, None]


def spectrum(affinity, k):
    """Return the k smallest eigenvalues [k] of the normalised Laplacian, from the smallest on, and their vectors [C, k]."""
    scale = 1 / np.sqrt(affinity.sum(1))
    similar = scale[:, None] * affinity * scale
    if len(affinity) < SPARSE or k >= len(affinity):
        return eigh(np.eye(len(affinity)) - similar, subset_by_index=[0, k - 1])
    # Those of the Laplacian are 1 minus these; the largest are what Lanczos' method finds first.
    values, vectors = eigsh(similar, k, which="LA", v0=np.sqrt(affinity.sum(1)))
    return 1 - values[::-1], vectors[:, ::-1]
