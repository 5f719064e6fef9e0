"""When a function goes through torch.compile, and what happens where the compiler does not work.

The compiler takes tens of seconds once a run (seconds when its cache on disk has the code) and
saves a share of every call after that. Whether it pays is a function of the work alone, not of a
measurement, so that a resumed run and every worker decide alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger("trajmatch")

WORTH_SECONDS = 180.0
"""Expected seconds of eager work on one core from which compiling pays."""
CALL_SECONDS = 1e-3
"""What one eager pass of a network costs however little it computes."""
FLOP_PER_SECOND = 1e11
"""What one core of a CPU computes. Neither figure need be right: they set where 'auto' turns."""

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

    `note` hears "compiling ..." before the first call.
    """
    fast: Callable[..., Any] = torch.compile(function, dynamic=False)
    state = "new"

    def call(*arguments: Any) -> Any:
        nonlocal state
        if state == "failed":
            return function(*arguments)
        if state == "new":
            note("compiling (about a minute, once; seconds when cached)")
        try:
            result = fast(*arguments)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            state = "failed"
            reason = str(error).strip().splitlines()[0]
            note(f"the compiler is not usable, going on without it: {reason}")
            return function(*arguments)
        state = "compiled"
        return result

    return cast(F, call)
