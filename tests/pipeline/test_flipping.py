"""Whether flipping helps, on pictures where the side decides and where it does not."""

from __future__ import annotations

import pytest
import torch

from trajmatch.config import ExpertConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.errors import SettingError
from trajmatch.pipeline.flipping import FlipComparison, compare_flipping

NETWORK = NetworkConfig(network="mlp", width=16)
TRAINING = ExpertConfig(epochs=8, batch=20, lr=0.1)


def sides(vertical: bool) -> ImageDataset:
    """Bright at one side or at the other: left and right, or top and bottom."""
    images = torch.randint(0, 100, (160, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(160) % 2
    images[labels == 0, :, :, :3] += 150
    images[labels == 1, :, :, 5:] += 150
    if vertical:
        images = images.mT.contiguous()
    images = images.to(torch.uint8)
    data = ImageDataset.from_arrays(images[:120], labels[:120], images[120:], labels[120:])
    return data.with_validation(0.3)


def test_flipping_harms_where_left_and_right_are_classes() -> None:
    found = compare_flipping(
        sides(vertical=False), network=NETWORK, config=TRAINING, augment="flip", seeds=2
    )
    assert len(found.flipped) == len(found.unflipped) == 2
    assert found.difference < -15
    assert min(found.unflipped) > 90


def test_flipping_does_no_harm_where_they_are_not() -> None:
    found = compare_flipping(
        sides(vertical=True), network=NETWORK, config=TRAINING, augment="flip", seeds=2
    )
    assert abs(found.difference) < 10


def test_the_difference_is_that_of_the_means() -> None:
    assert FlipComparison([50.0, 60.0], [70.0, 90.0]).difference == -25.0


def test_the_spread_is_the_larger_standard_deviation() -> None:
    assert FlipComparison([50.0, 60.0, 70.0], [70.0, 70.0, 71.0]).spread == 10.0
    assert FlipComparison([50.0], [70.0]).spread == 0.0


def test_what_cannot_be_compared_is_refused() -> None:
    data = sides(vertical=True)
    with pytest.raises(SettingError, match="augment is color_crop, which has no flip"):
        compare_flipping(data, augment="color_crop")
    with pytest.raises(SettingError, match="no validation split"):
        compare_flipping(
            ImageDataset("x", data.train, data.test, None, data.classes), augment="flip"
        )
