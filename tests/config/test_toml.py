"""Settings written as TOML read back as they were."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajmatch.config import DistillConfig, TorchOptimizer, to_toml
from trajmatch.config.recipes import recipe_names
from trajmatch.methods import METHODS, MTT
from trajmatch.pipeline.recipe import Recipe, load_recipe

TEXT = st.text(st.characters(codec="utf-8"))
PLAIN = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), TEXT)
VALUES: Any = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)


@settings(max_examples=40)
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_any_values_are_read_back(values: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(values)) == values


def test_what_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="None has no form"):
        to_toml({"a": None})


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_read_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "own.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_read_back(name: str, tmp_path: Path) -> None:
    """Also without augmentation, which reads "none", and with an optimizer of torch.optim."""
    distill = DistillConfig(optimizer=TorchOptimizer("AdamW", (("weight_decay", 0.01),)))
    recipe = Recipe(name='own "one"\n', distill=distill, method=METHODS[name]())
    path = tmp_path / "own.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe
    bare = dataclasses.replace(recipe, method=MTT(augment=None))
    path.write_text(bare.to_toml(), encoding="utf-8")
    found = load_recipe(str(path)).method
    assert found.augmentation is None
