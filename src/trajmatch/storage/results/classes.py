"""Images per class of a split, and what they mean for an accuracy."""

from __future__ import annotations

from collections.abc import Sequence

IMBALANCED = 1.5
"""Largest class / smallest class above which accuracy alone does not describe a result."""


def present(counts: Sequence[int]) -> int:
    """Classes that have an image.

    Examples:
        >>> present([10, 0, 4])
        2
    """
    return sum(count > 0 for count in counts)


def majority(counts: Sequence[int]) -> float:
    """Share of the largest class in percent: the accuracy of always answering that class.

    Examples:
        >>> majority([30, 10])
        75.0
    """
    return 100 * max(counts) / sum(counts)


def is_imbalanced(counts: Sequence[int]) -> bool:
    """Whether the largest class has over `IMBALANCED` times the images of the smallest one present.

    Examples:
        >>> is_imbalanced([200, 4]), is_imbalanced([50, 40, 0]), is_imbalanced([])
        (True, False, False)
    """
    found = [count for count in counts if count > 0]
    return bool(found) and max(found) > IMBALANCED * min(found)
