"""Splits cut from labeled images: a share of every class, drawn once and always the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trajmatch.errors import DataError
from trajmatch.rng import stream
from trajmatch.types import Int, Tensor

TEST_SHARE = 0.2
"""Share of each class that becomes the test split of a data set without one."""
TEST_IS_CUT = "no test images were given: a fifth of each class set aside as them, always the same"
"""The note of such a data set."""
FEWEST = 3
"""Images a class needs where all three splits are cut from it."""


def stratified(
    labels: Int[Tensor, "n"],
    classes: Sequence[str],
    fraction: float,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "rest"], Int[Tensor, "cut"]]:
    """Cut a random `fraction` of every class: indices of the rest and of the cut, each in order.

    At least one image of each class lands on either side. Raises DataError for a class with fewer
    than two.
    """
    cut = []
    for label, name in enumerate(classes):
        where = (labels == label).nonzero()[:, 0]
        if len(where) < 2:
            raise DataError(
                f"class '{name}' has {len(where)} training image, too few to set one aside for "
                "validation; add images or give a val/ split"
            )
        count = min(max(round(len(where) * fraction), 1), len(where) - 1)
        cut.append(where[torch.randperm(len(where), generator=generator)[:count]])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(cut)] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def cut_test(
    labels: Int[Tensor, "n"], classes: Sequence[str], without: str
) -> tuple[Int[Tensor, "rest"], Int[Tensor, "cut"]]:
    """Indices of the training and test images of a data set that has no test split.

    without: what is missing, for the message ("without a test/ folder"). Raises DataError for a
    class with fewer than FEWEST images.
    """
    counts = labels.bincount(minlength=len(classes))
    fewest = int(counts.argmin())
    if counts[fewest] < FEWEST:
        raise DataError(
            f"class '{classes[fewest]}' has {counts[fewest]} images, and {without} each class "
            f"needs at least {FEWEST} (to train on, to choose by and to test on); add images or "
            "leave that class out"
        )
    return stratified(labels, classes, TEST_SHARE, stream(0, "folder", "test"))
