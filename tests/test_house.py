"""The numbers that docs/architecture.md gives of the house, held to their limits."""

from __future__ import annotations

import ast
from pathlib import Path

import house

CROWDED = {
    # The names of its arguments are a contract since version 0.1.
    "unroll/segment.py:match_segment",
    # The verbs: what they work on, then one value for each thing that can be set.
    "pipeline/distill.py:distill",
    "pipeline/evaluate.py:evaluate",
    "data/sources/__init__.py:load_data",
    # The six arrays of three splits, then one value for each thing that can be set.
    "data/dataset.py:from_arrays",
    # One keyword for each entry of result.json.
    "storage/result.py:write_result",
}
"""Public functions with more than eight parameters, and why."""


def test_no_public_function_is_crowded() -> None:
    assert {function.place for function in house.crowded()} <= CROWDED


def test_a_function_fits_on_a_screen() -> None:
    assert [function.place for function in house.long_functions()] == []


def test_the_root_of_the_package_is_small() -> None:
    assert len(list(house.SOURCE.glob("*.py"))) <= 10


def test_no_identifier_has_a_retired_word() -> None:
    assert house.retired() == []


def test_the_measures_see_what_they_measure(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("def walk_home(a, b):\n    kept_set = 1\n    class SmallThing: ...\n")
    found = {name for name, _ in house.identifiers(file)}
    assert found == {"walk_home", "a", "b", "kept_set", "SmallThing"}
    assert {name for name in found if house.words(name) & house.RETIRED} == {
        "walk_home", "kept_set", "SmallThing",
    }  # fmt: skip
    assert max(function.lines for function in house.functions()) > 20
    assert ast.parse(file.read_text())
