"""Measures how the house is built; test_house.py holds the numbers to their limits.

`python tests/house.py` prints those of docs/architecture.md.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "trajmatch"

ROWS = r"(?:dict|Mapping)\[str, Any\]|\bRow\b"
MOST_PARAMETERS = 8
MOST_LINES = 60
RETIRED = frozenset(
    """walk walker walked walking question maker makers ground companion opinion carried decisions
    pull pulled kept held told seen piece pieces passes judge judged judging rounds trial gain whole
    choosing scoring made small inducing siamese recording ask asked""".split()  # noqa: SIM905
)
"""Words of the first edition that no identifier has any more (the left column of the migration
table in CHANGELOG.md). As text, in file formats and names of random streams, some remain."""


@dataclass(frozen=True)
class Function:
    """A function or method of the package."""

    place: str
    """`pipeline/distill.py:distill`."""
    public: bool
    parameters: int
    """Without self and cls."""
    lines: int


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def functions() -> Iterator[Function]:
    """Every function; one inside another counts as part of it as well."""
    for path in files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                yield Function(
                    f"{path.relative_to(SOURCE)}:{node.name}",
                    not node.name.startswith("_"),
                    count,
                    (node.end_lineno or node.lineno) - node.lineno + 1,
                )


def identifiers(path: Path) -> Iterator[tuple[str, int]]:
    """Names that the file gives to things: functions, classes, parameters, variables, fields."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def words(identifier: str) -> set[str]:
    """`_small_sets` and `SmallSet` -> {"small", "set(s)"}."""
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", identifier)
    return {word.lower() for word in split.split("_") if word}


def retired() -> list[str]:
    """Places of identifiers with a retired word."""
    return [
        f"{path.relative_to(SOURCE)}:{line}: {name}"
        for path in files()
        for name, line in sorted(set(identifiers(path)), key=lambda pair: pair[1])
        if words(name) & RETIRED
    ]


def crowded() -> list[Function]:
    """Public functions with too many parameters."""
    return [f for f in functions() if f.public and f.parameters > MOST_PARAMETERS]


def long_functions() -> list[Function]:
    return [f for f in functions() if f.lines > MOST_LINES]


def patches() -> int:
    """Replacements of the package's own internals in tests, not of other libraries'."""
    own = re.compile(
        r"(?:monkeypatch|patch)\.setattr\(\s*(\"trajmatch|[a-z_]+(?:\.[a-z_]+)*,\s*\"[A-Za-z_])"
    )
    foreign = re.compile(r"setattr\(\s*(?:\"os\.|os|sys|torch|socket|builtins|\"shutil|time|np)\b")
    count = 0
    for path in (ROOT / "tests").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            count += bool(own.search(line)) and not foreign.search(line)
    return count


def table() -> list[tuple[str, str]]:
    """The numbers, with their names."""
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in files()]
    report = "\n".join(p.read_text(encoding="utf-8") for p in (SOURCE / "report").rglob("*.py"))
    counts = list(functions())
    return [
        ("files", f"{len(lengths)}"),
        ("lines", f"{sum(lengths):,}"),
        ("lines of a file, median / longest", f"{statistics.median(lengths):.0f} / {max(lengths)}"),
        ("files at the root of the package", f"{len(list(SOURCE.glob('*.py')))}"),
        ("functions with more than 7 parameters", f"{sum(f.parameters > 7 for f in counts)}"),
        ("public functions with more than 8", f"{len(crowded())}"),
        ("functions longer than 60 lines", f"{len(long_functions())}"),
        ("identifiers with a retired word", f"{len(retired())}"),
        ("untyped rows in report/", f"{len(re.findall(ROWS, report))}"),
        ("patches of internals in tests", f"{patches()}"),
    ]


if __name__ == "__main__":
    for name, value in table():
        print(f"{name:<42}  {value}")
    for function in (*crowded(), *long_functions()):
        print(f"  {function.place}: {function.parameters} parameters, {function.lines} lines")
    for place in retired():
        print(f"  {place}")
