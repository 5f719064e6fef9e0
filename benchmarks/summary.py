"""The results section of benchmarks/README.md, written from the JSON of the benchmarks.

    python -m benchmarks.summary

Between two markers: what is asked of each piece of work beside what was measured, then every table.
What was not measured says so; runs with --quick are not results and do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness, limit, machine
from benchmarks.walks import Case
from trajmatch.storage.files import atomic_write, read_json

README = machine.ROOT / "benchmarks" / "README.md"
BEGIN = "<!-- results: written by `python -m benchmarks.summary`, do not edit -->"
END = "<!-- /results -->"
NAMES = ("limit", "unroll", "experts", "library", "evaluate", "grouped", "precision", "scaling")
NOT_YET = "not yet measured"

Row = dict[str, Any]
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Goal:
    """What is asked of one piece of work: at most `limit`."""

    work: str
    limit: float
    unit: str
    benchmark: str
    rows: Callable[[dict[str, Any]], list[Row]]
    value: Callable[[Row], float]

    def cells(self, results: Results) -> list[str]:
        """Cells of a table: the best of the forms that were measured, and whether it is enough."""
        asked = f"at most {self.limit:g}{self.unit}"
        found_in = of_benchmark(self.benchmark, results)
        if not found_in:
            return [self.work, asked, NOT_YET, ""]
        rows = [row for result in found_in for row in self.rows(result)]
        if not rows:
            return [self.work, asked, "not measured on this machine", ""]
        best = min(rows, key=self.value)
        found = self.value(best)
        form = ""
        if "compile" in best:
            form = f", {best['precision']} {'compiled' if best['compile'] else 'eager'}"
        met = "met" if found <= self.limit else "**not met**"
        return [self.work, asked, f"{found:.3g}{self.unit}{form}", met]


def _of(table: str, **wanted: Any) -> Callable[[dict[str, Any]], list[Row]]:
    """The rows of a result's table with these entries."""

    def rows(found: dict[str, Any]) -> list[Row]:
        return [r for r in found[table] if all(r.get(k) == v for k, v in wanted.items())]

    return rows


def _with(entry: str, rows: Callable[[dict[str, Any]], list[Row]]) -> Callable[..., list[Row]]:
    """Of these rows, those that have `entry` (peaks may have been left out)."""
    return lambda found: [row for row in rows(found) if entry in row]


def _ratio(row: Row) -> float:
    return float(row["ratio"]["median"])


def _iteration(method: str, precision: str) -> Callable[[dict[str, Any]], list[Row]]:
    return _of("times", case="iteration", method=method, precision=precision)


def _memory(case: str) -> Callable[[dict[str, Any]], list[Row]]:
    return _of("memory", case=case, method="reverse")


def _peak_ratio(row: Row) -> float:
    return float(row["ratio"])


def _limit(work: str, precision: str) -> Callable[[dict[str, Any]], list[Row]]:
    return lambda found: [
        row
        for row in _of("rows", work=work, precision=precision)(found)
        if found["machine"]["threads"] == 1
    ]


def _median(name: str) -> Callable[[Row], float]:
    return lambda row: float(row[name]["median"])


GOALS = (
    Goal(
        "iteration, bf16, over its convolutions (3.0 with AMX)", 1.6, "x", "limit",
        _limit("iteration", "bf16"), _median("limit"),
    ),
    Goal(
        "iteration, float32, over its convolutions", 1.4, "x", "limit",
        _limit("iteration", "float32"), _median("limit"),
    ),
    Goal(
        "iteration, bf16, against the twin (0.15 with AMX)", 0.30, "x", "limit",
        _limit("iteration", "bf16"), _median("twin"),
    ),
    Goal(
        "iteration of 50 images a step, bf16, over its convolutions", 1.6, "x", "limit",
        _limit("ipc10", "bf16"), _median("limit"),
    ),
    Goal(
        "expert, bf16, over its convolutions (2.5 with AMX)", 1.6, "x", "limit",
        _limit("expert", "bf16"), _median("limit"),
    ),
    Goal(
        "5 fresh networks on 10 images, bf16, against float32 compiled", 0.5, "x", "limit",
        _limit("evaluation", "bf16"), _median("before"),
    ),
    Goal(
        "the same in float32", 0.5, "x", "limit",
        _limit("evaluation", "float32"), _median("before"),
    ),
    Goal(
        "one iteration, auto, bf16: time", 0.60, "x", "unroll", _iteration("auto", "bf16"), _ratio
    ),
    Goal(
        "one iteration, auto, float32: time", 0.95, "x", "unroll",
        _iteration("auto", "float32"), _ratio,
    ),
    Goal(
        "one iteration, reverse, bf16: time", 0.70, "x", "unroll",
        _iteration("reverse", "bf16"), _ratio,
    ),
    Goal(
        "one iteration, reverse: peak memory", 0.25, "x", "unroll",
        _memory("iteration"), _peak_ratio,
    ),
    Goal(
        "N 50, 100 images, reverse: peak memory", 0.05, "x", "unroll",
        _memory("long"), _peak_ratio,
    ),
    Goal(
        "the same, against N 10 and the stored vectors", 1.1, "x", "unroll",
        _with("ratio_to_short", _memory("long")), lambda row: float(row["ratio_to_short"]),
    ),
    Goal(
        "the digits demo's iteration: time", 0.35, "x", "unroll",
        _of("times", case="digits", method="auto"), _ratio,
    ),
    Goal("expert epoch, bf16: time", 0.40, "x", "experts", _of("times", precision="bf16"), _ratio),
    Goal(
        "expert epoch, float32: time", 0.75, "x", "experts",
        _of("times", precision="float32"), _ratio,
    ),
    Goal("open a library, 1,000 segments: time", 0.05, "x", "library", _of("times"), _ratio),
    Goal(
        "open a library, 1,000 segments: memory", 50, " MB", "library",
        _with("ours_mb", _of("times")), lambda row: float(row["ours_mb"]),
    ),
)  # fmt: skip


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def _timing(rows: list[tuple[str, Row]], extra: dict[str, Callable[[Row], str]]) -> str:
    head = [*harness.TIMING_HEAD, *extra]
    return markdown(
        head,
        [
            [name, *harness.timing_cells(row), *(cell(row) for cell in extra.values())]
            for name, row in rows
        ],
    )


def _form(row: Row) -> str:
    return f"{row['case']}, {row['method']}, {row['precision']}, " + (
        "compiled" if row["compile"] else "eager"
    )


def _mb(who: str) -> Callable[[Row], str]:
    return lambda row: harness.peak_cells(row)[("ours", "twin").index(who)]


def limit_part(found: dict[str, Any]) -> str:
    return markdown(limit.HEAD, [limit.cells(row) for row in found["rows"]])


def unroll_part(found: dict[str, Any]) -> str:
    shares: dict[str, Callable[[Row], str]] = {
        "in convolutions": lambda row: f"{row['profile']['convolution_share']:.0%}",
        "GFLOP/s": lambda row: f"{row['profile']['gflops']:.0f}",
        "of machine's best": lambda row: f"{row['profile']['of_best']:.0%}",
    }
    parts = [_timing([(_form(row), row) for row in found["times"]], shares)]
    if found["memory"]:
        peaks = [
            [_form(row), *harness.peak_cells(row), f"{row['ratio']:.3f}", row["twin_how"]]
            for row in found["memory"]
        ]
        parts.append(markdown(["peak above base", "ours MB", "twin MB", "ratio", "twin"], peaks))
    parts.append("Where the time goes, in a run under the profiler:")
    profiles = [(_form(row), row["profile"]) for row in found["times"]]
    profiles += [(f"{row['case']}, twin", row["profile"]) for row in found["twins"]]
    groups = sorted({group for _, profile in profiles for group in profile["groups"]})
    cells = [
        [name, *(f"{profile['groups'].get(g, 0) / profile['seconds']:.0%}" for g in groups)]
        for name, profile in profiles
    ]
    parts.append(markdown(["work", *groups], cells))
    return "\n\n".join(parts)


def experts_part(found: dict[str, Any]) -> str:
    rows = [(f"{row['images']} images, {row['precision']}", row) for row in found["times"]]
    rate: Callable[[Row], str] = lambda row: f"{row['ours_images_per_s']:,.0f}"  # noqa: E731
    return _timing(rows, {"images/s": rate, "ours MB": _mb("ours"), "twin MB": _mb("twin")})


def library_part(found: dict[str, Any]) -> str:
    rows = [
        (f"{r['experts']} experts of {r['epochs']} epochs, P {r['params']:,}", r)
        for r in found["times"]
    ]
    twins: Callable[[Row], str] = lambda row: str(row["twin_how"])  # noqa: E731
    return _timing(rows, {"ours MB": _mb("ours"), "twin MB": _mb("twin"), "twin": twins})


def evaluate_part(found: dict[str, Any]) -> str:
    rows = []
    for row in found["times"]:
        s = row["sizes"]
        name = f"{row['case']}: {s['networks']} networks, {s['epochs']} epochs, width {s['width']}"
        rows.append((name, row))
    return _timing(rows, {})


def grouped_part(found: dict[str, Any]) -> str:
    return _timing([(f"{r['precision']}, over {r['over']}", r) for r in found["times"]], {})


def precision_part(found: dict[str, Any]) -> str:
    about = (
        f"{found['network']}, N {found['steps']}, {found['images']} images, step size "
        f"{found['step_size']:g}, {found['segments']} segments of {found['expert_epochs']} epochs "
        f"that start before epoch {found['max_start_epoch']}; {found['origin']}."
    )
    rows = [
        [
            f"{row['precision']}, {'compiled' if row['compile'] else 'eager'}",
            f"{row['cosine']['median']:.6f}",
            f"{row['cosine']['low']:.6f}",
            f"{row['norm_ratio']['median']:.4f}",
            f"{row['norm_ratio']['low']:.4f}-{row['norm_ratio']['high']:.4f}",
            f"{row['loss_apart']['median']:.1e}",
            f"{row['step_size_apart']['median']:.1e}",
        ]
        for row in found["rows"]
    ]
    head = [
        "precision",
        "cosine",
        "worst",
        "norm ratio",
        "range",
        "loss, rel.",
        "d alpha, rel.",
    ]
    return f"{about}\n\n{markdown(head, rows)}"


def scaling_part(found: dict[str, Any]) -> str:
    who = list(found["rows"][0]["seconds"])
    rows = []
    for row in found["rows"]:
        peaks = [f"{row['peak_mb'][w]:,.0f}" for w in who] if "peak_mb" in row else [""] * len(who)
        times = [harness.ms(row["seconds"][w]) for w in who]
        rows.append([Case(**row["sizes"]).words(), *times, *peaks])
    head = ["iteration", *who, *(f"{w} MB" for w in who)]
    return f"![cost of an iteration](scaling.png)\n\n{markdown(head, rows)}"


PARTS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "limit": ("How near the limit", limit_part),
    "unroll": ("One iteration", unroll_part),
    "experts": ("One expert epoch", experts_part),
    "library": ("A library of experts", library_part),
    "evaluate": ("Evaluating a small set", evaluate_part),
    "grouped": ("Five networks as one grouped convolution", grouped_part),
    "precision": ("Precision of the gradient", precision_part),
    "scaling": ("How cost grows", scaling_part),
}


def section(results: Results) -> str:
    """The whole section, in Markdown."""
    parts = ["### What is asked, and what was measured"]
    parts.append(markdown(["work", "asked", "measured", ""], [g.cells(results) for g in GOALS]))
    parts.append("Ratios: medians of pairs against the twin, of the best form that was measured.")
    for name, (title, part) in PARTS.items():
        parts.append(f"### {title}")
        found = of_benchmark(name, results)
        if not found:
            parts.append(f"{NOT_YET}: `python -m benchmarks.{name}`")
        for result in found:
            parts += [machine.words(result["machine"]), part(result)]
    return "\n\n".join(parts)


def of_benchmark(name: str, results: Results) -> list[dict[str, Any]]:
    """All results of a benchmark: <name>, then <name>-<what or where>."""
    return [result for key, result in results.items() if key.partition("-")[0] == name]


def read_results(folder: Path) -> Results:
    """The results there are, without those of --quick: of each benchmark <name>.json, then what it
    measured at another time or place, <name>-<which>.json."""
    paths = [
        path
        for name in NAMES
        for path in [folder / f"{name}.json", *sorted(folder.glob(f"{name}-*.json"))]
    ]
    found = {path.stem: read_json(path) for path in paths if path.exists()}
    return {name: result for name, result in found.items() if not result["quick"]}


def rewrite(readme: Path, results: Results) -> None:
    """Replace what is between the markers of `readme`."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme} lacks the markers {BEGIN} and {END}; put them back")
    with atomic_write(readme) as partial:
        partial.write_text(
            f"{before}{BEGIN}\n\n{section(results)}\n\n{END}{after}", encoding="utf-8"
        )


def main(argv: list[str] | None = None) -> None:
    made = argparse.ArgumentParser(prog="python -m benchmarks.summary", description=__doc__)
    made.add_argument("--results", type=Path, default=harness.RESULTS, help="folder of the JSON")
    made.add_argument("--readme", type=Path, default=README)
    args = made.parse_args(argv)
    results = read_results(args.results)
    rewrite(args.readme, results)
    harness.say(f"{args.readme}: {', '.join(results) or 'no results yet'}")


if __name__ == "__main__":
    main()
