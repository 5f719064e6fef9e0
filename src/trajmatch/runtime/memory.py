"""How much memory is free, what the record of a step holds on to, what any work takes at most."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_CGROUP = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self")


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device` (a container's limit counts)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _meminfo("MemAvailable")
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))


@runtime_checkable
class SavesTensors(Protocol):
    """What says which tensors it keeps."""

    def saved_tensors(self) -> Iterable[torch.Tensor]: ...


def saved_bytes(make: Callable[[], SavesTensors]) -> int:
    """Bytes of the distinct tensors that autograd saves while `make` runs, and that its result
    holds."""
    kept: dict[int, int] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        made = make()
    for tensor in made.saved_tensors():
        see(tensor)
    return sum(kept.values())


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Bytes of the tensors that `work` makes, at the moment when most of them are there.

    On a CPU every operator's results are watched, which costs some time, and what an operator
    takes for itself is not seen. On a GPU the allocator tells; its peak until now is forgotten.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    watch = _Watch()
    with watch:
        work()
    return watch.peak


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of what operators make, from there until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {id(part.untyped_storage()) for part in tree_iter(args) if _is_tensor(part)}
        made = operator(*args, **(kwargs or {}))
        for part in tree_iter(made):
            if _is_tensor(part) and id(storage := part.untyped_storage()) not in given:
                self._see(storage)
        self.peak = max(self.peak, self._now)
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._now += size
            self._known[key] = weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._now -= size
        del self._known[key]


def _is_tensor(part: object) -> bool:
    return isinstance(part, torch.Tensor)


@dataclass
class Added:
    """What work took beyond what was held before it, at its peak."""

    bytes: int | None = None
    """None while it goes on, and where the system does not tell."""


@contextlib.contextmanager
def added(device: torch.device) -> Iterator[Added]:
    """Measure the work inside: resident memory of this process, or tensors on a GPU.

    Not counted is what child processes take. Off Linux resident memory is not told.
    """
    found = Added()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        # What was freed and is kept for later would hide as much of what the work takes.
        ctypes.CDLL(None).malloc_trim(0)
        _remember_peak()
        (_SELF / "clear_refs").write_text("5")  # the peak begins anew
        start = _field(_SELF / "status", "VmRSS")
    except (OSError, AttributeError, StopIteration):
        yield found
        return
    yield found
    found.bytes = max(0, _field(_SELF / "status", "VmHWM") - start)


_highest = 0
"""Bytes at the peak before `added` made it begin anew."""


def _remember_peak() -> None:
    global _highest
    _highest = resident_peak()


def resident_peak() -> int:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return max(_highest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _meminfo(field: str) -> int:
    try:
        return _field(Path("/proc/meminfo"), field)
    except OSError:
        return 4 * 2**30  # no such file off Linux: a cautious guess keeps "auto" working


def _field(file: Path, name: str) -> int:
    """Bytes that a line `name:  123 kB` tells."""
    lines = file.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
