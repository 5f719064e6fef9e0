"""When a function goes through torch.compile, and what happens where the compiler does not work.

Compiling takes tens of seconds once a run (seconds when its cache on disk has the code) and saves a
share of every later call. Whether it pays is decided from the amount of work alone and not from a
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
"""Seconds of one eager pass of a network, however little it computes."""
FLOP_PER_SECOND = 1e11
"""Of one CPU core. It and CALL_SECONDS need not be exact: they set where 'auto' changes over."""

FORMS: dict[str, dict[str, Any]] = {
    "cuda": {"mode": "reduce-overhead"},
    # Calls between kernels from C++ instead of Python: a tenth of a small network's time.
    "cpu": {"options": {"cpp_wrapper": True}},
}
"""Arguments of torch.compile by kind of device."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Work:
    """How much of a network's work a run is.

    Examples:
        >>> Work(calls=20, flop=1000).times(3)
        Work(calls=60, flop=3000)
    """

    calls: int
    """Forward, backward or second-order passes, of any number of images each."""
    flop: int
    """Floating-point operations of all of them."""

    def times(self, runs: int) -> Work:
        """The work of `runs` such runs."""
        return Work(self.calls * runs, self.flop * runs)


def wanted(choice: str, work: Work) -> bool:
    """Whether to compile, for a choice of "yes", "no" or "auto".

    "auto" compiles what would take WORTH_SECONDS or more eagerly.

    Examples:
        >>> wanted("auto", Work(calls=100, flop=10**9))
        False
        >>> wanted("auto", Work(calls=1_000_000, flop=10**9))
        True
    """
    if choice == "auto":
        return work.calls * CALL_SECONDS + work.flop / FLOP_PER_SECOND >= WORTH_SECONDS
    return choice == "yes"


def forward_flop(module: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Floating-point operations of the convolutions and matrix products of one image's forward
    pass; `image_shape` is (channels, height, width)."""
    first = next(module.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(first.new_zeros(1, *image_shape))
    return int(counter.get_total_flops())


_ANNOUNCED: set[str] = set()
"""Lines that this process has given out."""


def compiled(
    function: F,
    note: Callable[[str], None] = log.info,
    *,
    compiler: Callable[..., Callable[..., Any]] = torch.compile,
    announced: set[str] = _ANNOUNCED,
) -> F:
    """`function` through torch.compile, with one compilation per shape of its arguments.

    Where the compiler fails (none is installed, it does not support an operator), one line is
    passed to `note` and `function` runs eagerly from then on. Errors of `function` itself are
    raised.

    On CUDA the compiled code is recorded as a CUDA graph and replayed, so that the host need not
    launch kernels one by one. A graph's next replay overwrites its results; they are copied, so
    that a caller owns what it gets.

    note: called with one line before the first compilation. Lines in `announced` are not repeated:
    by default, one for the whole process. compiler: called as torch.compile.
    """
    return cast(F, _Compiled(function, note, compiler, announced))


def is_compiled(function: Callable[..., Any]) -> bool:
    """Whether a function of `compiled` goes through the compiler, as far as it was called.

    Examples:
        >>> is_compiled(compiled(torch.sin)), is_compiled(torch.sin)
        (True, False)
    """
    return isinstance(function, _Compiled) and not function.failed


class _Compiled:
    """A function, and how it was compiled for each kind of device."""

    def __init__(
        self,
        function: Callable[..., Any],
        note: Callable[[str], None],
        compiler: Callable[..., Callable[..., Any]],
        announced: set[str],
    ) -> None:
        self.function, self.compiler = function, compiler
        self.note, self.announced = note, announced
        self.fast: dict[str, Callable[..., Any]] = {}
        self.failed = False

    def __call__(self, *arguments: Any) -> Any:
        if self.failed:
            return self.function(*arguments)
        kind = arguments[0].device.type
        if kind not in self.fast:
            self._announce("compiling (about a minute, once; seconds when cached)")
            options = FORMS.get(kind, {})
            self.fast[kind] = self.compiler(self.function, dynamic=False, **options)
        try:
            result = self.fast[kind](*arguments)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            self.failed = True
            reason = textwrap.shorten(str(error), 200)
            self._announce(f"the compiler is not usable, going on without it: {reason}")
            return self.function(*arguments)
        return tree_map_only(torch.Tensor, torch.clone, result) if kind == "cuda" else result

    def _announce(self, text: str) -> None:
        if text not in self.announced:
            self.announced.add(text)
            self.note(text)
