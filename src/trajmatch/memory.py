"""How much memory is free, and how much the record of a step holds on to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

_CGROUP = Path("/sys/fs/cgroup")


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
class Holder(Protocol):
    """What says which tensors it keeps."""

    def held(self) -> Iterable[torch.Tensor]: ...


def kept_bytes(make: Callable[[], Holder]) -> int:
    """Bytes of the distinct tensors that autograd saves while `make` runs, and that its result
    holds."""
    kept: dict[int, int] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        made = make()
    for tensor in made.held():
        see(tensor)
    return sum(kept.values())


def _meminfo(field: str) -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 4 * 2**30  # no such file off Linux: a cautious guess keeps "auto" working
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
