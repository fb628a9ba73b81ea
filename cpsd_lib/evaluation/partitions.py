"""How far to trust a partition: against another one, another exponent, another seed, other images, another k."""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import contingency_matrix

from cpsd_lib import graph
from cpsd_lib.partition import adjusted_rand, cut, ncut
from cpsd_lib.support import bar

PAPER_EXPONENT = 0.5


def overlap(ours, other):
    """Count the classes that part i of ours and part j of other have in common, int [k_ours, k_other]."""
    return contingency_matrix(ours.labels(), other.labels())


def match(ours, other):
    """Number the parts of other by their partner in ours, int [k_other], so that most classes keep their number.

    A part of other without a partner (other has more parts) gets the next free number, from k_ours on.
    """
    partner, part = linear_sum_assignment(overlap(ours, other), maximize=True)
    numbers = np.full(len(other), -1)
    numbers[part] = partner
    left_over = numbers < 0
    numbers[left_over] = len(ours) + np.arange(left_over.sum())
    return numbers


def moved(ours, other, names):
    """Return the classes [C] that another partition places differently, a line each; the order of the parts does not count.

    Columns: class (its name), ours, other (its parts, as `match` numbers them). Empty when, and only when, both are the same
    groups.
    """
    table = pd.DataFrame({"class": names, "ours": ours.labels(), "other": match(ours, other)[other.labels()]})
    return table[table["ours"] != table["other"]]


def over_exponents(
    counts, occurrence, branch, k, exponents, seed=0, refine=False, other=None, self_loops=False, balance=None
):
    """Cut the graph of each exponent into k parts; a line an exponent, agreement with the cut at p = 1/2 (the paper's).

    counts [C, C] and occurrence [C] as from graph.cooccurrence; other: a partition to compare with as well, or None;
    self_loops: as in graph.affinity, balance: as in partition.cut. Columns: exponent, those of `partition_numbers` (Ncut on
    the exponent's own graph), ARI to p = 0.5 (low by the exponent only where `stability` finds the cut again), and with
    `other` ARI to other.
    """

    def graph_of(exponent):
        return graph.affinity(counts, occurrence, branch, float(exponent), self_loops)

    paper = cut(graph_of(PAPER_EXPONENT), k, seed, refine, balance)
    lines = []
    for exponent in exponents:
        affinity = graph_of(exponent)
        partition = cut(affinity, k, seed, refine, balance)
        line = {"exponent": float(exponent)} | partition_numbers(affinity, partition)
        line["ARI to p = 0.5"] = adjusted_rand(partition, paper)
        if other is not None:
            line["ARI to other"] = adjusted_rand(partition, other)
        lines.append(line)
    return pd.DataFrame(lines)


def stability(
    targets, branch, ks, exponent=PAPER_EXPONENT, seed=0, refine=False, repeats=3, self_loops=False, balance=None
):
    """Measure how well a cut into k parts is found again; targets [N, C] in {1, 0, -1}; columns k, kind, repeat, ari.

    Kind "seeds": the graph of all images, cut with seed + 1 ... seed + repeats, each against the cut with `seed`, the one that
    a run uses. Kind "halves": the cuts of two random halves of the images, the same for every k. Classes that occur with no
    other say nothing of a cut of "co": they are left out, and every k that is then too large.
    """
    targets = np.asarray(targets)
    if branch == "co":
        targets = targets[:, graph.cooccurrence(targets)[0].any(1)]
    ks = [k for k in ks if k <= targets.shape[1]]

    def graph_of(indices):
        return graph.affinity(*graph.cooccurrence(targets[indices]), branch, float(exponent), self_loops)

    whole, half, lines = graph_of(slice(None)), len(targets) // 2, []
    with bar(len(ks) * (1 + 3 * repeats), f"stability of {branch}", "cut") as progress:

        def counted_cut(affinity, k, seed):
            progress.update(1)
            return cut(affinity, k, seed, refine, balance)

        used = {k: counted_cut(whole, k, seed) for k in ks}
        for repeat in range(repeats):
            lines += [(k, "seeds", repeat, used[k], counted_cut(whole, k, seed + 1 + repeat)) for k in ks]
            order = np.random.default_rng([seed, repeat]).permutation(len(targets))
            pair = graph_of(order[:half]), graph_of(order[half:])  # of many classes a graph is large
            lines += [(k, "halves", repeat, *(counted_cut(affinity, k, seed) for affinity in pair)) for k in ks]
    lines = [(k, kind, repeat, adjusted_rand(*cuts)) for k, kind, repeat, *cuts in lines]
    table = pd.DataFrame(lines, columns=["k", "kind", "repeat", "ari"])
    return table.sort_values(["k", "kind", "repeat"], ascending=[True, False, True], ignore_index=True)


def partition_numbers(affinity, partition):
    """Return {"Ncut", "sizes" (largest first), "singletons" (parts of one class)} of a Partition on its graph [C, C]."""
    sizes = sorted(map(len, partition.parts), reverse=True)
    return {"Ncut": ncut(affinity, partition), "sizes": sizes, "singletons": sizes.count(1)}
