"""Figures as values: the numbers behind one (`frame`), its drawing (`plot`), and that drawing
as part of a page (`svg`)."""

from __future__ import annotations

import base64
import csv
import io
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from trajmatch.report.figures.svg import inline_svg, markup
from trajmatch.report.figures.theme import INK, Layout, drawing, shown

Row = dict[str, Any]
"""One line of the table of numbers behind a figure."""

_CSV_ROWS = 2500
_TITLE = 26
"""Height of the title above a figure that stands alone."""
_DPI = 200


class Figure(ABC):
    """One figure: `title`, a `summary` in words (it serves as the alternative text), its numbers.

    `name` is a word usable in a file name. `plot` and `svg` raise MissingExtraError without
    matplotlib, which is imported only there.
    """

    name: str
    title: str
    kind: str = ""
    """A class for the page's style sheet, beside `chart`."""

    @abstractmethod
    def frame(self) -> list[Row]:
        """The numbers behind, a dict a row; `pandas.DataFrame(figure.frame())` takes them."""

    @abstractmethod
    def summary(self) -> str:
        """The main findings, in a sentence."""

    @abstractmethod
    def layout(self) -> Layout:
        """Its size and where its frame lies."""

    @abstractmethod
    def _draw(self, axes: Any) -> None:
        """Draw into matplotlib axes of any size."""

    def plot(self, axes: Any = None) -> Any:
        """Draw into `axes`, or into a new matplotlib `Figure` with the title above.

        Returns the `Figure`; its `.savefig(path)` writes a file for a paper.
        """
        with drawing():
            if axes is None:
                axes = _canvas(self.layout(), _TITLE, _DPI)
                title = textwrap.fill(shown(self.title), max(20, int(self.layout().width / 6.5)))
                axes.set_title(title, loc="left", fontsize=10, color=INK, pad=self.layout().top + 4)
            self._draw(axes)
            return axes.figure

    def svg(self) -> str:
        """The drawing as an inline SVG element, colored by the page's style sheet."""
        with drawing():
            axes = _canvas(self.layout(), 0, 72)
            self._draw(axes)
            label = f"{self.title}. {self.summary()}"
            classes = f"chart {self.kind}".strip()
            root = inline_svg(axes.figure, {"class": classes, "aria-label": shown(label)})
        self._finish(root)
        return markup(root)

    def _finish(self, root: Element) -> None:  # noqa: B027
        """Add to the page's SVG what only a page has, such as a cursor."""

    def thinned(self) -> tuple[list[Row], int]:
        """Rows for the page's CSV, at most 2500, and the stride they were taken with (1: all)."""
        rows = self.frame()
        stride = -(-len(rows) // _CSV_ROWS) if rows else 1
        return rows[::stride], stride

    def csv_url(self) -> str:
        """A data: address with the (thinned) rows as CSV, floats to six digits."""
        return csv_url(self.thinned()[0])


def csv_url(rows: Sequence[Row]) -> str:
    """A data: address with `rows`, which have the same keys, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    content = text.getvalue().encode(errors="backslashreplace")
    return "data:text/csv;base64," + base64.b64encode(content).decode()


def _canvas(layout: Layout, above: int, dpi: int) -> Any:
    """Axes in a new matplotlib figure, placed as `layout` says, below `above` points."""
    from matplotlib.figure import Figure as Canvas

    width, height = layout.width, layout.height + above
    canvas = Canvas(figsize=(width / 72, height / 72), dpi=dpi)
    canvas.patch.set_visible(above > 0)
    return canvas.add_axes(
        (
            layout.left / width,
            (layout.height - layout.bottom) / height,
            (layout.right - layout.left) / width,
            (layout.bottom - layout.top) / height,
        )
    )


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(map(_cell, value)) if isinstance(value, (list, tuple)) else value
