"""k-means: the real image nearest the center of each of as many clusters as there are picks.

S. P. Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 28, 1982;
begun by k-means++ (Arthur & Vassilvitskii, SODA 2007).
"""

from __future__ import annotations

import warnings

import torch

from trajmatch.types import Float, Int, Tensor

RESTARTS = 4
"""Times that the clusters of a class are sought; those with the least squared distances count."""


def choose_k_means(
    features: Float[Tensor, "n features"],
    labels: Int[Tensor, "n"],
    ipc: int,
    generator: torch.Generator,
) -> Int[Tensor, "chosen"]:
    """`ipc` indices of each class, class by class, those of the largest clusters first.

    A center takes the nearest image that no larger cluster's has taken; of equals the lowest index.

    Costs RESTARTS times Lloyd's iterations (at most 300, seldom more than 30) of a product of the
    class's features with `ipc` centers, in float64 on one thread.
    """
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        points = features[members].double()
        seed = int(torch.randint(2**31, (1,), generator=generator))
        chosen.append(members[_nearest(points, _centers(points, ipc, seed))])
    return torch.cat(chosen)


def _centers(
    points: Float[Tensor, "n features"], count: int, seed: int
) -> Float[Tensor, "count features"]:
    """Of the clusters, the largest first."""
    from sklearn.cluster import KMeans  # a second of import: only when asked for
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # Threads add their shares up as they come, so that the last bits would be chance.
    with threadpool_limits(1), warnings.catch_warnings():
        # Fewer different images than clusters: some centers coincide, and take what is left.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=RESTARTS, random_state=seed).fit(points.numpy())
    sizes = torch.bincount(torch.from_numpy(found.labels_).long(), minlength=count)
    order = sizes.argsort(descending=True, stable=True)
    return torch.from_numpy(found.cluster_centers_)[order]


def _nearest(
    points: Float[Tensor, "n features"], centers: Float[Tensor, "count features"]
) -> Int[Tensor, "count"]:
    """The point nearest each center in turn, without those taken before."""
    picks = torch.zeros(len(centers), dtype=torch.int64)
    taken = torch.zeros(len(points), dtype=torch.bool)
    for t, center in enumerate(centers):
        squares = (points - center).square().sum(1)
        squares[taken] = torch.inf
        picks[t] = squares.argmin()
        taken[picks[t]] = True
    return picks
