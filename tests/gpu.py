"""What tests of a CUDA device share: the device, their marks, and processes for compiled code."""

from __future__ import annotations

import contextlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

DEVICE = torch.device(os.environ.get("TRAJMATCH_GPU_TESTS_ON", "cuda"))
"""TRAJMATCH_GPU_TESTS_ON=cpu runs these tests without a GPU: do they fit the code they test?"""

MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"
    ),
]
"""For `pytestmark` of a test_*_gpu.py, which are the files that benchmarks/gpu.sh runs."""


def alone(check: Callable[[], None]) -> None:
    """Call a function of a test file in a process of its own: the compiler cannot trace this one's
    checks of shapes."""
    file = Path(inspect.getfile(check))
    folders = [str(file.parent), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", f"import {file.stem} as tests; tests.{check.__name__}()"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]


@contextlib.contextmanager
def no_synchronization() -> Iterator[None]:
    """A context in which an operation that makes the host wait for the GPU raises."""
    if DEVICE.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def close(found: torch.Tensor, wanted: torch.Tensor, rel: float) -> None:
    """Equal up to `rel` of the norm; `found` on the device under test, `wanted` anywhere."""
    assert found.device.type == DEVICE.type
    found, wanted = found.double().cpu(), wanted.double().cpu()
    assert found.shape == wanted.shape
    apart = float((found - wanted).norm() / wanted.norm())
    assert apart <= rel, f"relative error {apart:.2e}"


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of the angle between two tensors, in float64."""
    a, b = a.double().cpu().flatten(), b.double().cpu().flatten()
    return float(a @ b / (a.norm() * b.norm()))
