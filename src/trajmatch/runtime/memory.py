"""Memory: what is free, what a step's residuals take, and the peak of any work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from trajmatch.errors import SettingError
from trajmatch.units import byte_size

_CGROUP = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self")
_ASSUMED = 4 * 2**30
"""A low guess of free memory, which keeps "auto" working."""


def available_bytes(device: torch.device) -> int:
    """As `free_bytes`; 4 GiB where that is unknown."""
    free = free_bytes(device)
    return _ASSUMED if free is None else free


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on `device`, within a container's limit where there is one.

    None where it is unknown: of the CPU off Linux, of a GPU that is not there. A container's cache
    of files counts as free.
    """
    if device.type == "cuda":
        there = torch.cuda.is_available()
        return int(torch.cuda.mem_get_info(device)[0]) if there else None
    try:
        free = _field(Path("/proc/meminfo"), "MemAvailable")
    except (OSError, StopIteration):
        return None
    try:
        limit = int((_CGROUP / "memory.max").read_text(encoding="utf-8"))
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used + _cached_files()))


def _cached_files() -> int:
    """Bytes of a container's cache of files that the system gives back when they are needed."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, StopIteration, ValueError):
        return 0


@dataclass(frozen=True)
class Need:
    """Memory that a part of some work takes at the least."""

    what: str
    """`10 synthetic images of 3x32x32`."""
    bytes: int
    lower: str
    """The setting that makes it less."""


def require_memory(needs: Sequence[Need], device: torch.device, free: int | None = None) -> None:
    """Refuse work that cannot fit into what is free on `device`, before any of it is allocated.

    free: bytes; None: asked of the system. Where the system does not tell, nothing is refused.

    Raises SettingError with the largest need, both amounts, and the setting to lower.

    Examples:
        >>> require_memory([Need("10 images", 4000, "ipc")], torch.device("cpu"), free=5000)
    """
    if free is None:
        free = free_bytes(device)
    total = sum(need.bytes for need in needs)
    if free is None or total <= free:
        return
    largest = max(needs, key=lambda need: need.bytes)
    raise SettingError(
        f"at least {byte_size(total)} of memory are needed, {byte_size(largest.bytes)} of them for "
        f"{largest.what}, and {byte_size(free)} are free on {device}; lower {largest.lower}"
    )


@runtime_checkable
class SavesTensors(Protocol):
    """An object that can list the tensors it holds."""

    def saved_tensors(self) -> Iterable[torch.Tensor]: ...


def saved_bytes(make: Callable[[], SavesTensors]) -> int:
    """Bytes of the distinct tensors that autograd saves while `make` runs, and of those that its
    result holds."""
    sizes: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = make()
    for tensor in result.saved_tensors():
        count(tensor)
    return sum(sizes.values())


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The largest sum of bytes, at one moment, of the tensors that `work` creates.

    On a CPU the results of every operator are counted, which takes some time; memory that an
    operator uses internally is not. On a GPU the allocator's statistics are used, and its peak
    until now is reset.

    Examples:
        >>> peak_bytes(lambda: torch.zeros(1000), torch.device("cpu"))
        4000
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    counter = _StorageCounter()
    with counter:
        work()
    return counter.peak


class _StorageCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of each storage from the operator that creates it until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        inputs = {id(part.untyped_storage()) for part in tree_iter(args) if _is_tensor(part)}
        result = operator(*args, **(kwargs or {}))
        for part in tree_iter(result):
            if _is_tensor(part) and id(storage := part.untyped_storage()) not in inputs:
                self._add(storage)
        self.peak = max(self.peak, self._now)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._now += size
            self._known[key] = weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._now -= size
        del self._known[key]


def _is_tensor(part: object) -> bool:
    return isinstance(part, torch.Tensor)


@dataclass
class Added:
    """The peak memory of a piece of work, beyond what was in use before it."""

    bytes: int | None = None
    """None while the work runs, and where the system does not report it."""


@contextlib.contextmanager
def added(device: torch.device) -> Iterator[Added]:
    """Measure the work in this context: resident memory of this process, or tensors on a GPU.

    Memory of child processes is not counted. Off Linux resident memory is not reported.
    """
    measured = Added()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield measured
        measured.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        # Memory freed before but not returned to the system would hide as much of the work's.
        ctypes.CDLL(None).malloc_trim(0)
        _remember_peak()
        (_SELF / "clear_refs").write_text("5", encoding="utf-8")  # resets the system's peak (VmHWM)
        start = _field(_SELF / "status", "VmRSS")
    except (OSError, AttributeError, StopIteration, TypeError):  # TypeError: CDLL(None) on Windows
        yield measured
        return
    yield measured
    measured.bytes = max(0, _field(_SELF / "status", "VmHWM") - start)


_highest = 0
"""The peak in bytes before `added` last reset it."""


def _remember_peak() -> None:
    global _highest
    _highest = resident_peak()


def resident_peak() -> int:
    """Largest resident memory of this process so far, in bytes; 0 on Windows, where it is unknown.

    Examples:
        >>> resident_peak() >= 0
        True
    """
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return max(_highest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _field(file: Path, name: str) -> int:
    """The value in bytes of the line `name:  123 kB`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
