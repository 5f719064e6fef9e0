"""Every module can be imported where a Unix-only part of the standard library is absent.

Windows itself is not tested; a meta-path blocker in a fresh interpreter stands for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trajmatch

SOURCE = Path(trajmatch.__file__).parent
UNIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios")

SCRIPT = """
import importlib, importlib.abc, os, select, signal, sys

# The libraries first: torch and its like have their own ways to do without, which are not ours to
# test, and some of them are not built for it on Linux.
import filelock, joblib, numpy, PIL.Image, platformdirs, rich.console, sklearn, torch, tyro, xxhash
import torch._dynamo, torch.func

unix_only = {unix_only!r}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in unix_only:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in unix_only:
    sys.modules.pop(name, None)
for place, name in [(select, "poll"), (signal, "SIGKILL"), (os, "sched_getaffinity")]:
    delattr(place, name)

for name in {modules!r}:
    importlib.import_module(name)
print(len([name for name in sys.modules if name.split(".")[0] == "trajmatch"]))
"""


def modules() -> list[str]:
    """Dotted names of all modules of the package; `__main__` would run."""
    names = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = list(path.relative_to(SOURCE.parent).with_suffix("").parts)
        if parts[-1] != "__main__":
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def run(names: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    environment.pop("TRAJMATCH_CHECK_SHAPES", None)
    script = SCRIPT.format(unix_only=UNIX_ONLY, modules=names)
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )


def test_every_module_imports_without_unix_only_modules() -> None:
    ended = run(modules())
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == len(modules()) > 150


@pytest.mark.slow
def test_a_module_that_needs_one_is_found() -> None:
    ended = run(["fcntl"])
    assert ended.returncode == 1
    assert "No module named 'fcntl'" in ended.stderr
