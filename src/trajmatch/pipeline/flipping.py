"""Whether mirrored images help a network: of letters, digits and signs they are other ones."""

from __future__ import annotations

import dataclasses
import statistics
from typing import NamedTuple

from trajmatch.config import DSA_STRATEGY, ExpertConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import fit_whitening
from trajmatch.errors import SettingError
from trajmatch.experts.train import expert_accuracy, train_expert
from trajmatch.networks import NetworkSpec
from trajmatch.networks.spec import network_for
from trajmatch.runtime.resources import Resources


class FlipComparison(NamedTuple):
    """Validation accuracy in percent, a number for each seed."""

    flipped: list[float]
    unflipped: list[float]

    @property
    def difference(self) -> float:
        """Mean accuracy with flipping minus without, in percentage points."""
        pairs = zip(self.flipped, self.unflipped, strict=True)
        return sum(one - other for one, other in pairs) / len(self.flipped)

    @property
    def spread(self) -> float:
        """The larger standard deviation (ddof=1) over the seeds, in percentage points; 0 for one
        seed. A difference within it says nothing."""
        return max(statistics.stdev(each) if len(each) > 1 else 0.0 for each in self)


def compare_flipping(
    data: ImageDataset,
    *,
    network: NetworkConfig | NetworkSpec = NetworkConfig(width=32),
    config: ExpertConfig = ExpertConfig(epochs=5, batch=64),
    augment: str = DSA_STRATEGY,
    seeds: int = 3,
    seed: int = 0,
    resources: Resources = Resources(),
) -> FlipComparison:
    """Train small networks on the training images with and without `flip` in `augment`, and test
    them on the validation images; the test images are not used.

    Both networks of a seed begin alike. Where the difference is smaller than the spread over the
    seeds, it says nothing. Cost: 2 `seeds` experts of `config.epochs` epochs.

    Raises SettingError without validation images, and where `augment` has no flip.

    Examples:
        >>> found = compare_flipping(trajmatch.load_data("digits"))  # doctest: +SKIP
        >>> found.difference < 0  # doctest: +SKIP
        True
    """
    others = "_".join(name for name in augment.split("_") if name != "flip") or "none"
    if others == augment:
        raise SettingError(f"augment is {augment}, which has no flip to be compared with")
    if data.val is None:
        raise SettingError("the data have no validation split; use data.with_validation(0.1)")
    spec, whitening = network_for(data, network), fit_whitening("normalize", data.train)
    device = resources.torch_device
    train, val = (whitening.apply_split(split, device) for split in (data.train, data.val))
    labels, targets = data.train.labels.to(device), data.val.labels.to(device)

    def accuracies(strategy: str) -> list[float]:
        settings = dataclasses.replace(config, augment=strategy)
        vectors = (
            train_expert(spec, train, labels, settings, seed=seed, index=index).vector
            for index in range(seeds)
        )
        return [expert_accuracy(spec, vector, val, targets) for vector in vectors]

    return FlipComparison(accuracies(augment), accuracies(others))
