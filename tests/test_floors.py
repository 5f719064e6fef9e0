"""The house stands on its floors: a file imports only what lies below it (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "trajmatch"
MAP = ROOT / "docs" / "architecture.md"

FLOORS: list[set[str]] = [
    {"_version", "errors", "plugins", "rng", "types", "units"},
    {"config", "runtime"},
    {"storage"},
    {"data", "networks"},
    {"unroll", "experts"},
    {"synthetic"},
    {"evaluation"},
    {"methods"},
    {"pipeline", "studies"},
    {"report"},
    {"__init__"},  # the front door: names everything below, and no file of ours needs it
    {"cli", "__main__"},
]
FLOOR_OF = {module: number for number, floor in enumerate(FLOORS) for module in floor}

Edges = dict[tuple[str, str], str]
"""(importing, imported) top-level modules, with the first line where that happens."""


def top_level(source: Path) -> set[str]:
    """Modules and packages of Python directly under the package; other folders hold data."""
    files = {path.stem for path in source.glob("*.py")}
    return files | {path.name for path in source.iterdir() if any(path.glob("**/*.py"))}


def imports(source: Path) -> Edges:
    """Every import of one top-level module by another, also inside functions."""
    edges: Edges = {}
    modules = top_level(source)
    for path in sorted(source.rglob("*.py")):
        here = path.relative_to(source).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in targets(node, here, modules):
                if target != here[0]:
                    place = f"{path.relative_to(source.parent)}:{getattr(node, 'lineno', 0)}"
                    edges.setdefault((here[0], target), place)
    return edges


def targets(node: ast.AST, here: tuple[str, ...], modules: set[str]) -> Iterator[str]:
    """The top-level modules of ours that one import statement in file `here` names."""
    start: list[str] = []
    if isinstance(node, ast.Import):
        dotted = [alias.name.split(".") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        # A package's __init__ and its files alike: one dot is the folder the file lies in.
        folder = ["trajmatch", *here][: len(here) - node.level + 1] if node.level else []
        start = [*folder, *(node.module.split(".") if node.module else [])]
        dotted = [[*start, alias.name] for alias in node.names]
    else:
        return
    for names in dotted:
        if names[0] != "trajmatch":
            continue
        inside = isinstance(node, ast.Import) or len(start) > 1 or names[1] in modules
        yield names[1] if inside and len(names) > 1 else "__init__"


def complaints(source: Path) -> list[str]:
    """What is wrong with the floors of the package at `source`; empty when they stand."""
    found = [
        f"'{module}' is on no floor: add it to FLOORS in tests/test_floors.py, on the lowest floor "
        "that stands above all it imports, and to docs/architecture.md"
        for module in sorted(top_level(source) - FLOOR_OF.keys())
    ]
    edges = {edge: place for edge, place in imports(source).items() if FLOOR_OF.keys() >= set(edge)}
    for (importing, imported), place in edges.items():
        if FLOOR_OF[imported] > FLOOR_OF[importing]:
            what = f"'{imported}', which lies above it"
            if imported == "__init__":
                what = "the front door; import a name from its home"
            found.append(f"{place}: '{importing}' imports {what}")
    level: dict[str, set[str]] = {}
    for importing, imported in edges:
        if FLOOR_OF[imported] == FLOOR_OF[importing]:
            level.setdefault(importing, set()).add(imported)
    try:
        TopologicalSorter(level).prepare()
    except CycleError as error:
        found.append(f"modules of one floor import each other in a circle: {error.args[1]}")
    return found


def test_the_floors_stand() -> None:
    assert complaints(SOURCE) == []


def test_the_map_covers_every_file() -> None:
    """The check above looks at imports; this one that it saw them at all."""
    edges = imports(SOURCE)
    assert ("config", "errors") in edges
    assert ("__init__", "data") in edges


# -- the check itself can fail -------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Path:
    source = tmp_path / "trajmatch"
    for name in ("data", "experts"):
        (source / name).mkdir(parents=True)
        (source / name / "__init__.py").write_text("")
    for name in ("__init__", "errors", "plugins", "rng", "config"):
        (source / f"{name}.py").write_text("")
    (source / "recipes").mkdir()
    (source / "recipes" / "digits.toml").write_text("")
    return source


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("experts/train.py", "from trajmatch.data.dataset import Split\nimport trajmatch.rng"),
        ("experts/train.py", "from trajmatch import rng\nimport torch"),
        ("experts/train.py", "from ..data import Split\nfrom . import library"),
        ("config.py", "def f():\n    from trajmatch.errors import SettingError"),
        ("rng.py", "from .errors import SettingError"),
        ("__init__.py", "from trajmatch.experts import open_experts"),
    ],
)
def test_imports_downwards_are_fine(house: Path, file: str, text: str) -> None:
    (house / file).write_text(text)
    assert complaints(house) == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("rng.py", "import trajmatch.data.dataset", "rng.py:1: 'rng' imports 'data'"),
        ("rng.py", "\nfrom trajmatch import config", "rng.py:2: 'rng' imports 'config'"),
        ("data/whiten.py", "from trajmatch.experts import x", "'data' imports 'experts'"),
        ("data/whiten.py", "from ..experts.train import x", "'data' imports 'experts'"),
        ("data/sources.py", "def f():\n    from .. import experts", "'data' imports 'experts'"),
        ("data/sources.py", "from trajmatch import load_data", "'data' imports the front door"),
        ("data/sources.py", "import trajmatch", "'data' imports the front door"),
        ("utils.py", "", "'utils' is on no floor: add it to FLOORS"),
    ],
)
def test_imports_upwards_are_told_with_their_line(
    house: Path, file: str, text: str, said: str
) -> None:
    (house / file).write_text(text)
    told = complaints(house)
    assert len(told) == 1
    assert said in told[0]


def test_a_circle_on_one_floor_is_told(house: Path) -> None:
    (house / "rng.py").write_text("from trajmatch.errors import x")
    assert complaints(house) == []
    (house / "errors.py").write_text("from trajmatch.rng import y")
    assert ["circle" in told for told in complaints(house)] == [True]


# -- the map -------------------------------------------------------------------------------------


def missing_from_disk(text: str, root: Path) -> list[str]:
    """Files, folders and modules of ours that a page names and that do not exist.

    Looked at: `something.py` anywhere (a bare name may lie in any folder), paths that begin with
    src/, `trajmatch.module`, and `folder/` at the start of a line of a tree under src/trajmatch.
    """
    source = root / "src" / "trajmatch"
    named = set(re.findall(r"(?<![\w./-])(?:[\w-]+/)*\w+\.py\b", text))
    named |= set(re.findall(r"(?<![\w./-])src/[\w./-]*\w", text))
    lost = []
    for name in sorted(named):
        homes = (root / name, source / name)
        beside = "/" not in name and any(source.rglob(name))
        if not beside and not any(home.exists() for home in homes):
            lost.append(name)
    public = ast.parse((source / "__init__.py").read_text(encoding="utf-8"))
    words = {node.value for node in ast.walk(public) if isinstance(node, ast.Constant)}
    known = top_level(source) | words
    modules = sorted(set(re.findall(r"(?<![\w./-])trajmatch\.(\w+)", text)))
    lost += [f"trajmatch.{name}" for name in modules if name not in known]
    for tree in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if tree.lstrip().startswith("src/trajmatch"):
            folders = re.findall(r"^[\s│├└─|`-]*(\w+)/", tree, re.MULTILINE)
            lost += [
                f"{name}/"
                for name in folders
                if name != "src" and not any(path.is_dir() for path in source.rglob(name))
            ]
    return lost


def test_the_map_names_only_what_exists() -> None:
    if not MAP.exists():
        pytest.skip("docs/architecture.md is not written yet")
    assert missing_from_disk(MAP.read_text(encoding="utf-8"), ROOT) == []


def test_a_map_that_lies_is_told(house: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "src").mkdir(parents=True)
    house.rename(root / "src" / "trajmatch")
    text = (
        "`config.py` and errors.py, `trajmatch.rng`, experts/gone.py, `gone.py`, "
        "src/trajmatch/data, src/trajmatch/lost, `trajmatch.nowhere`.\n"
        "```\nsrc/trajmatch/\n  data/   real\n  attic/  not\n     whiten.py  not\n```\n"
        "```\nout/\n  best/  a run's folder, not ours\n```\n"
    )
    assert missing_from_disk(text, root) == [
        "experts/gone.py", "gone.py", "src/trajmatch/lost", "whiten.py",
        "trajmatch.nowhere", "attic/",
    ]  # fmt: skip


# -- links ---------------------------------------------------------------------------------------

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_between_pages_and_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
