"""Several seeds as one number: the mean and spread of their means."""

from __future__ import annotations

from collections.abc import Sequence

from trajmatch.report.figures.points import Point
from trajmatch.storage.results import Cell, Sample, Score, StudyResult


def pooled(result: StudyResult) -> list[Point]:
    """A point for each variant and place.

    Of several seeds: mean and sd of the seeds' means, n seeds. Of one seed: the sample of its cell.
    """
    several = result.seeds > 1
    broken = [cell.variant for cell in result.cells if cell.sample is None and not cell.untested]
    points = [
        Point(
            variant=cells[0].variant,
            at=cells[0].at,
            settings=cells[0].settings,
            sample=over_seeds([cell.sample for cell in cells if cell.sample is not None], several),
            failed=broken.count(cells[0].variant),
            untested=any(cell.untested for cell in cells),
        )
        for cells in by_place(result.cells)
    ]
    # Where a measure finds several places, a cell that failed has its variant's only.
    measured = {point.variant for point in points if point.done}
    return [point for point in points if point.done or point.variant not in measured]


def by_place(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of all seeds together, a list for each variant and place in the figure."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.variant, *cell.at.items()), []).append(cell)
    return list(groups.values())


def over_seeds(samples: Sequence[Sample | Score], several: bool) -> Sample:
    """One sample or score a seed as one sample.

    several: whether the study has more than one seed, even if only one of them succeeded.
    """
    if several:
        return Sample.of([one.mean for one in samples if one.mean is not None])
    if len(samples) == 1:
        (only,) = samples
        return Sample(only.mean, only.sd, only.n, only.values)
    return Sample.of([value for one in samples for value in one.values])


def between(numbers: Sequence[int]) -> str:
    """`5`, or `4 to 5`.

    Examples:
        >>> between([5, 4, 5])
        '4 to 5'
    """
    low, high = min(numbers, default=0), max(numbers, default=0)
    return str(low) if low == high else f"{low} to {high}"
