"""Methods side by side: the page of `trajmatch compare`, and its table as markdown."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from trajmatch.report.figures.points import Place, accuracy_words
from trajmatch.report.figures.scatter import CostPoint, Scatter
from trajmatch.report.pages.across import Across
from trajmatch.report.pages.sheet import Sheet, contact_sheet
from trajmatch.report.tables.scores import caveats
from trajmatch.report.tables.standings import StandingsTable
from trajmatch.storage.results import Score, StudyResult
from trajmatch.units import NBSP, Real, number, percent

_SOFT = (
    "Soft labels give each class a probability: those a set was made with or, of chosen real "
    "images, what trained experts say."
)
_LRS = (
    "LRS, the label-robust score of DD-Ranking (arXiv 2505.13300, w = 0.5), weighs equally how "
    "near a set under class labels comes to the experts, and what it gains over as many "
    "random images under labels of its own kind; higher is better."
)
_ARS = (
    "ARS, its augmentation-robust score, weighs equally what a set gains over as many random "
    "images with augmentation and without; a set that is worth as much as random images has 26.9."
)


def comparison_context(folder: Path, result: StudyResult) -> dict[str, Any]:
    """What the page of a comparison says beyond what that of any study does."""
    table = StandingsTable.of(result)
    sheet = _sheet(folder, result, table)
    return {
        "meta": _meta(result, table),
        "lead": _lead(table),
        "sweeps": table.sweeps,
        "standings": table,
        "groups": _groups(table),
        "full": None if table.full is None else _complete(table.full),
        "words": {ipc: per_class(ipc) for ipc in table.ipcs},
        "explained": _explained(table),
        "scatters": _scatters(table),
        "across": Across.of(result.cells, result.network or "–"),
        "sheet": sheet,
        "problems": sheet.problems if sheet is not None else (),
    }


def markdown_table(result: StudyResult) -> str:
    """The main table of a comparison in GitHub's markdown, below a line on n and seeds."""
    table = StandingsTable.of(result)
    heads = [
        f"{per_class(ipc)}: {column.title}" if column is table.columns[0] else column.title
        for ipc in table.ipcs
        for column in table.columns
    ]
    lines = [
        _plain(" ".join([table.counted(), table.about_full(), *caveats(result.scores)])),
        "",
        _line("method", heads),
        "|---|" + "---:|" * len(heads),
    ]
    for group in _groups(table):
        lines.append(_line(f"*{group['words']}*", [""] * len(heads)))
        for row in group["rows"]:
            cells = []
            for cell in row["cells"]:
                text = f"**{cell['text']}**" if cell["best"] else cell["text"]
                cells.append(f"{text} ({cell['apart']})" if cell["apart"] else text)
            lines.append(_line(_plain(row["method"]), cells))
    if table.full is not None:
        hard = [column.name == "hard" for _ in table.ipcs for column in table.columns]
        complete = _complete(table.full)
        lines.append(
            _line(f"*{table.full.label}*", [complete if is_hard else "" for is_hard in hard])
        )
    return "\n".join(lines).replace(NBSP, " ") + "\n"


def per_class(ipc: Place) -> str:
    """`10 images per class`."""
    return f"{_count(ipc)} image{'s' if ipc != 1 else ''} per class"


def _count(ipc: Place) -> str:
    return number(ipc) if isinstance(ipc, Real) else str(ipc)


def _groups(table: StandingsTable) -> list[dict[str, Any]]:
    """The table's rows, a cell for each column of each number of images."""
    best = table.best
    groups = []
    for words, methods in table.groups:
        rows = []
        for method, places in methods:
            cells: list[dict[str, Any]] = []
            for one in places:
                for column in table.columns:
                    text = "–" if one is None else column.say(one)
                    apart = "" if one is None else table.apart(one, column)
                    is_best = column.name == table.ranked and one is not None and one.place in best
                    first = column is table.columns[0]
                    cells.append({"text": text, "apart": apart, "best": is_best, "first": first})
            rows.append({"method": method, "cells": cells})
        groups.append({"words": words, "rows": rows})
    return groups


def _complete(full: Score) -> str:
    return percent(full.mean, full.sd)


def _explained(table: StandingsTable) -> list[str]:
    """What the columns mean, a sentence each."""
    said = {column.name for column in table.columns}
    parts = ["In bold: the highest accuracy under hard labels, which are the class alone."]
    if "validated" in said:
        parts = [
            "Validation: accuracy on validation images, under the labels that the set itself has; "
            "in bold the highest, which is what to choose by. All other accuracies are on test "
            "images; hard labels are the class alone.",
        ]
    if table.sweeps:
        parts.append(
            "Of several settings of one method, that of the highest validation accuracy is tested, "
            "and the others are not."
        )
    parts += [_SOFT] * ("soft" in said)
    parts += [_LRS] * ("lrs" in said)
    parts += [_ARS] * ("ars" in said)
    if "seconds" in said:
        over = ", the mean of the seeds," if table.several else ""
        parts.append(f"Making time{over} is without the training of experts.")
    if "bytes" in said:
        over = ", the largest of the seeds," if table.several else ""
        parts.append(f"Memory{over} is the peak above what the process used before.")
    return parts


def _scatters(table: StandingsTable) -> list[Scatter]:
    """Accuracy against making time and against memory, where these were measured."""
    found = []
    for name, column, words, unit, least in (
        ("time", "seconds", "making time, s", 1.0, 0.1),
        ("memory", "bytes", "peak memory, MB", 1e6, 1.0),
    ):
        series: dict[str, tuple[CostPoint, ...]] = {}
        for ipc in table.ipcs:
            points = []
            for one in table.standings:
                spent = one.seconds if column == "seconds" else one.bytes
                if one.ipc == ipc and one.hard.mean is not None and spent is not None:
                    at = {"ipc": one.ipc, "method": one.method}
                    points.append(CostPoint(one.method, at, spent / unit, one.hard))
            if points:
                series[per_class(ipc) if len(table.ipcs) > 1 else ""] = tuple(points)
        if series:
            title = f"Accuracy under hard labels, %, against {words.partition(',')[0]}"
            found.append(Scatter(name, title, column, words, series, least))
    return found


def _sheet(folder: Path, result: StudyResult, table: StandingsTable) -> Sheet | None:
    """The images of the first seed, all methods of a number of images together."""
    seed = min(cell.seed for cell in result.cells)
    # A folder of the study's own: a name is not a way out of it.
    places = [
        (per_class(ipc), one.method, folder / one.variant / f"seed{seed}" / "best")
        for ipc in table.ipcs
        for one in table.standings
        if one.ipc == ipc and Path(one.variant).name == one.variant
    ]
    return contact_sheet(places)


def _meta(result: StudyResult, table: StandingsTable) -> str:
    *most, last = map(_count, table.ipcs)
    count = len({one.method for one in table.standings})
    parts = [
        "" if result.data is None else result.data.name,
        f"{count} method{'s' if count != 1 else ''}",
        f"{', '.join(most)} and {last} images per class" if most else per_class(table.ipcs[0]),
        result.network,
        f"{result.seeds} seed{'s' if result.seeds != 1 else ''}",
    ]
    return " · ".join(filter(None, parts))


def _lead(table: StandingsTable) -> str:
    """The best methods for each number of images: `with 1 image per class dm, 62.1 ± 0.8 %`."""
    if table.ranked == "validated":
        return _validated_lead(table)
    parts = []
    for ipc in table.ipcs:
        best = [one for one in table.standings if one.place in table.best and one.ipc == ipc]
        if best:
            names = " and ".join(one.method for one in best)
            parts.append(f"with {per_class(ipc)} {names}, {accuracy_words(best[0].hard)}")
    return f"Highest under hard labels: {'; '.join(parts)}."


def _validated_lead(table: StandingsTable) -> str:
    """The best methods on validation images, with what they reach on test images."""
    parts = []
    for ipc in table.ipcs:
        best = [one for one in table.standings if one.place in table.best and one.ipc == ipc]
        if best:
            names = " and ".join(
                one.method
                + ("" if one.hard.mean is None else f" ({accuracy_words(one.hard)} on test images)")
                for one in best
            )
            parts.append(f"with {per_class(ipc)} {names}")
    return f"Highest on validation images: {'; '.join(parts)}."


def _line(name: str, cells: list[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


def _plain(text: str) -> str:
    """Any text as one line of markdown, or one cell of a table, that says just that."""
    plain = escape(" ".join(text.split()), quote=False)
    for sign in "\\`*_[]|":
        plain = plain.replace(sign, f"\\{sign}")
    return plain
