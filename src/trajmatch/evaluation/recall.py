"""Accuracy by class, and its mean over the classes, of networks that are tested."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from trajmatch.storage.results import Trained
from trajmatch.units import Real


def recalls(correct: Sequence[int], tests: Sequence[int]) -> list[Real | None]:
    """Percent of the images of each class that are classified correctly; None for a class without
    images.

    Examples:
        >>> recalls([198, 1, 0], [200, 4, 0])
        [99.0, 25.0, None]
    """
    return [100 * hits / n if n else None for hits, n in zip(correct, tests, strict=True)]


def by_class(results: Sequence[Trained], tests: Sequence[int]) -> dict[str, Any]:
    """The fields of a `Score` that are about classes.

    Only `tests` where a result has no counts (logs of version 0.1), or has counts that do not add
    up to its accuracy.

    Examples:
        >>> found = by_class([Trained(50.0, True, (2, 0)), Trained(75.0, True, (2, 1))], [2, 2])
        >>> found["per_class"], found["balanced"], round(found["balanced_sd"], 1)
        ((100.0, 25.0), 62.5, 17.7)
        >>> by_class([Trained(50.0, True)], [2, 2])
        {'tests': (2, 2)}
    """
    known: dict[str, Any] = {"tests": tuple(tests)}
    if not all(_agrees(result, tests) for result in results):
        return known
    each = [recalls(result.correct or (), tests) for result in results]
    balanced = [statistics.fmean(r for r in found if r is not None) for found in each]
    columns = zip(*each, strict=True)
    return {
        **known,
        "per_class": tuple(
            None if None in column else statistics.fmean(r for r in column if r is not None)
            for column in columns
        ),
        "balanced": statistics.fmean(balanced),
        "balanced_sd": statistics.stdev(balanced) if len(balanced) > 1 else None,
    }


def _agrees(result: Trained, tests: Sequence[int]) -> bool:
    correct = result.correct
    return (
        correct is not None
        and len(correct) == len(tests)
        and all(type(k) is int and 0 <= k <= n for k, n in zip(correct, tests, strict=True))
        and 100 * sum(correct) / sum(tests) == result.percent
    )
