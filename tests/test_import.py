"""Importing costs little: optional and heavy libraries wait until something needs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trajmatch

OPTIONAL = ("ray", "matplotlib", "jinja2", "datasets", "wandb", "tensorboard", "sklearn", "optuna")


def modules_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running `code`."""
    source = str(Path(trajmatch.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    environment.pop("TRAJMATCH_CHECK_SHAPES", None)
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return {name.partition(".")[0] for name in ended.stdout.splitlines()[-1].split()}


def test_import_is_cheap() -> None:
    loaded = modules_after("import trajmatch")
    assert "trajmatch" in loaded
    assert loaded.isdisjoint({*OPTIONAL, "torch"})


def test_the_command_line_answers_without_torch() -> None:
    code = "import contextlib, io\nfrom trajmatch.cli import main\n"
    quiet = "with contextlib.redirect_stdout(io.StringIO()):\n    main(['--help'])"
    loaded = modules_after(code + quiet)
    assert "tyro" in loaded
    assert loaded.isdisjoint({*OPTIONAL, "torch", "numpy", "PIL", "rich"})


def test_every_public_name_is_there_without_optional_libraries() -> None:
    """Also twice: a package of the same name, once imported, must not take the name over."""
    twice = (
        "import trajmatch\n"
        "for name in trajmatch.__all__ * 2:\n"
        "    value = getattr(trajmatch, name)\n"
        "    assert callable(value) or name == '__version__', (name, value)"
    )
    loaded = modules_after(twice)
    assert "torch" in loaded
    assert loaded.isdisjoint(OPTIONAL)


@pytest.mark.parametrize("name", ["no_such_name", "Distill"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(trajmatch, name)
