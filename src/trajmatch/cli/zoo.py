"""`trajmatch zoo`: the distilled sets that ship with the package."""

from __future__ import annotations

import dataclasses

from trajmatch.cli.flags import Common


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """List the distilled sets that ship with the package. Their names do for a folder in
    `trajmatch.load_distilled("NAME")`, `trajmatch evaluate NAME` and `trajmatch export NAME`.
    """


def run(flags: Flags) -> None:
    from trajmatch.synthetic import zoo

    if not zoo.names():
        print("no sets ship with this version")
        return
    rows = [["name", "data", "network", "ipc", "accuracy %", "n", "protocol", "made", "date"]]
    for name in zoo.names():
        card = zoo.card(name)
        score = {"accuracy %": zoo.accuracy_words(card), "n": card["accuracy"]["n"]}
        known = {**card, **score, "name": name}
        rows.append([str(known[column]) for column in rows[0]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
