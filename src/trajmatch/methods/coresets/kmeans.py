"""k-means: the real image nearest the center of each of `ipc` clusters of its class.

S. P. Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 28, 1982;
initialized by k-means++ (Arthur & Vassilvitskii, SODA 2007).
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import ClassVar

import torch

from trajmatch.methods.coresets.base import Coreset, Requirement, class_members
from trajmatch.types import Float, Int, Tensor


@dataclasses.dataclass(frozen=True)
class KMeans(Coreset):
    """The image nearest each cluster center in feature space, largest clusters first.

    A center takes the nearest image that no larger cluster has taken; of equals the lowest index.
    Cost: `restarts` times Lloyd's iterations (at most 300, seldom more than 30), each a product of
    the class's features with `ipc` centers, in float64 on one thread.

    Examples:
        >>> features, labels = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([0, 0, 0])
        >>> KMeans().choose(features, labels, 2, torch.Generator().manual_seed(0))
        tensor([0, 2])
    """

    name: ClassVar[str] = "k-means"
    requires: ClassVar[Requirement] = "features"
    restarts: int = 4
    """Clusterings per class, from different initializations; that with the least squared distances
    is used."""

    def choose(
        self,
        statistics: Float[Tensor, "n features"],
        labels: Int[Tensor, "n"],
        ipc: int,
        generator: torch.Generator,
    ) -> Int[Tensor, "chosen"]:
        """Indices of `ipc` images of each class, those of the largest clusters first."""
        chosen = []
        for members in class_members(labels):
            points = statistics[members].double()
            seed = int(torch.randint(2**31, (1,), generator=generator))
            chosen.append(members[_nearest(points, _centers(points, ipc, seed, self.restarts))])
        return torch.cat(chosen)


def _centers(
    points: Float[Tensor, "n features"], count: int, seed: int, restarts: int
) -> Float[Tensor, "count features"]:
    """Cluster centers, largest cluster first."""
    # Imported here: it takes a second, and only this coreset uses it.
    from sklearn.cluster import KMeans as Clusters
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # With several threads the order of summation, and so the last bits, would vary.
    with threadpool_limits(1), warnings.catch_warnings():
        # With fewer distinct images than clusters some centers coincide, which is fine here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = Clusters(count, n_init=restarts, random_state=seed).fit(points.numpy())
    sizes = torch.bincount(torch.from_numpy(clusters.labels_).long(), minlength=count)
    order = sizes.argsort(descending=True, stable=True)
    return torch.from_numpy(clusters.cluster_centers_)[order]


def _nearest(
    points: Float[Tensor, "n features"], centers: Float[Tensor, "count features"]
) -> Int[Tensor, "count"]:
    """The point nearest each center in turn, each point at most once."""
    picks = torch.zeros(len(centers), dtype=torch.int64)
    taken = torch.zeros(len(points), dtype=torch.bool)
    for t, center in enumerate(centers):
        squares = (points - center).square().sum(1)
        squares[taken] = torch.inf
        picks[t] = squares.argmin()
        taken[picks[t]] = True
    return picks
