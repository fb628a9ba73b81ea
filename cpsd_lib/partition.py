"""From a label graph to parts of the class set: cut, measure, split, merge, keep."""

import json
import warnings
from collections import Counter
from operator import index

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from cpsd_lib.graph import check_affinity, spectral_embedding, spectrum
from cpsd_lib.support import listed, read_json, write_json

VERSION = 1
NEAR_STARTS, RANDOM_STARTS = 40, 20  # 0.3 s at C = 80 for k <= 8; more starts gain less than 0.001 on COCO
FEW = 80  # classes: one pair a look at all pairs; of more classes, more pairs at once
FULL = 200  # classes up to which all of these are tried
BLOCK = 2**20  # pairs of classes whose swap is looked at in one array
TOLERANCE = 1e-10  # a change of Ncut below this is rounding, and could go on for ever


class Partition:
    """Parts of the classes 0..num_classes-1: each class in exactly one part, no part empty.

    parts: lists of class indices; kept in the order given, each sorted. Two partitions are equal when their parts are the
    same in the same order, because teachers belong to parts by position (use `adjusted_rand` to compare groupings alone).
    Raises ValueError naming the classes that are missing, repeated or out of range.
    """

    def __init__(self, parts, num_classes):
        self.num_classes = index(num_classes)
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.parts = [sorted(index(c) for c in part) for part in parts]
        self._made = {}  # {device: the parts as indices there}
        if not all(self.parts):
            empty = [number for number, part in enumerate(self.parts) if not part]
            raise ValueError(f"a part must hold at least one class; empty: {empty}; ask for fewer parts or fill them")
        named = [c for part in self.parts for c in part]
        outside = sorted({c for c in named if not 0 <= c < self.num_classes})
        if outside:
            raise ValueError(
                f"the parts name classes [{listed(outside)}], but {self.num_classes} classes are 0..{self.num_classes - 1}; "
                "the partition was made for another data set, or the file is broken: cut this data set's graph again"
            )
        missing = sorted(set(range(self.num_classes)) - set(named))
        repeated = sorted(c for c, times in Counter(named).items() if times > 1)
        if missing or repeated:
            raise ValueError(
                f"each of the {self.num_classes} classes must be in exactly one part; "
                f"missing: [{listed(missing)}], repeated: [{listed(repeated)}]; correct the parts"
            )

    def __len__(self):
        return len(self.parts)

    def __eq__(self, other):
        if not isinstance(other, Partition):
            return NotImplemented
        return (self.num_classes, self.parts) == (other.num_classes, other.parts)

    def __hash__(self):
        return hash((self.num_classes, tuple(map(tuple, self.parts))))

    def __repr__(self):
        return f"Partition({self.parts}, {self.num_classes})"

    def labels(self):
        """Return the part number of each class, int [C]."""
        labels = np.empty(self.num_classes, dtype=np.int64)
        for number, part in enumerate(self.parts):
            labels[part] = number
        return labels

    def split(self, x):
        """Split an array or tensor [N, C, ...] into one [N, len(part), ...] per part; ValueError for another width."""
        if x.ndim < 2 or x.shape[1] != self.num_classes:
            raise ValueError(f"expected [N, {self.num_classes}, ...] with classes on axis 1, got {tuple(x.shape)}")
        return [_columns(x, part) for part in self._indices(x)[:-1]]

    def merge(self, pieces):
        """Put per-part arrays or tensors [N, len(part), ...] back in class order, [N, C, ...]: the inverse of `split`.

        This is the paper's rho (z = rho(z_1 ... z_k)). Raises ValueError for another number of pieces or another width.
        """
        pieces = list(pieces)
        expected = [len(part) for part in self.parts]
        found = [piece.shape[1] if piece.ndim > 1 else None for piece in pieces]
        if found != expected:
            raise ValueError(f"expected pieces with {expected} classes on axis 1, got {found}: one a part, in order")
        joined = torch.cat(pieces, 1) if isinstance(pieces[0], torch.Tensor) else np.concatenate(pieces, 1)
        return _columns(joined, self._indices(joined)[-1])

    def _indices(self, x):
        """Return the indices of each part, and where each class stands when the parts are written one after the other.

        On a tensor's device they are made once: a list, or an index on the host, makes a GPU wait at every step.
        """
        device = x.device if isinstance(x, torch.Tensor) else None
        if device not in self._made:
            indices = [*map(np.array, self.parts), np.argsort(np.concatenate(self.parts))]
            with torch.inference_mode(False):  # made in it, they could not be part of a gradient later
                self._made[device] = indices if device is None else [torch.from_numpy(i).to(device) for i in indices]
        return self._made[device]

    def save(self, path):
        """Write the partition as JSON: version, num_classes, parts."""
        write_json(path, {"version": VERSION, "num_classes": self.num_classes, "parts": self.parts})

    @classmethod
    def load(cls, path, num_classes=None):
        """Read a partition in our own JSON form or in the one released with the paper.

        The released form, a list with one {"class index": position in the part} each, does not say how many classes there
        are: pass num_classes, or it is taken from the number of keys. Raises ValueError naming the file when it is
        neither form, or does not fit num_classes.
        """
        content = read_json(path)
        try:
            if isinstance(content, dict):
                parts, stated = _read_own(content)
            else:
                parts = _read_released(content)
                stated = sum(map(len, parts)) if num_classes is None else num_classes
            if num_classes not in (None, stated):
                raise ValueError(f"it is a partition of {stated} classes, not {num_classes}; load it for its own data")
            return cls(parts, stated)
        except (ValueError, TypeError) as error:
            raise ValueError(f"cannot use the partition {path}: {error}") from error


def _columns(x, indices):
    return x.index_select(1, indices) if isinstance(x, torch.Tensor) else x[:, indices]


def _read_own(content):
    if content.get("version") != VERSION or not {"num_classes", "parts"} <= content.keys():
        raise ValueError(f"expected keys version = {VERSION}, num_classes, parts, got {json.dumps(content)[:80]}")
    return content["parts"], content["num_classes"]


def _read_released(content):
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ValueError('expected {"version", "num_classes", "parts"} or a list of {"class index": position}')
    parts = [sorted(map(int, part)) for part in content]
    for part, entries in zip(parts, content, strict=True):
        # Columns of a part are always in class order here; a file that says otherwise would silently swap classes.
        if [entries.get(str(c)) for c in part] != list(range(len(part))):
            raise ValueError(f"positions must count 0, 1, 2 ... in class order; they do not in part [{listed(part)}]")
    return parts


def adjusted_rand(a, b):
    """Return the adjusted Rand index of two partitions: 1.0 = the same groups, about 0 = no more alike than chance."""
    if a.num_classes != b.num_classes:
        raise ValueError(f"cannot compare partitions of {a.num_classes} and {b.num_classes} classes")
    return float(adjusted_rand_score(a.labels(), b.labels()))


def random_partition(num_classes, k, seed):
    """Return k parts of random classes, sizes equal within one; ValueError unless 1 <= k <= num_classes."""
    _check_k(k, num_classes)
    order = np.random.default_rng(seed).permutation(num_classes)
    return _from_labels(np.argsort(order) % k)


def ncut(affinity, partition):
    """Return the normalised cut: the weight that leaves a part / all weight of its classes, summed over the parts.

    affinity: [C, C], diagonal included in the weight of a class. Lies in 0..k; a part without any weight adds 0.
    Raises ValueError for an affinity that is not symmetric, finite and >= 0, or of another size than the partition.
    """
    affinity = check_affinity(affinity)
    if len(affinity) != partition.num_classes:
        raise ValueError(f"affinity is of {len(affinity)} classes, the partition of {partition.num_classes}")
    return _ncut(affinity, partition.labels(), len(partition))


def cut(affinity, k, seed=0, refine=False, balance=None):
    """Cut the label graph into k parts of low normalised cut; deterministic in its arguments.

    affinity: [C, C] from `graph.affinity`. refine=False is the paper's: the k smallest eigenvectors of the normalised
    Laplacian D^-1/2 (D - P) D^-1/2, rescaled by D^-1/2, then k-means. refine=True then moves and swaps single classes while the
    normalised cut falls, from several starts, and keeps the best; never above the plain cut of the same seed.
    Parts come in order of their smallest class. Where the graph falls into components, none is split while there are as
    many of them as parts; a class without any weight joins the smallest part.
    balance: the largest part has at most this many times the classes of the smallest, or one class more; the cut is then
    refined, components or not. None: sizes as they come.
    Raises ValueError unless 1 <= k <= C and the affinity is symmetric, finite and >= 0, and for a balance below 1.
    """
    affinity = check_affinity(affinity)
    _check_k(k, len(affinity))
    if balance is not None and not balance >= 1:
        raise ValueError(f"balance must be at least 1, parts of equal sizes; got {balance}")
    labels = np.full(len(affinity), -1)
    connected = np.flatnonzero(affinity.sum(1) > 0)
    components = [connected[part] for part in _components(affinity[np.ix_(connected, connected)])]
    if len(components) >= k or not components:
        # No weight is cut at all: the largest first, each into the smallest part.
        for classes in sorted(components, key=len, reverse=True):
            labels[classes] = _smallest(labels, k)
    else:
        # One thread: small matrices lose by more (0.3 s becomes 3 s on a busy machine), and the result stays the same.
        with threadpool_limits(1):
            for classes, parts in zip(components, _shared_out(affinity, components, k), strict=True):
                graph = affinity[np.ix_(classes, classes)]
                labels[classes] = labels.max() + 1 + _cut_connected(graph, parts, seed, refine)
    for c in np.flatnonzero(labels < 0):
        labels[c] = _smallest(labels, k)
    return _from_labels(labels if balance is None else _balanced(affinity, labels, k, seed, balance))


def _balanced(affinity, labels, k, seed, balance):
    """Return the labels of low Ncut with parts of alike sizes: from a cut whose sizes were levelled, and from random parts."""
    random = np.random.default_rng(seed)
    starts = [labels, *(random.permutation(len(labels)) % k for _ in range(RANDOM_STARTS))]
    with threadpool_limits(1):
        ends = [_Cut(affinity, start, k, balance).descend() for start in starts]
    return min(ends, key=lambda end: _ncut(affinity, end, k))


def _components(affinity):
    number, component = connected_components(affinity, directed=False) if len(affinity) else (0, None)
    return [np.flatnonzero(component == one) for one in range(number)]


def _smallest(labels, k):
    return np.bincount(labels[labels >= 0], minlength=k).argmin()


def _shared_out(affinity, components, k):
    """Return how many of the k parts each component is cut into: as many as it has of the graph's k smallest eigenvalues."""
    if len(components) == 1:
        return [min(k, len(components[0]))]
    values = [spectrum(affinity[np.ix_(one, one)], min(k, len(one)))[0] for one in components]
    owner = np.repeat(np.arange(len(values)), [len(one) for one in values])
    # The smallest of each is 0: every component has one part at least. Fewer classes with weight than parts: all alone.
    smallest = owner[np.argsort(np.concatenate(values) + np.concatenate([np.arange(len(v)) > 0 for v in values]))[:k]]
    return np.bincount(smallest, minlength=len(values))


def _check_k(k, num_classes):
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must be between 1 and the number of classes, {num_classes}; got {k}")


def _from_labels(labels):
    parts = [np.flatnonzero(labels == number).tolist() for number in np.unique(labels)]
    return Partition(sorted(parts), len(labels))


def _kmeans(points, k, seed, starts):
    with warnings.catch_warnings():
        # Fewer distinct points than k, as when two classes always come together: _Cut sees to it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(k, n_init=starts, random_state=seed).fit(points).labels_


def _cut_connected(affinity, k, seed, refine):
    """Return the part of each class of a connected graph, the plain cut or the refined one."""
    if k in (1, len(affinity)):
        return np.arange(len(affinity)) % k
    points, random = spectral_embedding(affinity, k), np.random.default_rng(seed)
    # 200 starts: with 20, some seeds miss the best k-means solution of COCO at k = 8; 200 cost 0.1 s.
    starts = [_Cut(affinity, _kmeans(points, k, seed, 200), k).labels]
    if not refine:
        return starts[0]
    # Each start ends in a local minimum of its own. The plain cut comes first, so the result is never above it; k-means
    # from one start each lands near it; random parts find what the eigenvectors do not show (P- is nearly constant).
    fewer = min(1.0, FULL / len(affinity))  # a start costs about the square of the classes
    starts += [_kmeans(points, k, n, 1) for n in random.integers(2**31, size=round(NEAR_STARTS * fewer))]
    starts += [random.permutation(len(affinity)) % k for _ in range(round(RANDOM_STARTS * fewer))]
    return min((_Cut(affinity, labels, k).descend() for labels in starts), key=lambda end: _ncut(affinity, end, k))


class _Cut:
    """Classes in k parts, none empty, and the sums by which a change of Ncut is known without computing it anew."""

    def __init__(self, affinity, labels, k, balance=np.inf):
        self.affinity, self.labels, self.balance = affinity, labels.copy(), balance
        self.degree, self.own = affinity.sum(1), affinity.diagonal()
        self.to_part, self.within, self.volume = _weights(affinity, labels, k)
        self.count = np.bincount(labels, minlength=k)
        while not self._allowed(self.count):  # the class whose moving into the smallest part raises Ncut least
            part = self.count.argmin()
            larger = self.count[self.labels] > self.count[part] + 1
            self.move(np.where(larger, self._changes()[:, part], np.inf).argmin(), part)

    def _allowed(self, count):
        """Return whether sizes of parts, [..., k], are in balance, none of them empty."""
        least = count.min(-1)
        return (least > 0) & (count.max(-1) <= np.maximum(self.balance * least.clip(1), least + 1))

    def move(self, c, part):
        """Move class c into another part."""
        for number, sign in ((self.labels[c], -1), (part, 1)):
            # The class's own weight counts once, and its weight to the part's others twice, in both directions.
            others = self.to_part[c, number] - (self.own[c] if sign < 0 else 0)
            self.within[number] += sign * (2 * others + self.own[c])
            self.volume[number] += sign * self.degree[c]
            self.count[number] += sign
            self.to_part[:, number] += sign * self.affinity[c]
        self.labels[c] = part

    def descend(self):
        """Move single classes while that lowers Ncut, then swap pairs that do; stop where neither helps, return the labels."""
        while True:
            moves = self.move_changes()
            c, part = np.unravel_index(moves.argmin(), moves.shape)
            if moves[c, part] < -TOLERANCE:
                self.move(c, part)
            elif not self._swap():
                return self.labels

    def _swap(self):
        """Swap the pairs that gain most, of each class and its best partner, where that lowers Ncut; return whether any did."""
        classes = np.arange(len(self.labels))
        blocks = np.array_split(classes, 1 + len(classes) ** 2 // BLOCK)
        best = [(found.min(1), found.argmin(1)) for found in (self.swap_changes(rows, classes) for rows in blocks)]
        changes, partners = (np.concatenate(found) for found in zip(*best, strict=True))
        swapped = False
        for a in np.argsort(changes, kind="stable")[: 2 * max(1, len(self.labels) // FEW)]:  # a pair stands there twice
            b = partners[a]
            if self.swap_changes(np.array([a]), np.array([b]))[0, 0] < -TOLERANCE:
                part = self.labels[a]
                self.move(a, self.labels[b])
                self.move(b, part)
                swapped = True
        return swapped

    def move_changes(self):
        """Return the change of Ncut by moving class c to part t, [C, k]; inf where nothing moves or the sizes would not do."""
        change = self._changes()
        change[self.count[self.labels] == 1] = np.inf
        if np.isfinite(self.balance):
            one = np.eye(len(self.count), dtype=int)
            change[~self._allowed(self.count + one[None] - one[:, None])[self.labels]] = np.inf  # sizes [from, to, k]
        return change

    def _changes(self):
        """Return the change of Ncut by moving class c to part t, [C, k], whatever the sizes; inf where nothing moves."""
        classes, labels = np.arange(len(self.labels)), self.labels
        before, own = _leaving(self.within, self.volume), self.own
        without = self.within[labels] - 2 * self.to_part[classes, labels] + own
        old = _leaving(without, self.volume[labels] - self.degree)
        new = _leaving(self.within + 2 * self.to_part + own[:, None], self.volume + self.degree[:, None])
        change = (old - before[labels])[:, None] + new - before
        change[classes, labels] = np.inf
        return change

    def swap_changes(self, a, b):
        """Return the change of Ncut when class a [A] and class b [B] change places, [A, B]; inf within one part."""
        change = self._after(a, b) + self._after(b, a).T
        change[self.labels[a][:, None] == self.labels[b]] = np.inf
        return change

    def _after(self, a, b):
        """Return the change in the part of a [A] once a has left it and b [B] has come."""
        part, before = self.labels[a], _leaving(self.within, self.volume)
        without = self.within[part] - 2 * self.to_part[a, part] + self.own[a]
        inside = without[:, None] + 2 * (self.to_part[b][:, part].T - self.affinity[np.ix_(a, b)]) + self.own[b]
        volume = (self.volume[part] - self.degree[a])[:, None] + self.degree[b]
        return _leaving(inside, volume) - before[part][:, None]


def _weights(affinity, labels, k):
    """Return the weight from each class to each part [C, k], inside each part [k], of all classes of each part [k]."""
    member = np.eye(k)[labels]
    to_part = affinity @ member
    return to_part, (member * to_part).sum(0), to_part.sum(1) @ member


def _leaving(within, volume):
    """Return the share of a part's weight that leaves it, cut / volume; 0 where there is no weight."""
    return np.divide(volume - within, volume, out=np.zeros(np.shape(volume)), where=volume > 0)


def _ncut(affinity, labels, k):
    _, within, volume = _weights(affinity, labels, k)
    return float(_leaving(within, volume).sum())
