"""`trajmatch report`: one self-contained HTML page of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trajmatch.cli.flags import Common, Positional
from trajmatch.config import check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Draw the page of a run: pictures, curves, scores and settings in one HTML file.

    It is drawn from the files of the run, during it or after it. What `trajmatch evaluate` has
    found out about the run's set in a folder inside it, such as RUN/evaluated, is a table over the
    networks.
    """

    run: Positional[Path]
    """Folder of a run, the --out of distill, select, evaluate, study or demo."""
    out: Path = Path("report.html")
    """The page; inside the run's folder unless a path is given."""

    def __post_init__(self) -> None:
        """Unlike other commands' --out, this one may be a file: the page of last time."""
        check_ranges(self)


def run(flags: Flags) -> None:
    from trajmatch.report import write_report

    default = flags.out == Path("report.html")
    page = write_report(flags.run, None if default else flags.out)
    print(f"page: {page}")
