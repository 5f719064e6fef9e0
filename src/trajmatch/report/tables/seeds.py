"""Several seeds as one number: the mean and spread of their means."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from trajmatch.report.figures.figure import Row
from trajmatch.report.folder import mapping
from trajmatch.units import Real


def pooled(result: Mapping[str, Any]) -> list[Row]:
    """A row for each variant and place: {variant, at, settings, mean, sd, n, values, failed}.

    Of several seeds: mean and sd of the seeds' means, n seeds. Of one seed: what its cell holds. A
    mean of None: no cell succeeded. `failed` counts the variant's cells that did not.
    """
    several = has_several(result)
    broken = [cell["variant"] for cell in result["cells"] if cell.get("mean") is None]
    rows = [
        {
            "variant": cells[0]["variant"],
            "at": cells[0]["at"],
            "settings": cells[0]["settings"],
            **over_seeds([cell for cell in cells if cell.get("mean") is not None], several),
            "failed": broken.count(cells[0]["variant"]),
        }
        for cells in by_place(result["cells"])
    ]
    # Where a measure finds several places, a cell that failed has its variant's only.
    measured = {row["variant"] for row in rows if row["mean"] is not None}
    return [row for row in rows if row["mean"] is not None or row["variant"] not in measured]


def has_several(result: Mapping[str, Any]) -> bool:
    """Whether a study was asked for more than one seed."""
    return int(mapping(result["settings"]).get("seeds", 1)) > 1


def by_place(cells: Sequence[Row]) -> list[list[Row]]:
    """The cells of all seeds together, a list for each variant and place in the figure."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for cell in cells:
        groups.setdefault((cell["variant"], *cell["at"].items()), []).append(cell)
    return list(groups.values())


def over_seeds(scores: Sequence[Row], several: bool) -> Row:
    """{mean, sd, n, values} of one score a seed, each with mean and values.

    several: whether more than one seed was asked for, however many there are scores of.
    """
    if several:
        return mean_sd_n([score["mean"] for score in scores])
    return mean_sd_n([value for score in scores for value in score["values"]])


def mean_sd_n(values: Sequence[Real]) -> Row:
    """{mean, sd, n, values}: a mean of None for no value, an sd of None for fewer than two."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "values": list(values),
    }


def between(numbers: Sequence[int]) -> str:
    """`5`, or `4 to 5`."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return str(low) if low == high else f"{low} to {high}"
