"""Every example in the package's docstrings runs as it is written."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "trajmatch"


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [
    name_of(path)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


def test_there_are_examples() -> None:
    assert len(MODULES) >= 40


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "trajmatch":
            raise
        pytest.skip(f"needs {error.name}")
    monkeypatch.chdir(tmp_path)  # an example writes nothing into the working tree
    printed: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    written = sum(line.lstrip().startswith(">>>") for line in text.splitlines())
    assert sum(len(test.examples) for test in found) == written, "doctest does not find them all"
    failures = [test.name for test in found if runner.run(test, out=printed.append).failed]
    assert not failures, "".join(printed)
    assert list(tmp_path.iterdir()) == []
