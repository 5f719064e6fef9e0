"""How the cost of one iteration grows with N, images, width and image size.

One setting is varied at a time around N 20, 10 images, width 128, 32x32x3 (ConvNet-D3). Time of
ours (stored and reverse, compiled, float32) and the twin, in turns; peak memory above base of each
in its own process. Writes JSON and a plot beside it.

    python -m benchmarks.scaling                     # about ten minutes on one core
    python -m benchmarks.scaling --plot-only         # draw again from the JSON
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, machine
from benchmarks.unroll import peak
from benchmarks.walks import CASES, Case, Inputs, ours, theirs
from trajmatch.storage.files import read_json

WHO = ("stored", "reverse", "twin")
AXES: dict[str, tuple[int, ...]] = {
    "steps": (5, 20, 40),
    "images": (5, 10, 20),
    "width": (32, 64, 128),
    "size": (16, 32),
}
TINY: dict[str, tuple[int, ...]] = {
    "steps": (2, 4),
    "images": (2, 4),
    "width": (4, 8),
    "size": (8, 16),
}
AXIS_WORDS = {"steps": "student steps N", "images": "images", "width": "width", "size": "side, px"}
WHO_WORDS = {"stored": "ours, stored", "reverse": "ours, reverse", "twin": "plain twin"}
COLORS = {"stored": "#7fa8d1", "reverse": "#1f4e79", "twin": "#c8553d"}


def points(base: Case, axes: dict[str, tuple[int, ...]]) -> list[Case]:
    """Every setting once, `base` first."""
    varied = [replace(base, **{axis: value}) for axis, values in axes.items() for value in values]
    return list(dict.fromkeys([base, *varied]))


def measure(case: Case, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Median seconds of each contender, taken in turns, and its peak."""
    torch._dynamo.reset()  # or earlier points' compiled forms would count against the limit
    inputs = Inputs.draw(case, device)
    work: dict[str, Callable[[int], object]] = {"twin": theirs(case, inputs)}
    work |= {
        who: ours(case, inputs, method=who, compile=not args.quick)[0]
        for who in WHO
        if who != "twin"
    }
    times: dict[str, list[float]] = {who: [] for who in WHO}
    for number in range(args.warmup + args.repeats):
        for who in WHO:
            took = harness.seconds(work[who], number, device)
            if number >= args.warmup:
                times[who].append(took)
    row: dict[str, Any] = {"sizes": asdict(case)}
    row["seconds"] = {who: statistics.median(times[who]) for who in WHO}
    row["all_seconds"] = times
    if not args.no_memory:
        row["peak_mb"] = {
            who: peak(case, who, args, compile=who != "twin" and not args.quick) for who in WHO
        }
    return row


def along(found: dict[str, Any], axis: str) -> list[dict[str, Any]]:
    """The rows in which only `axis` differs from the base, in its order."""
    base = found["base"]
    others = [name for name in AXES if name != axis]
    rows = [r for r in found["rows"] if all(r["sizes"][n] == base[n] for n in others)]
    return sorted(rows, key=lambda row: int(row["sizes"][axis]))


def plot(found: dict[str, Any], path: Path) -> None:
    """Two rows of small charts: time over each setting, and memory over each; both axes are
    logarithmic, so that a slope is a power."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    kinds = [("seconds", "time of an iteration, s")]
    if "peak_mb" in found["rows"][0]:
        kinds.append(("peak_mb", "peak memory above base, MB"))
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, grid = pyplot.subplots(
            len(kinds), len(AXES), figsize=(10, 2.6 * len(kinds)), sharey="row", squeeze=False
        )
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        for line, (kind, words) in zip(grid, kinds, strict=True):
            for chart, axis in zip(line, AXES, strict=True):
                rows = along(found, axis)
                x = [row["sizes"][axis] for row in rows]
                for who in WHO:
                    y = [row[kind][who] for row in rows]
                    chart.plot(
                        x, y, marker="o", markersize=4, color=COLORS[who], label=WHO_WORDS[who],
                        linestyle="--" if who == "twin" else "-", linewidth=1.6,
                    )  # fmt: skip
                chart.set_xscale("log", base=2)
                chart.set_yscale("log")
                chart.set_xticks(x)
                chart.xaxis.set_minor_locator(NullLocator())
                chart.xaxis.set_major_formatter(plain)
                chart.yaxis.set_major_formatter(plain)
                chart.yaxis.set_minor_formatter(NullFormatter())
                chart.grid(axis="y", color="#e3e3e3", linewidth=0.8)
                chart.set_axisbelow(True)
                if kind == kinds[-1][0]:
                    chart.set_xlabel(AXIS_WORDS[axis])
            line[0].set_title(words, loc="left", fontsize=9, fontweight="bold")
        handles, names = grid[0][0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="upper right", ncols=len(names), frameon=False,
            bbox_to_anchor=(0.99, 1.0),
        )  # fmt: skip
        figure.tight_layout(rect=(0, 0, 1, 0.97))
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def show(found: dict[str, Any]) -> str:
    """A table: every setting, time and peak of each contender."""
    rows = []
    for row in found["rows"]:
        cells = [harness.ms(row["seconds"][who]) for who in WHO]
        cells += [f"{row['peak_mb'][who]:.0f}" for who in WHO] if "peak_mb" in row else [""] * 3
        rows.append([Case(**row["sizes"]).words(), *cells])
    head = ["iteration", *WHO, *(f"{who} MB" for who in WHO)]
    return "\n".join([machine.words(found["machine"]), "", harness.table(head, rows)])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    made = harness.parser("scaling", __doc__, repeats=3)
    made.add_argument("--plot", type=Path, help="PNG to write (scaling.png in benchmarks/)")
    made.add_argument("--plot-only", action="store_true", help="draw from the JSON of --out")
    made.set_defaults(warmup=1)
    args = made.parse_args(argv)
    device = harness.begin(args)
    path = args.plot or (None if args.quick else machine.ROOT / "benchmarks" / "scaling.png")
    if args.plot_only:
        found: dict[str, Any] = read_json(args.out or harness.RESULTS / "scaling.json")
    else:
        base, axes = CASES["iteration"], AXES
        if args.quick:
            base, axes = replace(base, depth=2, steps=2, images=2, width=4, size=8), TINY
        found = {"machine": machine.describe(device), "quick": args.quick, "base": asdict(base)}
        found["rows"] = []
        for case in points(base, axes):
            harness.say(case.words())
            found["rows"].append(measure(case, args, device))
        print(show(found))
        harness.write(args, "scaling", found)
    try:
        if path is not None:
            plot(found, path)
            harness.say(f"drawn: {path}")
    except ImportError:
        harness.say("no plot: matplotlib is missing (pip install 'trajmatch[report]')")
    return found


if __name__ == "__main__":
    main()
