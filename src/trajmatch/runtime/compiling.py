"""When a function goes through torch.compile, and what happens where the compiler does not work.

The compiler takes tens of seconds once a run (seconds when its cache on disk has the code) and
saves a share of every call after that. Whether it pays is a function of the work alone, not of a
measurement, so that a resumed run and every worker decide alike.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger("trajmatch")

WORTH_SECONDS = 180.0
"""Expected seconds of eager work on one core from which compiling pays."""
CALL_SECONDS = 1e-3
"""What one eager pass of a network costs however little it computes."""
FLOP_PER_SECOND = 1e11
"""What one core of a CPU computes. Neither figure need be right: they set where 'auto' turns."""

FORMS: dict[str, dict[str, Any]] = {
    "cuda": {"mode": "reduce-overhead"},
    # Calls between kernels from C++ instead of Python: a tenth of a small network's time.
    "cpu": {"options": {"cpp_wrapper": True}},
}

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Work:
    """How much a run will ask of a network."""

    calls: int
    flop: int

    def times(self, runs: int) -> Work:
        """As many such runs."""
        return Work(self.calls * runs, self.flop * runs)


def wanted(choice: str, work: Work) -> bool:
    """Whether to compile; "auto" decides by what the work would take eagerly."""
    if choice == "auto":
        return work.calls * CALL_SECONDS + work.flop / FLOP_PER_SECOND >= WORTH_SECONDS
    return choice == "yes"


def forward_flop(module: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Operations of one image's way through the convolutions and products of `module`."""
    first = next(module.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(first.new_zeros(1, *image_shape))
    return int(counter.get_total_flops())


def compiled(function: F, note: Callable[[str], None] = log.info) -> F:
    """`function` through torch.compile, one compilation a shape. If the compiler fails (none is
    installed, it does not know an operator), one line says so and `function` goes on as it was.

    On CUDA the compiled code is recorded as a CUDA graph and replayed, so that nothing waits for
    the host to start kernels. A graph's results lie in memory that its next replay overwrites, so
    they are copied: what this returns is the caller's own.

    note: hears "compiling ..." before the first call, once a process.
    """
    fast: dict[str, Callable[..., Any]] = {}
    failed = False

    def call(*arguments: Any) -> Any:
        nonlocal failed
        if failed:
            return function(*arguments)
        kind = arguments[0].device.type
        if kind not in fast:
            _say_once("compiling (about a minute, once; seconds when cached)", note)
            fast[kind] = torch.compile(function, dynamic=False, **FORMS.get(kind, {}))
        try:
            result = fast[kind](*arguments)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            failed = True
            reason = textwrap.shorten(str(error), 200)
            _say_once(f"the compiler is not usable, going on without it: {reason}", note)
            return function(*arguments)
        return tree_map_only(torch.Tensor, torch.clone, result) if kind == "cuda" else result

    return cast(F, call)


_SAID: set[str] = set()


def _say_once(text: str, note: Callable[[str], None]) -> None:
    if text not in _SAID:
        _SAID.add(text)
        note(text)
