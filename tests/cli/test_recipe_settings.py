"""Settings of a recipe, by its name or as a file, for every command that takes --config."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from trajmatch import cli
from trajmatch.cli.flags import Common, parse
from trajmatch.config.recipes import recipe_text
from trajmatch.pipeline.recipe import load_recipe

NAME = "cifar10-ipc10"
COMMANDS = ["experts", "distill", "select", "evaluate runs/set", "compare", "study init"]


def flags_of(line: str) -> Any:
    command, *words = line.split()
    flags = parse(cli.COMMANDS[command].flags, words, program=command, description="")
    assert isinstance(flags, Common)
    return flags


@pytest.mark.parametrize("line", COMMANDS)
def test_a_recipe_is_taken_by_name_as_well_as_from_a_file(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(recipe_text(NAME), encoding="utf-8")
    named, filed = (flags_of(f"{line} --config {one}") for one in (NAME, "mine.toml"))
    assert dataclasses.asdict(named) | {"config": None} == dataclasses.asdict(filed) | {
        "config": None
    }
    assert named.data == load_recipe(NAME).data


def test_a_coreset_takes_the_number_of_images_and_not_the_method_of_a_recipe() -> None:
    chosen = flags_of(f"select --config {NAME}")
    assert (chosen.method, chosen.ipc) == ("random", 10)
    assert chosen.evaluate == load_recipe(NAME).evaluate
    chosen = flags_of(f"select --config {NAME} --method herding --ipc 3")
    assert (chosen.method, chosen.ipc) == ("herding", 3)


@pytest.mark.parametrize("line", COMMANDS)
def test_an_unknown_recipe_is_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*line.split(), "--config", "cifar10-ipc11"]) == 2
    said = capsys.readouterr().err
    assert "unknown recipe 'cifar10-ipc11'; did you mean 'cifar10-ipc1" in said
    assert said.count("\n") == 1
